"""The operations of the integer IR, one file each."""

from shrinkc.ir.graph import OPS, Op, Type
from shrinkc.ir.ops.attention import Attention
from shrinkc.ir.ops.embed import Embed
from shrinkc.ir.ops.linear import Linear, vector_type
from shrinkc.ir.ops.normadd import NormAdd
from shrinkc.ir.ops.normquant import NormQuant
from shrinkc.ir.ops.quant import Quant
from shrinkc.ir.ops.ropecache import RopeCache
from shrinkc.ir.ops.sample import Sample
from shrinkc.ir.ops.silumul import SiluMul

__all__ = [
    "OPS", "Attention", "Embed", "Linear", "NormAdd", "NormQuant", "Op", "Quant", "RopeCache", "Sample", "SiluMul",
    "Type", "vector_type",
]  # fmt: skip
