"""Embedding of a token."""

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
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics import matrices


def rule_factor(graph: Graph, op: Embed) -> str | None:
    if not 0 < op.factor < 1 << 31:
        return f"factor {op.factor} outside 1..2**31-1"
    return None


@dataclass
class Embed(Op):
    """token -> i32: a row of the embedding, ``table``, in the fixed-point format of the residual stream.

    value = requantize((q * d - b) * r[row], factor, shift).  The LM head uses the same row scales r if it is tied.
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
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of a row per token, unpacked from the layout of the engine that runs the tied LM head; its
        block is fetched if the embedding is in flash."""
        elements = call.tokens * share(call.sizes.hidden, call.sizes.cores)
        engine = engine_named(call.embedding.engine)
        kind = "elements" if engine.name == CORES else f"elements_{engine.costs_as or engine.name}"
        fetched = call.tokens * call.embedding.block_bytes if call.embedding_in_flash else 0
        return Work({"calls": 1, "tokens": call.tokens, kind: elements}, fetched=fetched)

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return one product per weight of a row, with the row's scale."""
        elements = call.tokens * call.sizes.hidden
        return Arithmetic(elements, elements * (call.embedding.bits / 8 + 4.0))
