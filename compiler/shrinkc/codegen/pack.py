"""Rows of a matrix in the order in which they are stored; ``storage`` lays them out."""

from __future__ import annotations

import numpy as np

from shrinkc.abi import ROW_BLOCK
from shrinkc.engines import engine_named
from shrinkc.ir.linear import QLinear
from shrinkc.storage import StoredRows, pack_blocks


def gate_up_order(n: int) -> np.ndarray:
    """Row order that interleaves 4 gate and 4 up rows; -1 marks padding.  ``n`` = 2 * ffn."""
    ffn = n // 2
    padded = -(-ffn // 4) * 4
    rows = np.arange(padded)
    gate = np.where(rows < ffn, rows, -1).reshape(-1, 4)
    up = np.where(rows < ffn, rows + ffn, -1).reshape(-1, 4)
    return np.concatenate([gate, up], axis=1).reshape(-1)


def _rows(table: np.ndarray, order: np.ndarray, block: int) -> np.ndarray:
    """Rows in ``order``, zero where it is -1, padded to whole blocks."""
    padded = np.full(-(-len(order) // block) * block, -1)
    padded[: len(order)] = order
    out = np.zeros((len(padded), *table.shape[1:]), table.dtype)
    out[padded >= 0] = table[padded[padded >= 0]]
    return out


def stored_rows(w: QLinear, order: np.ndarray | None, block: int) -> StoredRows:
    """A matrix (and the b of its adapter) for a store with blocks of ``block`` rows."""
    order = np.arange(w.n) if order is None else order
    q, r = _rows(w.q, order, block), _rows(w.r, order, block)
    d = None if w.d is None else _rows(w.d, order, block)
    b = None if w.b is None or w.zero_points else _rows(w.b, order, block)
    zeros = _rows(w.zeros(), order, block) if w.zero_points else None
    adapter = None if w.low_rank is None else stored_rows(w.low_rank.b, order, block)
    return StoredRows(w.format, w.group, w.pad, q, d, b, zeros, r, adapter)


def pack_matrix(w: QLinear, order: np.ndarray | None = None) -> np.ndarray:
    """uint8 [blocks, block_bytes] as the cores read it."""
    return pack_blocks(stored_rows(w, order, ROW_BLOCK))


def pack_stored(w: QLinear, order: np.ndarray | None = None) -> np.ndarray:
    """uint8 [bytes] as the matrix's engine reads it."""
    store = engine_named(w.engine).store
    return store.pack(stored_rows(w, order, store.rows))
