"""The product of a gated MLP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from shrinkc.costs import Arithmetic, Work
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.ops.linear import product_arithmetic, product_uses, product_work
from shrinkc.ir.ops.normquant import gain_uses
from shrinkc.ir.ops.ropecache import layer_cache_uses
from shrinkc.ir.steps import Access, PassSizes, Step, Turn, Use
from shrinkc.numerics.gating import silu_mul


def rule_shifts(graph: Graph, op: SiluMul) -> str | None:
    if not (0 <= op.shift <= 15 and 0 <= op.up_shift <= 15 and -20 <= op.gate_shift <= 31):
        shifts = f"{op.shift}, {op.up_shift} and {op.gate_shift}"
        return f"shifts {shifts} outside 0..15, 0..15 and -20..31"
    return None


@dataclass
class SiluMul(Op):
    """i32 gate_up [2 * width] -> i32 [width]: silu(gate) * up.

    ``gate_shift`` brings the gate to Q16 for the sigmoid; gate * sigmoid loses a bit to a high word,
    gets ``shift`` (0..15) back, and its product with up, which is ``up_shift`` (0..15) times doubled, is
    a high word again.
    """

    RULES = (rule_shifts,)
    FUSED = True
    KERNEL = "sc_step_linear"
    BUFFER = "h"
    NUMBERS = MappingProxyType(
        {"gate_shift": "int8_t", "silu_shift": "int8_t", "up_shift": "int8_t"}
    )

    gate_shift: int
    shift: int
    up_shift: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        return silu_mul(np.asarray(args[0]), self.gate_shift, self.shift, self.up_shift)

    def numbers(self) -> tuple[int, ...]:
        return self.gate_shift, self.shift, self.up_shift

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.slot(step).rows // 2

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield from product_uses(step, sizes)
        if not sizes.in_place:
            yield from layer_cache_uses(
                sizes
            )  # the next layer's cache is prefetched during the last tile
        yield from gain_uses(sizes)  # and so do those of its first norm
        yield Use(cls.buffer(step, sizes), Access.WRITE, sizes.words(cls.width(step, sizes)))

    @classmethod
    def work(cls, step: Step, turn: Turn) -> Work:
        """The product with gate and up, whose every block has its share of the gating."""
        return product_work(turn)

    @classmethod
    def arithmetic(cls, step: Step, turn: Turn) -> Arithmetic:
        """The product with gate and up, and per result gate * sigmoid, the sigmoid's slope and times up."""
        assert turn.matrix is not None
        product, rows = product_arithmetic(turn, 0.5), turn.tokens * turn.matrix.rows
        return Arithmetic(product.products + 1.5 * rows, product.bytes)

    @classmethod
    def how(cls, step: Step, steps: Sequence[Step]) -> str:
        return "SC_SILU"
