"""The typed operations of the integer IR.

Values are per token: ``i32`` is fixed point int32 with fraction bits, ``q8`` a dynamic int8
vector (see numerics/vectors.py), ``heads8`` int8 heads, ``logits`` and ``token`` what they say.
Every op names its inputs and its one output; ``layer`` is -1 outside the layer loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shrinkc.ir.linear import QLinear


@dataclass(frozen=True)
class Type:
    """kind: token | i32 | q8 | heads8 | logits; width elements per token."""

    kind: str
    width: int
    frac: int = 0  # i32: fraction bits
    seg: int = 0  # q8: segment size
    cmax: int = 0  # q8: largest segment scale

    def __str__(self) -> str:
        if self.kind == "q8":
            return f"q8[{self.width}/{self.seg} c<={self.cmax}]"
        if self.kind in ("i32", "logits"):
            return f"{self.kind}[{self.width}]Q{self.frac}"
        return f"{self.kind}[{self.width}]"


@dataclass
class Op:
    """Common to all ops."""

    out: str
    inputs: tuple[str, ...]
    layer: int

    # attributes that most models' ops are without: said only where they are not None
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()

    @property
    def mnemonic(self) -> str:
        return type(self).__name__.lower()

    @property
    def name(self) -> str:
        """``out`` without its layer's prefix: the same in every layer."""
        return self.out.removeprefix(f"layer{self.layer}.")

    def attributes(self) -> dict[str, object]:
        """Everything that decides the numbers, for the text dump (matrices by their shape)."""
        skip = ("out", "inputs", "layer")
        return {k: v for k, v in self.stated().items() if k not in skip}

    def stated(self) -> dict[str, object]:
        """Every field but OPTIONAL ones that are None."""
        return {k: v for k, v in vars(self).items() if v is not None or k not in self.OPTIONAL}


@dataclass
class Embed(Op):
    """token -> i32: row ``token`` of ``table`` in the residual's fixed point.

    value = requantize((q * d - b) * r[row], factor, shift): the row scale r is the one the
    head uses when the table is shared with it.
    """

    table: QLinear
    factor: int
    shift: int


@dataclass
class NormQuant(Op):
    """i32 -> q8: RMSNorm and dynamic int8 of ``x[perm] * gain``.

    ``gain`` int16 [width] in Q15, in the order of the result.  ``perm`` uint16 [width], or None:
    place j of the result is made from input perm[j].
    """

    eps: int
    pre_shift: int
    gain: np.ndarray
    perm: np.ndarray | None = None


@dataclass
class Quant(Op):
    """i32 -> q8: dynamic int8 of ``x[perm]``; ``perm`` as in NormQuant."""

    perm: np.ndarray | None = None


@dataclass
class Linear(Op):
    """q8 -> i32, plus (second input) a residual i32 of the same fixed point, saturating.

    ``bias`` int32 [n] of the same fixed point, or None, is added first, saturating too.
    """

    OPTIONAL = frozenset({"bias"})

    weight: QLinear
    bias: np.ndarray | None = None


@dataclass
class RopeCache(Op):
    """i32 qkv -> heads8 q; k and v of the token are appended to the layer's int8 cache, with scales
    in units of 2**k_unit and 2**v_unit.

    With gains int16 [head_dim] in Q15, every head of q and of k passes through RMSNorm first:
    ``eps`` and ``pre_shift`` as in NormQuant, of head_dim inputs.  All four or none.
    """

    OPTIONAL = frozenset({"q_gain", "k_gain", "eps", "pre_shift"})

    heads: int
    kv_heads: int
    head_dim: int
    k_unit: int
    v_unit: int
    q_gain: np.ndarray | None = None
    k_gain: np.ndarray | None = None
    eps: int | None = None
    pre_shift: int | None = None


@dataclass
class Attention(Op):
    """heads8 q and the layer's cache -> i32 [heads * head_dim], 127/128 of the value.

    ``dot_shift`` makes the head's dot product fit 16 bits; the 15-bit mantissa ``scale_mantissa`` and
    ``scale_exponent`` bring its product with both scales to log2 units; probabilities weigh the
    values with ``weight_bits`` bits; ``v_unit`` as in RopeCache (numerics/attention.py).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale_mantissa: int
    scale_exponent: int
    dot_shift: int
    weight_bits: int
    v_unit: int


@dataclass
class SiluMul(Op):
    """i32 gate_up [2 * width] -> i32 [width]: silu(gate) * up.

    ``gate_shift`` brings the gate to Q16 for the sigmoid; gate * sigmoid loses a bit to a high word,
    gets ``shift`` (0..15) back, and its product with up is a high word again.
    """

    gate_shift: int
    shift: int


@dataclass
class Sample(Op):
    """logits -> token: greedy, or temperature and top-p with a counter-based generator.

    ``scale_shift`` is the fraction bits of the logits less 16.
    """

    scale_shift: int
