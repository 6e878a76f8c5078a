"""Sizes of vectors, tables in L1 and a layer's KV cache, computed independently of the planner."""

from __future__ import annotations

import math

from shrinkc.abi import MATRIX_BYTES, TABLE_BYTES
from shrinkc.engines import ENGINES
from shrinkc.schedule.shapes import ModelShape


def skewed(size: int) -> int:
    """Round up to 12 bytes after a multiple of 64, so that neighbouring cores use different L1 banks."""
    return size + (12 - size) % 64


def group_lengths(k: int, group: int) -> list[int]:
    return [min(group, k - at) for at in range(0, k, group)]


def vector_words(k: int, group: int, bits: int, pad: int = 0) -> int:
    """Return the int32 words of a quantised vector of k inputs, padding included."""
    unit = pad or 32 // math.gcd(32, bits)  # the smallest number of weights that fills whole words
    return sum((n + unit - 1) // unit * unit // 4 for n in group_lengths(k, group))


def x_blocks(k: int, group: int) -> int:
    return sum((n + 7) // 8 for n in group_lengths(k, group))


def norm_weight_bytes(s: ModelShape) -> int:
    """Return the bytes of all RMSNorm weights."""
    return 4 * s.hidden * (2 * s.num_layers + 1)


def post_norm_bytes(s: ModelShape) -> int:
    """Return the bytes of the norms after attention and MLP: weights, and 24 bytes of constants each."""
    return 2 * s.num_layers * (4 * s.hidden + 24)


def norm_weights_outside_l1(s: ModelShape) -> bool:
    """Whether the RMSNorm weights exceed 8 KiB and are therefore not in L1."""
    return norm_weight_bytes(s) > 8192


def table_bytes(s: ModelShape) -> int:
    """Return the bytes of all tables in L1: matrices, layers, functions, and the RMSNorm weights if they are there."""
    adapters = sum(1 for m in s.matrices if m.rank > 0)
    norms = 0 if norm_weights_outside_l1(s) else (norm_weight_bytes(s) + 15) // 16 * 16
    matrices = (len(s.matrices) + 1 + adapters) * MATRIX_BYTES
    layer = 16 + (16 if s.biases else 0)
    for step in s.steps:
        for kind in step.op.NUMBERS.values() if step.in_layer else ():
            size = int(kind.strip("uint_")) // 8
            layer = (layer + size - 1) // size * size + size
    layer = (layer + 3) // 4 * 4
    if s.head_norms:
        layer = (layer + 8 + 7) // 8 * 8 + 8
    kept = max(ENGINES[m.engine].table for m in s.matrices) * len(s.matrices)
    return matrices + s.num_layers * layer + TABLE_BYTES + norms + (kept + 15) // 16 * 16


def cached_positions_of(s: ModelShape, chunk: int) -> list[int]:
    """Return the positions that the cache of each layer holds.

    In a layer with a window, the last of a pass's tokens are written before its first token attends: a ring without
    room for the window before that token and for all of the pass would have overwritten some of the window."""
    windows = s.windows or [0] * s.num_layers
    return [min(s.context, w - 1 + chunk) if w else s.context for w in windows]


def cached_head_bytes(s: ModelShape) -> tuple[int, int]:
    """Return the bytes of a key with the scales of key and value, and of a value, for one position and KV head.

    With 4 bits, a quarter of a key has 8 bits; key and value have an offset, and the key has a second scale."""
    d = s.head_dim
    if s.kv_bits == 8:
        return 4 + (d + 3) // 4 * 4, d
    wide = d // 16 * 4
    return 8 + wide + (d - wide + 7) // 8 * 4, 1 + d // 2


def streamed_bytes(s: ModelShape, chunk: int, tile: int) -> int:
    """Return the bytes of L2 for caches that stream from HyperRAM: two pieces of ``tile`` blocks, and the blocks of a
    pass that begins at the last position of a block."""
    touched = {(3 + token) // 4 for token in range(chunk)}
    return (2 * tile + len(touched)) * 4 * s.kv_heads * sum(cached_head_bytes(s))


def layer_caches_bytes(s: ModelShape, chunk: int) -> list[int]:
    """Return the bytes of each layer's keys, values and scales in a lower memory."""
    sizes = [
        (n + 3) // 4 * 4 * s.kv_heads * sum(cached_head_bytes(s))
        for n in cached_positions_of(s, chunk)
    ]
    return [(size + 15) // 16 * 16 for size in sizes]
