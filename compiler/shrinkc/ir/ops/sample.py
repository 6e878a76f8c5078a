"""Choice of the next token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.costs import Arithmetic, Work
from shrinkc.costs.work import share
from shrinkc.ir.graph import Op, State
from shrinkc.ir.steps import Access, Call, PassSizes, Step, Use
from shrinkc.numerics.fixed import I64
from shrinkc.numerics.sampling import sample


@dataclass
class Sample(Op):
    """logits -> token: greedy, or temperature and top-p with a counter-based generator.

    ``scale_shift``: fraction bits of the logits minus 16.
    """

    TAKES = (("logits",),)
    GIVES = ("token",)

    scale_shift: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        """Return tokens int64 [T] from logits [T, vocab] of the last T positions."""
        first = state.position - len(args[0])
        rows = enumerate(args[0], first)
        return np.array([sample(v, self.scale_shift, state.sampling, at) for at, v in rows], I64)

    def macros(self) -> dict[str, int | str]:
        return {"LOGIT_SHIFT": self.scale_shift}

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        if sizes.logits_in_l1:
            yield Use("logits", Access.UPDATE)
        yield Use("tops", Access.UPDATE, sizes.tops)

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of greedy sampling: finding the largest logit."""
        return Work({"calls": 1, "logits": share(call.sizes.vocab, call.sizes.cores)})

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return one comparison per logit."""
        logits = call.tokens * call.sizes.vocab
        return Arithmetic(logits, 4.0 * logits)
