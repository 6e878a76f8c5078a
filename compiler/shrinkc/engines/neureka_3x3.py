"""N-EUREKA in 3x3 mode: matrices whose weights take time and space by their bits.

A vector of 9 C inputs is taken for an image of 3 by 3 pixels with C channels, its low bytes above its high
ones, so that a convolution of 3x3 has both sums among its results.  Per row, 28 channels and bit there is one
plane of 32 bytes.  A job takes one token.  All else is as in neureka.py.

Cycles are of GVSoC: 32 rows take 190, 190 and 492 with vectors of 64, 172 and 576 inputs at 4 bit, 126 and
300 at 2 bit with 64 and 576, 318 at 8 bit with 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shrinkc.engines.engine import Features, MatrixSpec
from shrinkc.engines.neureka import (
    BLOCK,
    JOB_ROWS,
    JOBS,
    START,
    beside_bytes,
    jobs_name,
    with_multipliers,
)
from shrinkc.engines.neureka import ENGINE as DENSE
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

TAPS = 9
CHANNELS = 28  # of a tile
PLANE = 32  # bytes of a bit of a tile
PAD = 36  # inputs: a whole channel, and whole words


def _tiles(k: int) -> int:
    return -(-(-(-k // PAD) * PAD // TAPS) // CHANNELS)


def block_bytes(m: MatrixShape) -> int:
    return 8 * PLANE * m.bits * _tiles(m.k)


def pack(w: StoredRows) -> np.ndarray:
    """Per row, tile of 28 channels and bit a plane, whose bit 28 tap + c is of input C tap + c."""
    import numpy as np

    rows, k = w.q.shape
    bits, tiles = w.format.bits, _tiles(k)
    channels = -(-k // PAD) * PAD // TAPS
    zero = 1 << (bits - 1)
    inputs = np.full((rows, TAPS * channels), zero, np.uint8)
    inputs[:, :k] = w.q.astype(np.int16) + zero
    stored = np.full((rows, TAPS, tiles * CHANNELS), zero, np.uint8)
    stored[:, :, :channels] = inputs.reshape(rows, TAPS, channels)
    of_tiles = (
        stored.reshape(rows, TAPS, tiles, CHANNELS).transpose(0, 2, 1, 3).reshape(rows, tiles, -1)
    )
    planes = np.zeros((rows, tiles, bits, 8 * PLANE), np.uint8)
    for bit in range(bits):
        planes[:, :, bit, : TAPS * CHANNELS] = of_tiles >> bit & 1
    return with_multipliers(np.packbits(planes, axis=3, bitorder="little").reshape(-1), w)


def cut(k: int, group: int | None, bits: int) -> tuple[int, int]:
    return k, PAD


def cycles(spec: MatrixSpec, tokens: int) -> int:
    tile = _tiles(spec.k) * (32 * spec.bits + 27) + 35
    return START + tokens * -(-spec.rows // BLOCK) * tile


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Multipliers and the sums of 4 pixels of JOBS jobs."""
    return JOBS * 2 * JOB_ROWS * (4 * 4 + 2)


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Blocks of rows, tiles of channels, and their planes; jobs are what the cores write."""
    rows = tokens * -(-shape.rows // BLOCK)
    channels = rows * _tiles(shape.k)
    jobs = tokens * -(-shape.rows // (2 * JOB_ROWS))
    return {
        "calls": 1, jobs_name(tokens): jobs, "rows": rows, "tiles": channels, "planes": channels * shape.bits,
    }  # fmt: skip


ENGINE = replace(
    DENSE,
    name="neureka_3x3",
    store=Store("bit planes of 252", 8, block_bytes, pack, beside_bytes),
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    features=features,
)
