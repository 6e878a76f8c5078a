"""The embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import share
from shrinkc.engines import CORES, engine_named
from shrinkc.ir.graph import Graph, Op, State
from shrinkc.ir.linear import QLinear
from shrinkc.ir.steps import Access, PassSizes, Step, Turn, Use
from shrinkc.numerics import matrices


def rule_factor(graph: Graph, op: Embed) -> str | None:
    if not 0 < op.factor < 1 << 31:
        return f"factor {op.factor} outside 1..2**31-1"
    return None


@dataclass
class Embed(Op):
    """token -> i32: row ``token`` of ``table`` in the residual's fixed point.

    value = requantize((q * d - b) * r[row], factor, shift): the row scale r is the one the
    head uses when the table is shared with it.
    """

    TAKES = (("token",),)
    BUFFER = "x"
    RULES = (rule_factor,)

    table: QLinear
    factor: int
    shift: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        return matrices.embed(self.table, np.asarray(args[0]), self.factor, self.shift)

    def matrices(self) -> list[QLinear]:
        return self.table.all()

    def macros(self) -> dict[str, int | str]:
        return {"EMBED_FACTOR": f"{self.factor}u", "EMBED_SHIFT": self.shift}

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.hidden

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield Use("x", Access.WRITE, sizes.words(sizes.hidden))

    @classmethod
    def work(cls, step: Step, turn: Turn) -> Work:
        """Each token's row, of a block that comes from flash where the table is there, and unpacked from
        what an engine reads where the table is one's."""
        elements = turn.tokens * share(turn.sizes.hidden, turn.sizes.cores)
        engine = engine_named(turn.table.engine)
        kind = "elements" if engine.name == CORES else f"elements_{engine.costs_as or engine.name}"
        fetched = turn.tokens * turn.table.block_bytes if turn.outside else 0
        return Work({"calls": 1, "tokens": turn.tokens, kind: elements}, fetched=fetched)

    @classmethod
    def arithmetic(cls, step: Step, turn: Turn) -> Arithmetic:
        """A row's weights, each with the row's scale, made int32."""
        elements = turn.tokens * turn.sizes.hidden
        return Arithmetic(elements, elements * (turn.table.bits / 8 + 4.0))
