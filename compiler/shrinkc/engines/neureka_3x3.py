"""N-EUREKA in 3x3 mode: matrices whose weights take time and space by their bits.

A vector of 9 C inputs is taken for an image of 3 by 3 pixels with C channels, its low bytes above its high
ones, so that a convolution of 3x3 has both sums among its results.  Per row, 28 channels and bit there is one
plane of 32 bytes.  A job takes one token.  All else is as in neureka.py.

A tile of 28 channels takes its time however few of its 252 inputs there are.  So of many a matrix the engine has
whole tiles alone, and the cores multiply the inputs behind them, its tail, while the engine is at its own: they
have 8 bit weights of those, in blocks of 8 rows as where they have a matrix alone (storage/blocks.py), and copy them
into L1 job by job.

Cycles are of GVSoC: 32 rows take 190, 190 and 492 with vectors of 64, 172 and 576 inputs at 4 bit, 126 and
300 at 2 bit with 64 and 576, 318 at 8 bit with 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shrinkc.engines import neureka as dense
from shrinkc.engines.engine import Features, MatrixSpec
from shrinkc.engines.neureka import BLOCK, IMAGE, JOB_ROWS, JOBS, START, jobs_name
from shrinkc.storage import WORD, MatrixShape, Store, StoredRows, format_of

if TYPE_CHECKING:
    import numpy as np

TAPS = 9
CHANNELS = 28  # of a tile
PLANE = 32  # bytes of a bit of a tile
PAD = 36  # inputs: a whole channel, and whole words
TILE = TAPS * CHANNELS  # inputs
TAIL_MAX = 36  # inputs: of more the cores take as long as the engine does of a tile
APART = 4  # bytes between blocks of tails: neighbours begin in other banks of L1
TAIL_WORD = 13  # cycles that eight cores take for 32 rows of 4 inputs of a tail
FINISH = 280  # the same for what becomes of 32 rows' sums, gates' at that


def _whole(tiles: int, bits: int) -> int:
    """Cycles of 32 rows."""
    return tiles * (32 * bits + 27) + 35


def _words(inputs: int) -> int:
    return -(-inputs // WORD)


def tail(k: int, bits: int) -> int:
    """Inputs behind the last whole tile, where it is worth it that the cores multiply them; else 0."""
    tiles, rest = divmod(k, TILE)
    if not tiles or not 0 < rest <= TAIL_MAX:
        return 0
    without = _whole(tiles + 1, bits)
    shared = max(_whole(tiles, bits), TAIL_WORD * _words(rest) + FINISH)
    return rest if 20 * shared < 19 * without else 0


def _tail_block(words: int) -> int:
    """Bytes of 8 rows."""
    return 8 * WORD * words + APART


def _tiles(k: int, bits: int) -> int:
    if tail(k, bits):
        return k // TILE
    return -(-(-(-k // PAD) * PAD // TAPS) // CHANNELS)


def block_bytes(m: MatrixShape) -> int:
    return 8 * PLANE * m.bits * _tiles(m.k, m.bits)


def beside_bytes(m: MatrixShape) -> int:
    """Row multipliers, and behind them the tail."""
    words = _words(tail(m.k, m.bits))
    return dense.beside_bytes(m) + (m.blocks * _tail_block(words) if words else 0)


def pack(w: StoredRows) -> np.ndarray:
    """Per row, tile of 28 channels and bit a plane, whose bit 28 tap + c is of input C tap + c."""
    import numpy as np

    rows, k = w.q.shape
    bits = w.format.bits
    tiles, behind = _tiles(k, bits), tail(k, bits)
    whole = k - behind
    channels = -(-whole // PAD) * PAD // TAPS
    zero = 1 << (bits - 1)
    inputs = np.full((rows, TAPS * channels), zero, np.uint8)
    inputs[:, :whole] = w.q[:, :whole].astype(np.int16) + zero
    stored = np.full((rows, TAPS, tiles * CHANNELS), zero, np.uint8)
    stored[:, :, :channels] = inputs.reshape(rows, TAPS, channels)
    of_tiles = (
        stored.reshape(rows, TAPS, tiles, CHANNELS).transpose(0, 2, 1, 3).reshape(rows, tiles, -1)
    )
    planes = np.zeros((rows, tiles, bits, 8 * PLANE), np.uint8)
    for bit in range(bits):
        planes[:, :, bit, : TAPS * CHANNELS] = of_tiles >> bit & 1
    out = dense.with_multipliers(np.packbits(planes, axis=3, bitorder="little").reshape(-1), w)
    if not behind:
        return out
    blocks = format_of(8).pack(w.q[:, whole:], WORD)
    return np.concatenate([out, np.pad(blocks, ((0, 0), (0, APART))).reshape(-1)])


def cut(k: int, group: int | None, bits: int) -> tuple[int, int]:
    """Of the image whose rows are 3 pixels wide high bytes are 3 rows behind low ones, and with a tail 4."""
    return k, 4 * 3 * CHANNELS * _tiles(k, bits) if tail(k, bits) else PAD


def cycles(spec: MatrixSpec, tokens: int) -> int:
    takes = _whole(_tiles(spec.k, spec.bits), spec.bits)
    if behind := tail(spec.k, spec.bits):
        takes = max(takes, TAIL_WORD * _words(behind) + FINISH)
    return START + tokens * -(-spec.rows // BLOCK) * takes


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Multipliers and the sums of 4 pixels of JOBS jobs; with a tail of 5, and of a job what its tails add up to,
    and the tails of two."""
    rows, words = 2 * JOB_ROWS, _words(tail(shape.k, shape.bits))
    if not words:
        return JOBS * rows * (4 * 4 + 2)
    return JOBS * rows * (4 * 5 + 2) + 4 * rows + 2 * (rows // 8) * _tail_block(words)


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Blocks of rows, tiles of channels, their planes, and words of tails; jobs are what the cores write."""
    rows = tokens * -(-shape.rows // BLOCK)
    channels = rows * _tiles(shape.k, shape.bits)
    jobs = tokens * -(-shape.rows // (2 * JOB_ROWS))
    return {
        "calls": 1, jobs_name(tokens): jobs, "rows": rows, "tiles": channels, "planes": channels * shape.bits,
        "tails": rows * _words(tail(shape.k, shape.bits)),
    }  # fmt: skip


ENGINE = replace(
    dense.ENGINE,
    name="neureka_3x3",
    store=Store("bit planes of 252", 8, block_bytes, pack, beside_bytes),
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    features=features,
    table=IMAGE + 8,
    tail=tail,
)
