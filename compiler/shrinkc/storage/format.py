"""Storage formats: the order of a matrix's integers in memory.

A matrix is stored in blocks of ROW_BLOCK rows, a block in groups along its inputs, a group in
units of ``inputs`` inputs.  A unit holds, row after row, the same word of every row, then their next
word: a kernel reads one word per row at a time.  Its C twin is ``sc_dot_w<bits>.h``.

Only packing imports numpy, so that commands which need only the widths start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shrinkc.abi import ROW_BLOCK

if TYPE_CHECKING:
    import numpy as np

WORD = 4  # bytes, and int8 inputs of one SIMD instruction


@dataclass(frozen=True)
class StorageFormat:
    """Signed integers of ``bits`` bits; ``inputs`` inputs of a row form a unit.

    ``fold``: the kernel has the weights in the upper bits of bytes, so its sums are 2**fold times too large until they
    are rounded; the sum of a group must stay below 2**30.  ``symmetric``: range of symmetric weights.
    ``pack_units``: int8 [rows, units, inputs] -> uint8 [rows, units, bytes], whole words per row.
    ``clip``: fractions of a group's range that MSE clipping tries; empty: no clipping.
    ``grouped_embeddings``: embedding and LM head use the group size of the layers; else they are per-channel.
    """

    bits: int
    inputs: int
    fold: int
    symmetric: tuple[int, int]
    pack_units: Callable[[np.ndarray], np.ndarray]
    clip: tuple[float, ...] = ()
    grouped_embeddings: bool = True

    def __post_init__(self) -> None:
        assert 1 <= self.bits <= 8
        # a unit is the smallest number of inputs that fills whole words
        assert self.inputs == 8 * WORD // math.gcd(8 * WORD, self.bits)
        assert self.low <= self.symmetric[0] and self.symmetric[1] <= self.high
        assert (-self.low << self.fold) <= 128  # a folded weight is an int8

    @property
    def low(self) -> int:
        """Smallest integer that can be stored."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer that can be stored."""
        return (1 << (self.bits - 1)) - 1

    def weight_bytes(self, words: int) -> int:
        """Return the bytes of a block's weights for activations of ``words`` words, padding included."""
        return words * WORD * ROW_BLOCK * self.bits // 8

    def pack(self, q: np.ndarray, pad: int) -> np.ndarray:
        """Pack a group int8 [rows, n] into uint8 [blocks, bytes], inputs padded to a multiple of ``pad``."""
        import numpy as np

        rows, n = q.shape
        padded = np.zeros((rows, -(-n // pad) * pad), np.int8)
        padded[:, :n] = q
        units = self.pack_units(padded.reshape(rows, -1, self.inputs))
        words = units.reshape(rows // ROW_BLOCK, ROW_BLOCK, -1, WORD)
        return np.ascontiguousarray(words.transpose(0, 2, 1, 3)).reshape(rows // ROW_BLOCK, -1)


def lanes(units: np.ndarray, bits: int) -> np.ndarray:
    """Split int8 [rows, units, inputs] into uint8 [rows, units, inputs / 4, 4].

    ``[..., s, j]`` are the low ``bits`` bits of input 4 * s + j, which belongs to byte j of activation word s."""
    rows, count, inputs = units.shape
    split = units.reshape(rows, count, inputs // WORD, WORD).view("uint8")
    out: np.ndarray = split & ((1 << bits) - 1)
    return out
