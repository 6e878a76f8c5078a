"""N-EUREKA in 3x3 mode: matrices whose weights take time and space by their bits.

A vector of 9 C inputs is read as an image of 3 by 3 pixels with C channels, column after column, its low bytes left
of its high ones.  So one 3x3 convolution has both sums among its results.  They are in one row: on GVSoC the engine
takes the time of 6 pixels for all rows of results but the last, however few it has of each.  A plane of 32 bytes
holds one bit of 28 channels of a row.  A job takes one token.  The rest is as in neureka_1x1.py.

A tile of 28 channels takes its full time however few of its 252 inputs exist.  So the engine often multiplies whole
tiles only, and the cores multiply the remainder of each row at the same time.  They read its weights with 4 or 8 bits
in blocks of 8 rows (storage/blocks.py), copied into L1 job by job.  If few inputs remain, the cores do all rows: the
remainder is what follows the image.  If more remain, they have time for every other job only; the engine does all
inputs of the other jobs, so the image has more channels, and the last ones are the remainder.

Cycles are of GVSoC: 32 rows take 190, 190 and 492 with vectors of 64, 172 and 576 inputs at 4 bit, 126 and
300 at 2 bit with 64 and 576, 318 at 8 bit with 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shrinkc.engines import neureka_1x1 as dense
from shrinkc.engines.engine import Features, MatrixSpec, Remainders
from shrinkc.engines.neureka_1x1 import BLOCK, IMAGE, JOB_ROWS, JOBS, START, jobs_name, jobs_of_one
from shrinkc.storage import WORD, MatrixShape, Store, StoredRows, format_of

if TYPE_CHECKING:
    import numpy as np

TAPS = 9
CHANNELS = 28  # of a tile
PLANE = 32  # bytes of a bit of a tile
PAD = 36  # inputs: a whole channel, and whole words
TILE = TAPS * CHANNELS  # inputs
INPUTS_MAX = 36  # inputs of a remainder after the image
CHANNELS_MAX = 8  # channels of a remainder within the image: L1 has to hold those of a job
APART = 4  # bytes between blocks of remainders: neighbours begin in other banks of L1
ROWS = 2 * JOB_ROWS  # of a job
NIBBLES = 4  # bits that remainders have at most, where 8 inputs are a word
# Cycles that eight cores take for remainders of 32 rows, and of that for 4 inputs of each; what they take for what
# becomes of their sums, gates' at that.
REMAINDER, REMAINDER_WORD, FINISH = 90, 14, 200


def _takes(tiles: int, bits: int) -> int:
    """Cycles of 32 rows."""
    return tiles * (32 * bits + 27) + 35


def _channels(k: int) -> int:
    """Of an image of all inputs."""
    return -(-k // PAD) * PAD // TAPS


def _all_tiles(k: int) -> int:
    return -(-_channels(k) // CHANNELS)


def _words(k: int, found: Remainders) -> int:
    """Of a row's remainder."""
    inputs = (
        k % TILE
        if found is Remainders.ALL
        else TAPS * (_channels(k) - CHANNELS * (_all_tiles(k) - 1))
    )
    return 0 if found is Remainders.NONE else -(-inputs // WORD)


def _nibbles(k: int, bits: int, found: Remainders) -> bool:
    """Whether remainders have two nibbles in a byte: those of 4 channels do not, whose 9 words make no pairs."""
    return bits <= NIBBLES and (found is Remainders.ALL or _words(k, found) % 2 == 0)


def _remainder_words(k: int, bits: int, found: Remainders) -> int:
    """Of a row's remainder as it is stored."""
    return -(-_words(k, found) // (2 if _nibbles(k, bits, found) else 1))


def _cycles_with_remainders(k: int, bits: int, found: Remainders, share: float) -> float:
    """Cycles of 32 rows where ``share`` of the jobs have remainders."""
    if found is Remainders.NONE:
        return _takes(_all_tiles(k), bits)
    tiles = _all_tiles(k) - share
    return max(
        tiles * (_takes(1, bits) - _takes(0, bits)) + _takes(0, bits),
        FINISH + share * (REMAINDER + REMAINDER_WORD * _words(k, found)),
    )


def remainders(k: int, bits: int) -> Remainders:
    """Those that the cores multiply, where it is worth it."""
    ways = {}
    if k > TILE and 0 < k % TILE <= INPUTS_MAX:
        ways[Remainders.ALL] = _cycles_with_remainders(k, bits, Remainders.ALL, 1)
    if _all_tiles(k) > 1 and WORD * _words(k, Remainders.EVERY_OTHER) <= TAPS * CHANNELS_MAX:
        ways[Remainders.EVERY_OTHER] = _cycles_with_remainders(
            k, bits, Remainders.EVERY_OTHER, 1 / 2
        )
    best = min(ways, key=ways.__getitem__, default=Remainders.NONE)
    alone = _takes(_all_tiles(k), bits)
    return best if 20 * ways.get(best, alone) < 19 * alone else Remainders.NONE


def _rows_with_remainder(rows: int, found: Remainders) -> int:
    """Blocks of 32 rows in jobs with remainders."""
    blocks, each = -(-rows // BLOCK), ROWS // BLOCK
    jobs = range(-(-rows // ROWS))
    return sum(min(each, blocks - job * each) for job in jobs if found.has(job))


def _remainder_block(k: int, bits: int, found: Remainders) -> int:
    """Bytes of 8 rows."""
    return 8 * WORD * _remainder_words(k, bits, found) + APART


def _block(k: int, bits: int, found: Remainders, with_rest: bool) -> int:
    """Bytes of 8 rows of a job with or without remainders."""
    plane = 8 * PLANE * bits
    return plane * (_all_tiles(k) - with_rest) + (
        _remainder_block(k, bits, found) if with_rest else 0
    )


def _block_bytes(k: int, bits: int) -> int:
    """Of 8 rows; jobs of both kinds are equally far apart."""
    found = remainders(k, bits)
    return max(_block(k, bits, found, found.has(job)) for job in (0, 1))


def block_bytes(m: MatrixShape) -> int:
    return _block_bytes(m.k, m.bits)


def _image(q: np.ndarray, channels: int) -> np.ndarray:
    """Of rows q [rows, k] as many inputs as an image has, [rows, taps, channels], zeros after the last."""
    import numpy as np

    image = np.zeros((len(q), TAPS * channels), q.dtype)
    image[:, : q.shape[1]] = q[:, : TAPS * channels]
    return image.reshape(len(q), TAPS, channels)


def planes(image: np.ndarray, bits: int, tiles: int) -> np.ndarray:
    """Of rows [rows, taps, channels] the first tiles, as uint8 [bytes]."""
    import numpy as np

    rows, _, channels = image.shape
    stored = np.full((rows, TAPS, tiles * CHANNELS), 1 << (bits - 1), np.uint8)
    there = min(channels, tiles * CHANNELS)
    stored[:, :, :there] = image[:, :, :there].astype(np.int16) + (1 << (bits - 1))
    of_rows = stored.reshape(rows, 3, 3, tiles, CHANNELS).transpose(0, 3, 2, 1, 4)
    of_tiles = of_rows.reshape(rows, tiles, -1)
    planes = np.zeros((rows, tiles, bits, 8 * PLANE), np.uint8)
    for bit in range(bits):
        planes[:, :, bit, : TAPS * CHANNELS] = of_tiles >> bit & 1
    return np.packbits(planes, axis=3, bitorder="little").reshape(-1)


def _remainder_blocks(remainder: np.ndarray, nibbles: bool) -> np.ndarray:
    """Of rows int8 [rows, inputs], as uint8 [bytes]."""
    import numpy as np

    form = format_of(4 if nibbles else 8)
    return np.pad(form.pack(remainder, form.inputs), ((0, 0), (0, APART))).reshape(-1)


def pack(w: StoredRows) -> np.ndarray:
    """Per job its rows, then their remainders, if they have any.

    Per row, tile of 28 channels and bit there is a plane, whose bit 28 (3 y + x) + c is of input C (3 x + y) + c.  In a
    remainder of channels, 4 of the first tap are followed by those of the next taps, and then by the next 4; in
    nibbles, all 8 of the first tap by those of the next taps."""
    import numpy as np

    rows, k = w.q.shape
    bits, found, tiles = w.format.bits, remainders(k, w.format.bits), _all_tiles(k)
    nibbles = _nibbles(k, bits, found)
    channels = CHANNELS * (tiles - 1) if found is Remainders.ALL else _channels(k)
    jobs = []
    for first in range(0, rows, ROWS):
        q = w.q[first : first + ROWS]
        image, with_rest = _image(q, channels), found.has(first // ROWS)
        job = planes(image, bits, tiles - with_rest)
        if found is Remainders.ALL:
            job = np.concatenate([job, _remainder_blocks(q[:, TAPS * channels :], nibbles)])
        elif with_rest:
            last = image[:, :, CHANNELS * (tiles - 1) :].reshape(len(q), TAPS, -1, WORD)
            if not nibbles:
                last = last.transpose(0, 2, 1, 3)
            job = np.concatenate([job, _remainder_blocks(last.reshape(len(q), -1), nibbles)])
        jobs.append(np.pad(job, (0, len(q) // 8 * _block_bytes(k, bits) - len(job))))
    return dense.with_multipliers(np.concatenate(jobs), w)


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    """The image's columns are 3 pixels high; high bytes are 3 columns after low ones, 4 with a remainder between."""
    return k, 4 * 3 * CHANNELS * (k // TILE) if remainders(k, bits) is Remainders.ALL else PAD


def cycles(spec: MatrixSpec, tokens: int) -> int:
    found, blocks = remainders(spec.k, spec.bits), -(-spec.rows // BLOCK)
    takes = _cycles_with_remainders(
        spec.k, spec.bits, found, _rows_with_remainder(spec.rows, found) / blocks
    )
    return START + math.ceil(tokens * blocks * takes)


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Multipliers and the sums of 4 pixels of JOBS jobs.  With remainders: sums of 5 pixels, a job's remainders and
    their sums, and the next job's remainders where two jobs in a row have some."""
    found = remainders(shape.k, shape.bits)
    if found is Remainders.NONE:
        return JOBS * ROWS * (4 * 4 + 2)
    at_once = 2 if found is Remainders.ALL else 1
    tiles = at_once * (ROWS // 8) * _remainder_block(shape.k, shape.bits, found)
    return JOBS * ROWS * (4 * 5 + 2) + 4 * ROWS + tiles


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Blocks of rows, tiles of channels, their planes, and words of remainders; jobs are what has to be written.

    Where every other job has remainders, the cores have the engine's time for the others as well: of a layer of
    SmolLM2's shape a third of what the remainders would take is seen."""
    found, rows = remainders(shape.k, shape.bits), -(-shape.rows // BLOCK)
    jobs, with_rest = -(-shape.rows // ROWS), _rows_with_remainder(shape.rows, found)
    if tokens == 1 and found is Remainders.NONE:
        jobs = jobs_of_one(shape.rows)
    whole = tokens * (rows * _all_tiles(shape.k) - with_rest)
    seen = (
        tokens * with_rest * _words(shape.k, found) / (3 if found is Remainders.EVERY_OTHER else 1)
    )
    return {
        "calls": 1, jobs_name(tokens): tokens * jobs, "rows": tokens * rows, "tiles": whole,
        "planes": whole * shape.bits, "remainders": seen,
    }  # fmt: skip


ENGINE = replace(
    dense.ENGINE,
    name="neureka_3x3",
    mode="3x3",
    store=Store("bit planes of 252", 8, block_bytes, pack, dense.trailer_bytes),
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    features=features,
    table=IMAGE + 8,
    remainders=remainders,
    any_pitch=False,  # low and high bytes are one image
    sums=lambda tokens: False,
    products=False,
)
