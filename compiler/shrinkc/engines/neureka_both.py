"""N-EUREKA with two layouts of a matrix: that of neureka_1x1.py for several tokens, and a second one for one token.

In 1x1 mode a block takes the time of 36 pixels even for one token: 55 cycles per block of 32 inputs.  The second layout
uses the 3x3 mode, whose time depends on bits and output channels.  An input vector uses ``taps`` of the filter's 9 taps
(9, 3 or 1); the other taps serve further groups of rows.  The image is the vector's column (or pixel) between zeros,
so every tap multiplies it for another pixel of the result, which gets the sums of that tap's group of rows.  Low and
high bytes are two columns, three apart, so one convolution computes all sums.

A job has 128 rows, or 256 with 1 tap; the last two or three have half of that.  There are two columns of zeros between
low and high bytes; the engine itself pads the image on all sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shrinkc.engines import neureka_1x1 as dense
from shrinkc.engines.engine import Features, MatrixSpec
from shrinkc.engines.neureka_1x1 import BLOCK, OVERREAD, START
from shrinkc.engines.neureka_3x3 import CHANNELS, PLANE, TAPS, planes
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

TAP_COUNTS = (9, 3, 1)  # taps that a vector can use
HALF_ROWS = 64  # rows of half a job, doubled with 1 tap
_WORD = 32  # bytes per read of the engine; alignment of the second layout


def _channels(k: int, taps: int) -> int:
    """Return the channels per pixel, a multiple of 4."""
    return -(-k // (4 * taps)) * 4


def _tiles(k: int, taps: int) -> int:
    return -(-_channels(k, taps) // CHANNELS)


def _half(taps: int) -> int:
    """Return the rows of half a job."""
    return HALF_ROWS * (2 if taps == 1 else 1)


def _outputs(rows: int, taps: int) -> int:
    """Return the output channels for ``rows`` rows."""
    return -(-rows // (TAPS // taps))


def jobs(rows: int, taps: int) -> list[int]:
    """Return the rows of every job: whole jobs, then half jobs.  The last half job can have fewer rows."""
    half = _half(taps)
    halves = -(-rows // half)
    whole = halves // 2 - 1 if halves > 3 else 0
    return [2 * half] * whole + [half] * (halves - 2 * whole - 1) + [rows - half * (halves - 1)]


def _job(rows: int, k: int, bits: int, taps: int) -> int:
    """Return the cycles of a job."""
    n, tiles = _outputs(rows, taps), _tiles(k, taps)
    return tiles * (n * bits + 27 * -(-n // BLOCK)) + (50 if taps == 1 else 35) * -(-n // BLOCK)


def _of_one(rows: int, k: int, bits: int, taps: int) -> int:
    return sum(_job(job, k, bits, taps) for job in jobs(rows, taps))


def best_taps(k: int, bits: int) -> int:
    """Return the number of taps with which a vector of k inputs takes the fewest cycles."""
    return min(TAP_COUNTS, key=lambda taps: _of_one(6 * HALF_ROWS, k, bits, taps))


def _rows_bytes(rows: int, k: int, bits: int, taps: int) -> int:
    """Return the bytes of up to half a job; a whole job takes at most twice as many."""
    return _outputs(rows, taps) * _tiles(k, taps) * bits * PLANE


def _second_bytes(rows: int, k: int, bits: int) -> int:
    taps = best_taps(k, bits)
    half, last = _half(taps), jobs(rows, taps)[-1]
    before = -(-rows // half) - 1
    return before * _rows_bytes(half, k, bits, taps) + _rows_bytes(last, k, bits, taps) + OVERREAD


def _second_at(m: MatrixShape) -> int:
    """Return the byte offset of the second layout within the matrix."""
    return -(-(m.blocks * dense.block_bytes(m) + dense.trailer_bytes(m)) // _WORD) * _WORD


def trailer_bytes(m: MatrixShape) -> int:
    rows = m.blocks * m.store.rows
    return _second_at(m) + _second_bytes(rows, m.k, m.bits) - m.blocks * dense.block_bytes(m)


def _second_layout(q: np.ndarray, bits: int) -> np.ndarray:
    """Pack rows q [rows, k] into uint8 [bytes].

    Row r of a job with n output channels is in group r // n.  The group of result pixel 3 x + y uses tap
    3 (2 - x) + 2 - y (1 tap per vector); with 3 taps, the group of column x uses tap column 2 - x."""
    import numpy as np

    rows, k = q.shape
    taps = best_taps(k, bits)
    groups, channels = TAPS // taps, _channels(k, taps)
    half, first, parts = _half(taps), 0, []
    for count in jobs(rows, taps):
        n = _outputs(count, taps)
        padded = np.zeros((groups * n, taps * channels), q.dtype)
        padded[:count, :k] = q[first : first + count]
        # [group, output channel, tap of the vector, channel] -> [output channel, tap, channel]
        image = padded.reshape(groups, n, taps, channels)[::-1].transpose(1, 0, 2, 3)
        part = planes(image.reshape(n, TAPS, channels), bits, _tiles(k, taps))
        first += count
        room = 2 * _rows_bytes(half, k, bits, taps) if count > half else len(part)
        parts.append(np.pad(part, (0, room - len(part))))
    return np.concatenate([*parts, np.zeros(OVERREAD, np.uint8)])


def pack(w: StoredRows) -> np.ndarray:
    """Pack the layout of neureka_1x1.py, followed by the second layout."""
    import numpy as np

    first = dense.pack(w)
    first = np.pad(first, (0, -len(first) % _WORD))
    return np.concatenate([first, _second_layout(w.q, w.format.bits)])


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    """Return one group, padded so that high bytes are three columns (with 1 tap three pixels) after low bytes."""
    taps = best_taps(k, bits)
    return k, 3 * _channels(k, taps) * (1 if taps == 1 else 3)


def legal(spec: MatrixSpec) -> str | None:
    if (reason := dense.legal(spec)) is not None:
        return reason
    once, before = cycles(spec, 1), dense.cycles(spec, 1)
    if once >= before:
        return f"takes {once} cycles for one token with the second layout, {before} without"
    return None


def cycles(spec: MatrixSpec, tokens: int) -> int:
    if tokens > 1:
        return dense.cycles(spec, tokens)
    return START + _of_one(spec.rows, spec.k, spec.bits, best_taps(spec.k, spec.bits))


def scratch(shape: MatrixShape, tokens: int) -> int:
    return max(dense.scratch(shape, tokens), dense.scratch(shape, 1))


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Return blocks of outputs, tiles and planes for one token; for several the features of neureka_1x1.py."""
    if tokens > 1:
        return dense.features(shape, tokens, tiles)
    taps = best_taps(shape.k, shape.bits)
    rows = jobs(shape.rows, taps)
    outputs = [_outputs(job, taps) for job in rows]
    blocks, of_k = sum(-(-n // BLOCK) for n in outputs), _tiles(shape.k, taps)
    return {
        "calls": 1, "jobs": len(rows), "outputs": blocks, "tiles": blocks * of_k,
        "planes": math.ceil(sum(outputs) * of_k * shape.bits / BLOCK),
    }  # fmt: skip


ENGINE = replace(
    dense.ENGINE,
    name="neureka_both",
    mode="both",
    store=Store("bit planes of 32, and of 252", 8, dense.block_bytes, pack, trailer_bytes, _WORD),
    legal=legal,
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    features=features,
    table=dense.IMAGE + 32,
    second_layout=True,
    taps=best_taps,
    products=False,
    costs_as=dense.ENGINE.name,
)
