"""RMSNorm, fused with the quantisation of its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.ops.quant import MakesVector, permuted, rule_permutation
from shrinkc.ir.steps import Access, PassSizes, Step, Use
from shrinkc.numerics import vectors
from shrinkc.numerics.fixed import I64


def rule_norm(graph: Graph, op: NormQuant) -> str | None:
    k = graph.input_types(op.inputs)[0].width
    if k < 2:  # sc_q16.h shifts squares by a word at most
        return f"a norm over {k} value"
    if op.pre_shift != vectors.square_pre_shift(k):
        return f"pre_shift {op.pre_shift} for width {k}"
    if not 1 <= op.eps <= 1 << 61:
        return f"eps {op.eps} outside 1..2**61"
    if op.gain.shape != (k,) or op.gain.dtype != np.int32:
        return f"gain is {op.gain.dtype}{op.gain.shape}"
    if int(op.gain.min()) == -(1 << 31):
        return "a gain of -2**31"
    return None


def norm_weight_uses(sizes: PassSizes) -> Iterable[Use]:
    """Return the use of the buffer into which a step prefetches the weights of the next norm."""
    if sizes.prefetches_norm_weights:
        yield Use("gain", Access.KEEP, 4 * sizes.hidden)


@dataclass
class NormQuant(MakesVector, Op):
    """i32 -> q16 or q8: RMSNorm and dynamic quantisation of ``x[perm] * gain``.

    ``gain``: the RMSNorm weights, int32 [width] in Q31, in the order of the result.  ``perm`` uint16 [width], or None:
    element j of the result comes from input perm[j].
    """

    GIVES = ("q16", "q8")
    RULES = (rule_norm, rule_permutation)
    KERNEL = "sc_step_norm"
    PRODUCTS = 3  # square, product with the weight, scaling

    eps: int
    pre_shift: int
    gain: np.ndarray
    perm: np.ndarray | None = None

    def run(self, state: State, args: Sequence[Any]) -> vectors.QVector | vectors.Q16Vector:
        t = state.graph.types[self.out]
        x = permuted(np.asarray(args[0]), self.perm)
        gain = self.gain.astype(I64)
        if t.kind == "q16":
            return vectors.norm_quantize_q16(x, t.bits, self.pre_shift, self.eps, gain)
        return vectors.norm_quantize_vector(x, t.group, t.cmax, self.pre_shift, self.eps, gain)

    def macros(self) -> dict[str, int | str]:
        drop = vectors.square_drop(len(self.gain))
        return {"NORM_EPS": f"{self.eps}ull", "NORM_SHIFT": self.pre_shift, "NORM_DROP": drop}

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        """Add y, which holds x * gain between the two halves of the quantisation."""
        yield Use("y", Access.SCRATCH, sizes.words(sizes.width(step.inputs[0])))
        yield from norm_weight_uses(sizes)
        yield from super().uses(step, sizes)

    @classmethod
    def kernel_parameter(cls, step: Step, steps: Sequence[Step]) -> int:
        """Return the index of the norm in its layer."""
        return [s for s in steps if s.op is cls and s.in_layer].index(step)
