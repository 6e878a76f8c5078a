"""Expected sizes of values, estimated from the weights of a model with norms after its blocks (Gemma).

The norms before its blocks have weights of hundreds for channels that are small, so upper bounds of results are
thousands of times what occurs: formats chosen from them leave no bits for the values.  The results of the blocks are
normalised, so the weights of the norms after the blocks say how large each channel of the residual stream becomes.
Channels are taken as independent.  Results larger than the format saturate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shrinkc.ir.linear import row_slices
from shrinkc.quantize.bounds import NORM_INPUT_FRAC_MAX, frac_for

# Factors between the expected size and the largest value of a format.  In Gemma 3 270M queries and keys reach 11 times
# the expected size of the largest row, values 9, gates and ups 5, results of blocks 7 (on 24 tokens of WikiText-2).
QUERY_ROOM, VALUE_ROOM, GATE_ROOM, BLOCK_ROOM, LOGIT_ROOM = 2.0**4, 2.0**6, 2.0**5, 2.0**8, 2.0**6

Squares = NDArray[np.float64]


class ExpectedSizes:
    """Mean square of each channel of the residual stream, float64 [hidden], block by block."""

    def __init__(self, embedding: np.ndarray, scale: float) -> None:
        """``embedding`` [vocab, hidden] times ``scale`` is the stream before the first block."""
        total = np.zeros(embedding.shape[1])
        for rows in row_slices(*embedding.shape):
            total += np.square(embedding[rows], dtype=np.float64).sum(axis=0)
        self._squares: Squares = total * scale**2 / len(embedding)

    def add(self, norm: np.ndarray) -> None:
        """Add the result of a block whose RMSNorm has the weights ``norm`` [hidden]."""
        self._squares = self._squares + np.square(norm, dtype=np.float64)

    def normalised(self, norm: np.ndarray) -> Squares:
        """Return the mean squares of the RMSNorm with the weights ``norm`` of the stream, float64 [hidden]."""
        mean = max(float(self._squares.mean()), 1e-30)
        return self._squares / mean * np.square(norm, dtype=np.float64)


def squares_of(weight: np.ndarray, inputs: Squares) -> Squares:
    """Return the mean squares of ``weight`` [n, k] @ x, float64 [n], for the mean squares of x, ``inputs`` [k]."""
    out = np.empty(len(weight))
    for rows in row_slices(*weight.shape):
        out[rows] = np.square(weight[rows], dtype=np.float64) @ inputs
    return out


def largest_size(squares: Squares) -> float:
    """Return the square root of the largest mean square."""
    return float(np.sqrt(squares.max(initial=0.0)))


def heads_frac(queries: Squares, values: Squares) -> int:
    """Return the fraction bits of queries, keys and values; ``queries`` has the mean squares of queries and keys."""
    return frac_for(max(QUERY_ROOM * largest_size(queries), VALUE_ROOM * largest_size(values)))


def block_frac(weight: np.ndarray, inputs: Squares) -> int:
    """Return the fraction bits of a block's result before its norm: ``weight`` @ x for mean squares ``inputs`` of x."""
    size = largest_size(squares_of(weight, inputs))
    return min(NORM_INPUT_FRAC_MAX, frac_for(BLOCK_ROOM * size))
