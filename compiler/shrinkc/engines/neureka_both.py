"""N-EUREKA with two layouts of a matrix: that of neureka_1x1.py for several tokens, and a second one for one token.

The 1x1 mode takes its time for 36 pixels however few there are: for one token a block of 32 inputs takes 55 cycles.
The second layout uses the 3x3 mode, whose time goes by bits and output channels.  An input vector takes ``taps`` of
its 9 taps (9, 3 or 1), and groups of rows share the others.  The image is one vector's column (or pixel) between zeros,
so it meets every tap in another pixel of the results, where the rows of that tap's group add up.  Low and high bytes
are two columns three apart, so one convolution has all sums among its results.

Jobs are of 128 rows, with one pixel of 256; the last two or three have half as many.  Between low and high bytes there
are two columns of zeros; the engine itself pads left, right, above and below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shrinkc.engines import neureka_1x1 as dense
from shrinkc.engines.engine import Features, MatrixSpec
from shrinkc.engines.neureka_1x1 import AHEAD, BLOCK, START
from shrinkc.engines.neureka_3x3 import CHANNELS, PLANE, TAPS, planes
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

TAP_COUNTS = (9, 3, 1)  # taps that a vector takes
HALF_ROWS = 64  # of half a job; where a vector takes 1 tap twice as many
_WORD = 32  # bytes that the engine reads at once: where the second layout begins


def _channels(k: int, taps: int) -> int:
    """Of a pixel: whole words of inputs."""
    return -(-k // (4 * taps)) * 4


def _tiles(k: int, taps: int) -> int:
    return -(-_channels(k, taps) // CHANNELS)


def _half(taps: int) -> int:
    """Rows of half a job."""
    return HALF_ROWS * (2 if taps == 1 else 1)


def _outputs(rows: int, taps: int) -> int:
    """Output channels for so many rows."""
    return -(-rows // (TAPS // taps))


def jobs(rows: int, taps: int) -> list[int]:
    """Rows of every job: whole ones, then halves, of which the last one may have fewer."""
    half = _half(taps)
    halves = -(-rows // half)
    whole = halves // 2 - 1 if halves > 3 else 0
    return [2 * half] * whole + [half] * (halves - 2 * whole - 1) + [rows - half * (halves - 1)]


def _job(rows: int, k: int, bits: int, taps: int) -> int:
    """Cycles of a job."""
    n, tiles = _outputs(rows, taps), _tiles(k, taps)
    return tiles * (n * bits + 27 * -(-n // BLOCK)) + (50 if taps == 1 else 35) * -(-n // BLOCK)


def _of_one(rows: int, k: int, bits: int, taps: int) -> int:
    return sum(_job(job, k, bits, taps) for job in jobs(rows, taps))


def best_taps(k: int, bits: int) -> int:
    """Taps that a vector of k inputs takes: those with which rows take the fewest cycles."""
    return min(TAP_COUNTS, key=lambda taps: _of_one(6 * HALF_ROWS, k, bits, taps))


def _rows_bytes(rows: int, k: int, bits: int, taps: int) -> int:
    """Of a job that has no more rows than half a one; a whole one takes no more than two halves."""
    return _outputs(rows, taps) * _tiles(k, taps) * bits * PLANE


def _second_bytes(rows: int, k: int, bits: int) -> int:
    taps = best_taps(k, bits)
    half, last = _half(taps), jobs(rows, taps)[-1]
    before = -(-rows // half) - 1
    return before * _rows_bytes(half, k, bits, taps) + _rows_bytes(last, k, bits, taps) + AHEAD


def _second_at(m: MatrixShape) -> int:
    """Where the second layout begins: bytes from the matrix's first one."""
    return -(-(m.blocks * dense.block_bytes(m) + dense.trailer_bytes(m)) // _WORD) * _WORD


def trailer_bytes(m: MatrixShape) -> int:
    rows = m.blocks * m.store.rows
    return _second_at(m) + _second_bytes(rows, m.k, m.bits) - m.blocks * dense.block_bytes(m)


def _second_layout(q: np.ndarray, bits: int) -> np.ndarray:
    """Rows q [rows, k] as uint8 [bytes].

    Row r of a job with n output channels is in group r // n, which has tap 3 (2 - x) + 2 - y of the results' pixel
    3 x + y, or columns 2 - x of taps."""
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
    return np.concatenate([*parts, np.zeros(AHEAD, np.uint8)])


def pack(w: StoredRows) -> np.ndarray:
    """As neureka_1x1.py has it, and then the second layout."""
    import numpy as np

    first = dense.pack(w)
    first = np.pad(first, (0, -len(first) % _WORD))
    return np.concatenate([first, _second_layout(w.q, w.format.bits)])


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    """High bytes come three columns (with 1 tap three pixels) after low ones."""
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
    """Of one token output channels times tiles, and their planes; of several what neureka_1x1.py has."""
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
