"""Weights as the kernels walk them: blocks of 8 rows.  sc_model.h documents the blocks, a file of
``storage`` each format's words."""

from __future__ import annotations

import numpy as np

from shrinkc.abi import ROW_BLOCK
from shrinkc.ir.linear import QLinear


def gate_up_order(n: int) -> np.ndarray:
    """Row order that interleaves 4 gate and 4 up rows; -1 marks padding.  ``n`` = 2 * ffn."""
    ffn = n // 2
    padded = -(-ffn // 4) * 4
    rows = np.arange(padded)
    gate = np.where(rows < ffn, rows, -1).reshape(-1, 4)
    up = np.where(rows < ffn, rows + ffn, -1).reshape(-1, 4)
    return np.concatenate([gate, up], axis=1).reshape(-1)


def _rows(table: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows in ``order``, zero where it is -1, padded to whole blocks."""
    padded = np.full(-(-len(order) // ROW_BLOCK) * ROW_BLOCK, -1)
    padded[: len(order)] = order
    out = np.zeros((len(padded), *table.shape[1:]), table.dtype)
    out[padded >= 0] = table[padded[padded >= 0]]
    return out


def pack_matrix(w: QLinear, order: np.ndarray | None = None) -> np.ndarray:
    """uint8 [blocks, block_bytes] of a matrix (and the b of its side path)."""
    order = np.arange(w.n) if order is None else order
    q = _rows(w.q, order)
    blocks = len(q) // ROW_BLOCK
    parts: list[np.ndarray] = [_rows(w.r, order).astype("<u2").view(np.uint8).reshape(blocks, -1)]
    d = None if w.d is None else _rows(w.d, order)
    b = None if w.b is None else _rows(w.b, order).astype("<i2")
    for g in range(w.nseg):
        if d is not None:
            parts.append(d[:, g].reshape(blocks, ROW_BLOCK).view(np.uint8))
        if b is not None:
            parts.append(np.ascontiguousarray(b[:, g]).reshape(blocks, ROW_BLOCK).view(np.uint8))
        parts.append(w.format.pack(q[:, g * w.seg : (g + 1) * w.seg], w.pad))
    if w.low_rank is not None:
        parts.append(pack_matrix(w.low_rank.b, order))
    return np.concatenate(parts, axis=1)
