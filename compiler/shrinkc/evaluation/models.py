"""The integer model, as a function from token ids to logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter

# ids [T] at positions 0..T-1 -> logits [T, vocab]
LogitsOf = Callable[[NDArray[np.int64]], NDArray[np.floating]]


def integer_logits(graph: Graph) -> LogitsOf:
    """The integer model; every call starts with an empty KV cache.

    The int32 logits are scaled by their fraction bits, which is exact in float64.
    """
    frac = next(
        graph.types[op.out].frac for op in graph.ops if graph.types[op.out].kind == "logits"
    )

    def logits_of(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        values = Interpreter(graph).forward(ids, all_logits=True)
        return np.ldexp(values.astype(np.float64), -frac)

    return logits_of
