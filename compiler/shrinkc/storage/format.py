"""What a storage format is: how the integers of a matrix lie in memory, for kernels to walk.

A matrix is stored in blocks of ROW_BLOCK rows, a block in groups along its inputs, a group in
units of ``inputs`` inputs.  A unit holds, row after row, the same word of every row, then their next
word: a kernel reads one word per row at a time.  Its C twin is ``sc_dot_w<bits>.h``.

numpy is imported where something is packed: the command line asks for the widths alone.
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
    """Signed integers of ``bits`` bits, ``inputs`` of a row stored together.

    ``fold``: the kernel has the weights at the top of their bytes, so that its sums are 2**fold
    times too large until they are rounded; a group's must stay below 2**30 all the same.
    ``symmetric``: range for weights that are rounded without an offset.
    ``pack_units``: int8 [rows, units, inputs] -> uint8 [rows, units, bytes], whole words per row.
    ``clip``: parts of a group's range to try as its scale when weights are rounded, because clipping
    buys resolution, the more the fewer levels there are; none: the whole range is always best.
    ``grouped_embeddings``: so few levels that an embedding or head needs the groups that the layers
    have; else one scale per output channel is enough.
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
        # a unit fills whole words, and is no longer than it must be for that
        assert self.inputs == 8 * WORD // math.gcd(8 * WORD, self.bits)
        assert self.low <= self.symmetric[0] and self.symmetric[1] <= self.high
        assert (-self.low << self.fold) <= 128  # a folded weight is an int8

    @property
    def low(self) -> int:
        """Least integer that can be stored."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer that can be stored."""
        return (1 << (self.bits - 1)) - 1

    def weight_bytes(self, words: int) -> int:
        """Bytes of a block's weights for activations of ``words`` words, padding included."""
        return words * WORD * ROW_BLOCK * self.bits // 8

    def pack(self, q: np.ndarray, pad: int) -> np.ndarray:
        """A group int8 [rows, n] as uint8 [blocks, bytes], inputs padded to a multiple of ``pad``."""
        import numpy as np

        rows, n = q.shape
        padded = np.zeros((rows, -(-n // pad) * pad), np.int8)
        padded[:, :n] = q
        units = self.pack_units(padded.reshape(rows, -1, self.inputs))
        words = units.reshape(rows // ROW_BLOCK, ROW_BLOCK, -1, WORD)
        return np.ascontiguousarray(words.transpose(0, 2, 1, 3)).reshape(rows // ROW_BLOCK, -1)


def lanes(units: np.ndarray, bits: int) -> np.ndarray:
    """int8 [rows, units, inputs] -> uint8 [rows, units, inputs / 4, 4]: ``[..., s, j]`` are the low
    ``bits`` bits of input 4 * s + j, which goes into byte j, like the input that byte j of
    activation word s holds."""
    rows, count, inputs = units.shape
    split = units.reshape(rows, count, inputs // WORD, WORD).view("uint8")
    out: np.ndarray = split & ((1 << bits) - 1)
    return out
