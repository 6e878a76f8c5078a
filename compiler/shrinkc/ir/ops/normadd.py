"""RMSNorm of a block's result, which is then added to the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.costs import Work
from shrinkc.costs.work import share
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics import vectors
from shrinkc.numerics.fixed import I64, add_to_residual


def rule_norm_add(graph: Graph, op: NormAdd) -> str | None:
    y, x = graph.input_types(op.inputs)
    out = graph.types[op.out]
    k = y.width
    if (x.width, x.frac) != (k, out.frac) or out.width != k:
        return f"adds {y} to {x} and gives {out}"
    if k < 2 or op.pre_shift != vectors.square_pre_shift(k):
        return f"pre_shift {op.pre_shift} for width {k}"
    if not 1 <= op.eps <= 1 << 61:
        return f"eps {op.eps} outside 1..2**61"
    if not 1 << 14 <= op.factor < 1 << 15 or not -64 <= op.exponent <= 64:
        return f"factor {op.factor} * 2**{op.exponent} outside 2**14..2**15-1 and -64..64"
    if op.gain.shape != (k,) or op.gain.dtype != np.int32:
        return f"gain is {op.gain.dtype}{op.gain.shape}"
    if int(op.gain.min()) == -(1 << 31):
        return "a gain of -2**31"
    return None


@dataclass
class NormAdd(Op):
    """i32, i32 -> i32: RMSNorm of the first input, added to the second, the residual stream, by ``add_to_residual``.

    ``gain``: the RMSNorm weights, int32 [width] in Q31.  ``factor`` (15 bits) * 2**exponent converts to the format of
    the residual stream (numerics/vectors.py: norm_values).
    """

    TAKES = (("i32", "i32"),)
    RULES = (rule_norm_add,)
    KERNEL = "sc_step_norm_add"
    PRODUCT = "block"

    eps: int
    pre_shift: int
    gain: np.ndarray
    factor: int
    exponent: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        values = vectors.norm_values(
            args[0], self.pre_shift, self.eps, self.gain.astype(I64), self.factor, self.exponent
        )
        return add_to_residual(np.asarray(args[1]), values)

    def macros(self) -> dict[str, int | str]:
        return {"POST_NORMS": 1, "POST_NORM_SHIFT": self.pre_shift}

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        return sizes.buffer(step.inputs[1])

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield Use(cls.PRODUCT, Access.READ)
        yield Use("parts", Access.SCRATCH, 8 * sizes.cores)
        yield Use(cls.buffer(step, sizes), Access.UPDATE, sizes.words(sizes.hidden))

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the elements of the busiest core: whole tokens, and its share of the remaining ones."""
        hidden, cores = call.sizes.hidden, call.sizes.cores
        rest = call.tokens % cores
        elements = call.tokens // cores * hidden + rest * share(hidden, cores)
        return Work({"calls": 1, "shared": rest, "elements": elements})

    @classmethod
    def kernel_parameter(cls, step: Step, steps: Sequence[Step]) -> int:
        """Return the index of the norm in its layer."""
        return [s for s in steps if s.op is cls and s.in_layer].index(step)
