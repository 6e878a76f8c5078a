"""Sizes as the verifier works them out: of vectors, of tables in L1, and of a layer's cache."""

from __future__ import annotations

import math

from shrinkc.abi import MATRIX_BYTES, TABLE_BYTES
from shrinkc.engines import ENGINES
from shrinkc.schedule.shapes import ModelShape


def skewed(size: int) -> int:
    """Per-core structures end 12 bytes after a multiple of 64: neighbours use other L1 banks."""
    return size + (12 - size) % 64


def group_lengths(k: int, group: int) -> list[int]:
    return [min(group, k - at) for at in range(0, k, group)]


def vector_words(k: int, group: int, bits: int, pad: int = 0) -> int:
    """int32 words of a quantised vector of k inputs, padding included."""
    unit = pad or 32 // math.gcd(32, bits)  # the fewest weights of a row that fill whole words
    return sum((n + unit - 1) // unit * unit // 4 for n in group_lengths(k, group))


def x_blocks(k: int, group: int) -> int:
    return sum((n + 7) // 8 for n in group_lengths(k, group))


def gain_bytes(s: ModelShape) -> int:
    """Of all norms."""
    return 4 * s.hidden * (2 * s.num_layers + 1)


def gains_outside_l1(s: ModelShape) -> bool:
    """Whether they are not in L1, where up to 8 KiB of them are."""
    return gain_bytes(s) > 8192


def table_bytes(s: ModelShape) -> int:
    """Matrix and layer tables in L1, those of functions, and gains where they are there."""
    adapters = sum(1 for m in s.matrices if m.rank > 0)
    gains = 0 if gains_outside_l1(s) else (gain_bytes(s) + 15) // 16 * 16
    matrices = (len(s.matrices) + 1 + adapters) * MATRIX_BYTES
    layer = 16 + (16 if s.perms else 0) + (16 if s.biases else 0)
    for step in s.steps:
        for kind in step.op.NUMBERS.values() if step.in_layer else ():
            size = int(kind.strip("uint_")) // 8
            layer = (layer + size - 1) // size * size + size
    layer = (layer + 3) // 4 * 4
    if s.head_norms:
        layer = (layer + 8 + 7) // 8 * 8 + 8
    kept = max(ENGINES[m.engine].table for m in s.matrices) * len(s.matrices)
    return matrices + s.num_layers * layer + TABLE_BYTES + gains + (kept + 15) // 16 * 16


def layer_cache_bytes(s: ModelShape) -> int:
    """A layer's keys, with both scales, and values."""
    head = (s.head_dim + 3) // 4 * 4
    size = (s.context + 3) // 4 * 4 * s.kv_heads * (head + 4 + s.head_dim)
    return (size + 15) // 16 * 16
