"""Matrices as the cores read them: blocks of 8 rows with their multipliers, scales and offsets (C: sc_matrix.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shrinkc.abi import ROW_BLOCK
from shrinkc.storage.format import StorageFormat

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class StoredRows:
    """Integers of a matrix, with rows in stored order and padded to whole blocks.

    q int8 [rows, k]; d uint8, b int16 and zeros int8 (4-bit zero points) [rows, groups] or None; r uint16 [rows].
    Groups have ``group`` inputs, padded to a multiple of ``pad``.  ``adapter``: matrix b of the adapter.
    """

    format: StorageFormat
    group: int
    pad: int
    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None
    zeros: np.ndarray | None
    r: np.ndarray
    adapter: StoredRows | None = None


def pack_blocks(w: StoredRows) -> np.ndarray:
    """Return a matrix, and b of its adapter, as uint8 [blocks, block_bytes]."""
    import numpy as np

    blocks = len(w.q) // ROW_BLOCK
    parts: list[np.ndarray] = [w.r.astype("<u2").view("uint8").reshape(blocks, -1)]
    b = None if w.b is None else w.b.astype("<i2")
    zeros = None if w.zeros is None else w.zeros.reshape(blocks, ROW_BLOCK, -1).view("uint8") & 15
    for g, at in enumerate(range(0, w.q.shape[1], w.group)):
        if w.d is not None:
            parts.append(w.d[:, g].reshape(blocks, ROW_BLOCK).view("uint8"))
        if b is not None:
            parts.append(np.ascontiguousarray(b[:, g]).reshape(blocks, ROW_BLOCK).view("uint8"))
        if zeros is not None:  # row 0 in the low bits of the first byte
            parts.append(zeros[:, 0::2, g] | zeros[:, 1::2, g] << 4)
        parts.append(w.format.pack(w.q[:, at : at + w.group], w.pad))
    if w.adapter is not None:
        parts.append(pack_blocks(w.adapter))
    return np.concatenate(parts, axis=1)
