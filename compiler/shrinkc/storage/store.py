"""What a store is: how the matrices that a compute engine reads lie in memory.

A matrix is stored in blocks of ``rows`` rows after each other; what lies behind the last block, beside
them, belongs to the whole of it: scales of an engine whose weights have to lie alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat

if TYPE_CHECKING:
    import numpy as np

    from shrinkc.storage.matrix import MatrixShape

ALIGN = 16  # bytes: every matrix begins at a multiple of this in its memory


@dataclass(frozen=True)
class StoredRows:
    """The integers of a matrix in the order in which its rows are stored, padded to whole blocks.

    q int8 [rows, k], d uint8 and b int16 or zeros int8, signed ones of 4 bits, [rows, segments] or None,
    r uint16 [rows]; segments of ``seg`` inputs, each padded to a multiple of ``pad``.  ``side``: the b of a
    side path.
    """

    format: StorageFormat
    seg: int
    pad: int
    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None
    zeros: np.ndarray | None
    r: np.ndarray
    side: StoredRows | None = None


@dataclass(frozen=True)
class Store:
    """One way to lay out a matrix.

    ``block_bytes`` and ``beside_bytes`` say of a shape what a block takes, multiples of 4, and what
    lies behind the last one.  ``pack``: all of it as uint8 [bytes].  ``align``: of the first byte.
    """

    name: str
    rows: int
    block_bytes: Callable[[MatrixShape], int]
    pack: Callable[[StoredRows], np.ndarray]
    beside_bytes: Callable[[MatrixShape], int] = lambda shape: 0
    align: int = ALIGN

    def __post_init__(self) -> None:
        assert self.rows > 0 and self.rows % 8 == 0, "gate_up interleaves rows in blocks of 8"
        assert self.align % ALIGN == 0
