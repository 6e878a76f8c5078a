"""The golden model: executes the IR on numpy, token by token or many tokens at once.

Results do not depend on how tokens are grouped into calls; ``observe`` sees every op's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shrinkc.ir.graph import Graph, Op, State
from shrinkc.numerics import vectors
from shrinkc.numerics.fixed import I64
from shrinkc.numerics.sampling import Sampling

Observer = Callable[[Op, "np.ndarray | vectors.QVector | vectors.QHeads"], None]


class Interpreter:
    """One generation: the graph and what its ops keep, such as the KV cache."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.state = State(graph)
        *self._ops, self._last = graph.ops  # the last one makes the token
        self._epilogue = graph.epilogue()

    @property
    def position(self) -> int:
        """Tokens so far: the position of the next one."""
        return self.state.position

    def forward(
        self,
        tokens: np.ndarray | list[int],
        *,
        all_logits: bool = False,
        logits: bool = True,
        observe: Observer | None = None,
    ) -> np.ndarray:
        """Feed tokens at the next positions; logits int64 [T or 1, vocab] of all or the last.

        ``logits=False`` skips final norm and head and returns an empty array.  Raises ValueError
        past the compiled context or for ids outside the vocabulary.
        """
        ids = np.asarray(tokens, I64)
        g = self.graph
        if self.position + len(ids) > g.context:
            raise ValueError(f"position {self.position + len(ids)} past the context of {g.context}")
        if len(ids) and not (0 <= ids.min() and ids.max() < g.vocab):
            raise ValueError(f"token ids must be in 0..{g.vocab - 1}")
        values: dict[str, Any] = {"token": ids}
        out: Any = None
        for i, op in enumerate(self._ops):
            if i == self._epilogue:
                if not logits:
                    break
                if not all_logits:
                    values[op.inputs[0]] = np.asarray(values[op.inputs[0]])[-1:]
            out = op.run(self.state, [values[name] for name in op.inputs])
            values[op.out] = out
            if observe is not None:
                observe(op, out)
        self.state.position += len(ids)
        return np.asarray(out) if logits else np.zeros((0, g.vocab), I64)

    def choose(self, logits: np.ndarray, how: Sampling) -> list[int]:
        """The tokens that follow the last T positions, from their logits [T, vocab]."""
        self.state.sampling = how
        return [int(token) for token in self._last.run(self.state, [logits])]
