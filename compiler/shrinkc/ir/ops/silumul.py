"""Gating of an MLP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from shrinkc.costs import Arithmetic, Work
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.ops.linear import product_arithmetic, product_uses, product_work
from shrinkc.ir.ops.normquant import norm_weight_uses
from shrinkc.ir.ops.ropecache import layer_cache_uses
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics.gating import silu_mul


def rule_shifts(graph: Graph, op: SiluMul) -> str | None:
    if not (0 <= op.shift <= 15 and 0 <= op.up_shift <= 15 and -20 <= op.gate_shift <= 31):
        shifts = f"{op.shift}, {op.up_shift} and {op.gate_shift}"
        return f"shifts {shifts} outside 0..15, 0..15 and -20..31"
    return None


def rule_gelu(graph: Graph, op: SiluMul) -> str | None:
    return None if op.gelu in (None, 1) else f"gelu = {op.gelu}"


@dataclass
class SiluMul(Op):
    """i32 gate_up [2 * width] -> i32 [width]: silu(gate) * up, or gelu(gate) * up if ``gelu`` is 1.

    ``gate_shift`` converts the gate to Q16 for the sigmoid.  The high word of gate * sigmoid is shifted left by
    ``shift`` (0..15), up by ``up_shift`` (0..15); the result is the high word of their product.
    """

    OPTIONAL = frozenset({"gelu"})
    RULES = (rule_shifts, rule_gelu)
    FUSED = True
    KERNEL = "sc_step_linear"
    BUFFER = "h"
    NUMBERS = MappingProxyType(
        {"gate_shift": "int8_t", "silu_shift": "int8_t", "up_shift": "int8_t"}
    )

    gate_shift: int
    shift: int
    up_shift: int
    gelu: int | None = None

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        gelu = self.gelu is not None
        return silu_mul(np.asarray(args[0]), self.gate_shift, self.shift, self.up_shift, gelu)

    def macros(self) -> dict[str, int | str]:
        return {} if self.gelu is None else {"GELU": 1}

    def numbers(self) -> tuple[int, ...]:
        return self.gate_shift, self.shift, self.up_shift

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.slot(step).rows // 2

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield from product_uses(step, sizes)
        if not sizes.in_place:
            yield from layer_cache_uses(sizes)  # prefetches the next layer's during the last tile
        yield from norm_weight_uses(sizes)  # prefetches those of the next layer's first norm
        yield Use(cls.buffer(step, sizes), Access.WRITE, sizes.words(cls.width(step, sizes)))

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of the product with gate and up; gating counts as a part of each block."""
        return product_work(call)

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return the product with gate and up, and three products per result: sigmoid's slope, * gate, * up."""
        assert call.matrix is not None
        product, rows = product_arithmetic(call, 0.5), call.tokens * call.matrix.rows
        return Arithmetic(product.products + 1.5 * rows, product.bytes)

    @classmethod
    def kernel_parameter(cls, step: Step, steps: Sequence[Step]) -> str:
        return "SC_SILU"
