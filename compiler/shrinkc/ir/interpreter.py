"""The interpreter: the reference implementation of the integer IR, in numpy.

Results do not depend on how tokens are divided among calls of ``forward``.
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
    """One generation: a graph and the state of its ops, such as the KV cache."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.state = State(graph)
        *self._ops, self._sample = graph.ops
        self._epilogue = graph.epilogue()

    @property
    def position(self) -> int:
        """Number of tokens so far, which is the position of the next token."""
        return self.state.position

    def rewind(self, position: int) -> None:
        """Forget the tokens from ``position`` on.  Raises ValueError if there are fewer tokens."""
        if position > self.position:
            raise ValueError(f"position {position} past the {self.position} tokens")
        self.state.position = position

    def forward(
        self,
        tokens: np.ndarray | list[int],
        *,
        all_logits: bool = False,
        logits: bool = True,
        observe: Observer | None = None,
    ) -> np.ndarray:
        """Process tokens at the next positions; return logits int64 [1, vocab] of the last, or [T, vocab] of all.

        ``logits=False`` skips final norm and LM head and returns an empty array.  ``observe`` is called with
        every op and its output.  Raises ValueError past the compiled context or for ids outside the vocabulary.
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

    def choose(self, logits: np.ndarray, sampling: Sampling) -> list[int]:
        """Return the next token after each of the last T positions, from their logits [T, vocab]."""
        self.state.sampling = sampling
        return [int(token) for token in self._sample.run(self.state, [logits])]
