"""N-EUREKA in 3x3 mode: time and storage of weights are proportional to their bits.

A vector of 9 C inputs is an image of 3 by 3 pixels with C channels, column after column, with the low bytes left of the
high bytes.  One 3x3 convolution computes the sums of both.  They are in one row of results, because on GVSoC every row
but the last takes the time of 6 pixels.  A plane of 32 bytes holds one bit of 28 channels of a row.  A job is for one
token.  Everything else is as in neureka_1x1.py.

A tile of 28 channels (252 inputs) takes its full time even if it is not full.  So the engine often multiplies only full
tiles, and the cores multiply the remainder of each row at the same time.  They read its weights with 4 or 8 bits in
blocks of 8 rows (storage/blocks.py), which are copied into L1 job by job.  If few inputs remain, the cores do them for
all rows, and the remainder follows the image.  If more remain, the cores have time for every other job only.  Then the
engine does all inputs of the other jobs, so the image has more channels, and its last channels are the remainder.

Cycles measured on GVSoC: 32 rows take 190, 190 and 492 cycles with vectors of 64, 172 and 576 inputs at 4 bits, 126 and
300 at 2 bits with 64 and 576 inputs, and 318 at 8 bits with 64 inputs.
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
CHANNELS = 28  # per tile
PLANE = 32  # bytes per bit of a tile
PAD = 36  # inputs: whole channels and whole words
TILE = TAPS * CHANNELS  # inputs
INPUTS_MAX = 36  # most inputs of a remainder after the image
CHANNELS_MAX = (
    8  # most channels of a remainder within the image: those of a job have to fit into L1
)
APART = 4  # bytes between blocks of remainders, so that neighbours start in different L1 banks
ROWS = 2 * JOB_ROWS  # per job
NIBBLES = 4  # most bits of remainders that are stored as nibbles, 8 inputs per word
# Cycles of eight cores for 32 rows: remainders, per 4 inputs of them, and rescaling and gating the sums.
REMAINDER, REMAINDER_WORD, FINISH = 90, 14, 200


def _takes(tiles: int, bits: int) -> int:
    """Return the cycles of 32 rows."""
    return tiles * (32 * bits + 27) + 35


def _channels(k: int) -> int:
    """Return the channels of an image of all inputs."""
    return -(-k // PAD) * PAD // TAPS


def _all_tiles(k: int) -> int:
    return -(-_channels(k) // CHANNELS)


def _words(k: int, found: Remainders) -> int:
    """Return the words of inputs in a row's remainder."""
    inputs = (
        k % TILE
        if found is Remainders.ALL
        else TAPS * (_channels(k) - CHANNELS * (_all_tiles(k) - 1))
    )
    return 0 if found is Remainders.NONE else -(-inputs // WORD)


def _nibbles(k: int, bits: int, found: Remainders) -> bool:
    """Return whether remainders are stored as nibbles; those of 4 channels are not, because 9 words make no pairs."""
    return bits <= NIBBLES and (found is Remainders.ALL or _words(k, found) % 2 == 0)


def _remainder_words(k: int, bits: int, found: Remainders) -> int:
    """Return the stored words of a row's remainder."""
    return -(-_words(k, found) // (2 if _nibbles(k, bits, found) else 1))


def _cycles_with_remainders(k: int, bits: int, found: Remainders, share: float) -> float:
    """Return the cycles of 32 rows if a fraction ``share`` of the jobs have remainders."""
    if found is Remainders.NONE:
        return _takes(_all_tiles(k), bits)
    tiles = _all_tiles(k) - share
    return max(
        tiles * (_takes(1, bits) - _takes(0, bits)) + _takes(0, bits),
        FINISH + share * (REMAINDER + REMAINDER_WORD * _words(k, found)),
    )


def remainders(k: int, bits: int) -> Remainders:
    """Return in which jobs the cores multiply remainders: only if that saves more than 5 % of the cycles."""
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
    """Return the blocks of 32 rows in jobs with remainders."""
    blocks, each = -(-rows // BLOCK), ROWS // BLOCK
    jobs = range(-(-rows // ROWS))
    return sum(min(each, blocks - job * each) for job in jobs if found.has(job))


def _remainder_block(k: int, bits: int, found: Remainders) -> int:
    """Return the bytes of the remainders of 8 rows."""
    return 8 * WORD * _remainder_words(k, bits, found) + APART


def _block(k: int, bits: int, found: Remainders, with_rest: bool) -> int:
    """Return the bytes of 8 rows of a job with or without remainders."""
    plane = 8 * PLANE * bits
    return plane * (_all_tiles(k) - with_rest) + (
        _remainder_block(k, bits, found) if with_rest else 0
    )


def _block_bytes(k: int, bits: int) -> int:
    """Return the bytes of 8 rows: the larger of jobs with and without remainders, so that all jobs are equally long."""
    found = remainders(k, bits)
    return max(_block(k, bits, found, found.has(job)) for job in (0, 1))


def block_bytes(m: MatrixShape) -> int:
    return _block_bytes(m.k, m.bits)


def _image(q: np.ndarray, channels: int) -> np.ndarray:
    """Return the inputs of rows q [rows, k] that belong to the image as [rows, taps, channels], padded with zeros."""
    import numpy as np

    image = np.zeros((len(q), TAPS * channels), q.dtype)
    image[:, : q.shape[1]] = q[:, : TAPS * channels]
    return image.reshape(len(q), TAPS, channels)


def planes(image: np.ndarray, bits: int, tiles: int) -> np.ndarray:
    """Pack the first ``tiles`` tiles of rows [rows, taps, channels] into uint8 [bytes]."""
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
    """Pack remainders int8 [rows, inputs] into uint8 [bytes]."""
    import numpy as np

    form = format_of(4 if nibbles else 8)
    return np.pad(form.pack(remainder, form.inputs), ((0, 0), (0, APART))).reshape(-1)


def pack(w: StoredRows) -> np.ndarray:
    """Pack the rows of each job, followed by their remainders.

    Each row, tile of 28 channels and bit has a plane, whose bit 28 (3 y + x) + c belongs to input C (3 x + y) + c.  A
    remainder of channels has 4 channels of every tap, then the next 4; as nibbles all 8 channels of every tap."""
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
    """Return one group, padded so that high bytes are 3 columns of 3 pixels after low bytes, 4 with a remainder."""
    return k, 4 * 3 * CHANNELS * (k // TILE) if remainders(k, bits) is Remainders.ALL else PAD


def cycles(spec: MatrixSpec, tokens: int) -> int:
    found, blocks = remainders(spec.k, spec.bits), -(-spec.rows // BLOCK)
    takes = _cycles_with_remainders(
        spec.k, spec.bits, found, _rows_with_remainder(spec.rows, found) / blocks
    )
    return START + math.ceil(tokens * blocks * takes)


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Return the bytes of L1 for multipliers and sums of 4 pixels of JOBS jobs.

    With remainders: sums of 5 pixels, and remainders and their sums of a job, and remainders of the next one."""
    found = remainders(shape.k, shape.bits)
    if found is Remainders.NONE:
        return JOBS * ROWS * (4 * 4 + 2)
    at_once = 2 if found is Remainders.ALL else 1
    tiles = at_once * (ROWS // 8) * _remainder_block(shape.k, shape.bits, found)
    return JOBS * ROWS * (4 * 5 + 2) + 4 * ROWS + tiles


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Return the features of a product: jobs, blocks of rows, tiles of channels, planes, and words of remainders.

    If only every other job has remainders, most of their time is hidden: a third counts (measured with SmolLM2)."""
    found, rows = remainders(shape.k, shape.bits), -(-shape.rows // BLOCK)
    jobs, with_rest = -(-shape.rows // ROWS), _rows_with_remainder(shape.rows, found)
    if tokens == 1 and found is Remainders.NONE:
        jobs = jobs_of_one(shape.rows)
    whole = tokens * (rows * _all_tiles(shape.k) - with_rest)
    counted = (
        tokens * with_rest * _words(shape.k, found) / (3 if found is Remainders.EVERY_OTHER else 1)
    )
    return {
        "calls": 1, jobs_name(tokens): tokens * jobs, "rows": tokens * rows, "tiles": whole,
        "planes": whole * shape.bits, "remainders": counted,
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
