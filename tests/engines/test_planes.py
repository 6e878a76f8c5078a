"""How N-EUREKA's engines store matrices: bit planes, remainders and second layouts, read as the chip does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shrinkc.codegen.pack import stored_rows
from shrinkc.engines import ENGINES, MatrixSpec, Remainders
from shrinkc.ir.linear import QLinear
from shrinkc.quantize.weights import Output, quantize_matrix
from shrinkc.storage import Offsets

NAMES = ("neureka_1x1", "neureka_3x3")
OVERREAD = 32  # bytes that the chip reads past the last weight


def spec(**fields: Any) -> MatrixSpec:
    return MatrixSpec(**{
        "name": "m", "rows": 64, "k": 64, "bits": 8, "group_size": None, "offsets": Offsets.NONE, **fields,
    })  # fmt: skip


def matrix(n: int, k: int, bits: int, engine: str) -> QLinear:
    """A matrix of every integer of its width."""
    rng = np.random.default_rng(n + k)
    w = rng.standard_normal((n, k)).astype(np.float32)
    made = quantize_matrix("m", w, Output(2.0**-34, 16), bits=bits, engine=engine)
    low, high = made.format.low, made.format.high
    made.q[:] = rng.integers(low, high + 1, (n, k))
    made.q.reshape(-1)[: n * k // 2] = np.resize(np.arange(low, high + 1), n * k // 2)
    return made


def dense_weight(data: bytes, row: int, i: int, k: int) -> int:
    """1x1 mode: 32 bytes per output and 32 inputs; word m has inputs 4 m .. 4 m + 3, of which nibble b
    has bit b."""
    at = (row * -(-k // 32) + i // 32) * 32 + i % 32 // 4 * 4
    word = int.from_bytes(data[at : at + 4], "little")
    return sum((word >> (4 * b + i % 4) & 1) << b for b in range(8))


def remainder_weight(data: bytes, at: int, row: int, i: int, words: int, nibbles: bool) -> int:
    """Behind the rows of its job, where remainders begin ``at``: blocks of 8 rows, a word of each row in turn, and
    4 bytes between blocks.  A word has 4 inputs, or 8 in nibbles, the first 4 in the lower ones.  Input i of those that
    are there; ``row`` is one of the job."""
    block = at + row // 8 * (32 * words + 4)
    word, i = divmod(i, 8 if nibbles else 4)
    byte = int(np.frombuffer(data, np.int8)[block + word * 32 + row % 8 * 4 + i % 4])
    if not nibbles:
        return byte
    return byte >> 4 if i >= 4 else (byte % 16 ^ 8) - 8


def folded_weight(
    data: bytes, row: int, i: int, k: int, bits: int, tiles: int | None = None
) -> int:
    """3x3 mode: per output, 28 channels and bit 32 bytes, whose bit 28 (3 y + x) + c is of channel c; input
    i is channel i % C of tap 3 x + y = i / C, where all have C channels.  Of rows of fewer ``tiles`` those that are
    there."""
    channels = -(-k // 36) * 4
    tiles = tiles or -(-channels // 28)
    tap, channel = divmod(i, channels)
    assert channel < 28 * tiles
    tile = row * tiles + channel // 28
    planes = [data[(tile * bits + b) * 32 : (tile * bits + b + 1) * 32] for b in range(bits)]
    at = 28 * (tap % 3 * 3 + tap // 3) + channel % 28
    return sum((plane[at // 8] >> at % 8 & 1) << b for b, plane in enumerate(planes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize(
    ("n", "k"), [(8, 32), (13, 1), (33, 35), (9, 36), (64, 96), (3, 330), (5, 400)]
)
def test_the_chip_reads_every_weight(name: str, bits: int, n: int, k: int) -> None:
    """All of them, and behind the last a multiplier per row, or what is read ahead."""
    w = matrix(n, k, bits, name)
    engine = ENGINES[name]
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    assert (w.group, w.pad) == (shape.group, shape.pad or shape.format.inputs)
    zero = 128 if name == "neureka_1x1" else 1 << (bits - 1)
    rows = -(-n // 8) * 8
    padded = -(-k // 36) * 36 if name == "neureka_3x3" else -(-k // 32) * 32
    for row in range(rows):
        for i in range(padded):
            got = (
                dense_weight(data, row, i, k)
                if name == "neureka_1x1"
                else folded_weight(data, row, i, k, bits)
            ) - zero
            assert got == (int(w.q[row, i]) if row < n and i < k else 0), (row, i)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes >= beside + OVERREAD


@pytest.mark.parametrize(
    ("bits", "n", "k", "tail"),
    [(4, 13, 508, 4), (8, 24, 281, 29), (3, 3, 2048, 32), (4, 9, 1536, 24), (2, 137, 1024, 16)],
)
def test_a_tail_behind_the_image_lies_where_the_cores_read_it(
    bits: int, n: int, k: int, tail: int
) -> None:
    """The engine has whole tiles of 252, and every weight is there once; a job's remainders are behind its rows."""
    w = matrix(n, k, bits, "neureka_3x3")
    engine = ENGINES["neureka_3x3"]
    assert engine.remainders(k, bits) is Remainders.ALL
    assert tail == k % 252
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    nibbles = bits <= 4
    rows, words = -(-n // 8) * 8, -(-tail // (8 if nibbles else 4))
    inputs = words * (8 if nibbles else 4)
    row_bytes = 32 * bits * (k // 252)
    assert shape.block_bytes == 8 * row_bytes + 32 * words + 4
    zero = 1 << (bits - 1)
    for row in range(rows):
        first = row // 128 * 128
        job, of_job = data[first // 8 * shape.block_bytes :], min(128, rows - first)
        at = row - first
        got = [folded_weight(job, at, i, k - tail, bits) - zero for i in range(k - tail)]
        got += [
            remainder_weight(job, of_job * row_bytes, at, i, words, nibbles) for i in range(inputs)
        ]
        want = w.q[row].tolist() if row < n else [0] * k
        assert got == want + [0] * (inputs - tail)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes == beside + max(2 * rows, OVERREAD)


@pytest.mark.parametrize(
    ("bits", "n", "k"), [(4, 13, 576), (4, 261, 570), (8, 131, 289), (2, 130, 828), (4, 9, 288)]
)
def test_every_other_job_has_tails_of_the_last_channels(bits: int, n: int, k: int) -> None:
    """The engine has whole tiles of them, and all of the others; the cores have 4 of the first tap, then those of the
    next ones, or, in nibbles, 8."""
    w = matrix(n, k, bits, "neureka_3x3")
    engine = ENGINES["neureka_3x3"]
    assert engine.remainders(k, bits) is Remainders.EVERY_OTHER
    assert engine.cut(k, None, bits) == (k, 36)
    data = engine.store.pack(stored_rows(w, None, engine.store.rows)).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    rows, channels, zero = -(-n // 8) * 8, -(-k // 36) * 4, 1 << (bits - 1)
    tiles = -(-channels // 28)
    last = 28 * (tiles - 1)
    nibbles = bits <= 4 and channels - last == 8
    words, short = 9 * (1 if nibbles else (channels - last) // 4), 32 * bits * (tiles - 1)
    assert shape.block_bytes == max(8 * 32 * bits * tiles, 8 * short + 32 * words + 4)
    for row in range(rows):
        first = row // 128 * 128
        job, of_job, at = (
            data[first // 8 * shape.block_bytes :],
            min(128, rows - first),
            row - first,
        )
        want = [*(w.q[row].tolist() if row < n else [0] * k), *[0] * (9 * channels - k)]
        for i in range(9 * channels):
            tap, channel = divmod(i, channels)
            if first % 256:
                got = folded_weight(job, at, i, k, bits) - zero
            elif channel < last:
                got = folded_weight(job, at, i, k, bits, tiles - 1) - zero
            else:
                of_tap, group = (8, 0) if nibbles else (4, (channel - last) // 4)
                place = of_tap * (9 * group + tap) + (channel - last) % of_tap
                got = remainder_weight(job, of_job * short, at, place, words, nibbles)
            assert got == want[i], (row, i)
    beside = shape.blocks * shape.block_bytes
    assert np.frombuffer(data[beside : beside + 2 * n], "<u2").tolist() == w.r.tolist()
    assert len(data) == shape.bytes == beside + max(2 * rows, OVERREAD)


def test_a_tail_is_left_to_the_cores_where_they_have_the_time() -> None:
    """Those of 252 and 504 inputs have none, long ones would take longer than a tile, as would some of few bits; and
    high bytes begin where a row of the image does, the fourth from low ones where all have remainders."""
    engine = ENGINES["neureka_3x3"]
    assert not any(
        engine.remainders(k, bits) for k in (64, 252, 504, 600, 4096) for bits in (2, 3, 4, 5, 6, 8)
    )
    assert engine.remainders(281, 8) is Remainders.ALL
    assert engine.remainders(281, 2) is engine.remainders(576, 2) is Remainders.NONE
    assert engine.remainders(576, 4) is Remainders.EVERY_OTHER
    for k in range(1, 4000):
        for bits in (2, 3, 4, 5, 6, 8):
            _, pad = engine.cut(k, None, bits)
            if engine.remainders(k, bits) is Remainders.ALL:
                assert k <= pad == 4 * 3 * (k // 252 * 28)
            else:
                assert pad == 36


def copied_sums(
    data: bytes, q: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int, taps: int
) -> np.ndarray:
    """The chip's sums with a second layout: int64 [rows, low and high], job by job as a 3x3 convolution over an image
    that has two vectors and zeros.

    Low bytes are its first column or pixel, high ones the third behind it; two columns of zeros are left of them, and
    of single pixels two rows above, but none where a vector takes all taps."""
    rows, k = q.shape
    channels = -(-k // (4 * taps)) * 4
    tiles, groups, side = -(-channels // 28), 9 // taps, 0 if taps == 9 else 2
    half = 128 if taps == 1 else 64
    image = np.zeros((5, 10, 28 * tiles), np.int64)  # [y, x, channel]
    for at, vector in ((0, low), (3, high)):
        padded = np.zeros(taps * channels, np.int64)
        padded[:k] = vector
        for tap in range(taps):  # columns of three
            x, y = divmod(tap, 3)
            part = padded[tap * channels : (tap + 1) * channels]
            image[y + (2 if taps == 1 else 0), side + at + x, :channels] = part
    found, at, row = np.zeros((rows, 2), np.int64), 0, 0
    halves = -(-rows // half)
    whole = halves // 2 - 1 if halves > 3 else 0
    sizes = [2 * half] * whole + [half] * (halves - 2 * whole - 1) + [rows - half * (halves - 1)]
    for job, count in enumerate(sizes):
        n = -(-count // groups)
        size = n * tiles * bits * 32
        words = np.frombuffer(data[at : at + size], np.uint8).reshape(n, tiles, bits, 32)
        planes = np.unpackbits(words, axis=3, bitorder="little")[..., : 9 * 28].astype(np.int64)
        w = sum(planes[:, :, b] << b for b in range(bits)) - (1 << (bits - 1))
        w = w.reshape(n, tiles, 3, 3, 28).transpose(0, 2, 3, 1, 4).reshape(n, 3, 3, -1)
        for r in range(count):
            group, output = divmod(r, n)
            x, y = (group // 3, group % 3) if taps == 1 else (group, 0)
            for byte in (0, 1):
                seen = image[y : y + 3, x + 3 * byte : x + 3 * byte + 3]
                found[row + r, byte] = (seen * w[output]).sum()
        at += 2 * (-(-half // groups)) * tiles * bits * 32 if job < whole else size
        row += count
    assert len(data) == at + OVERREAD
    return found


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize(
    ("n", "k"),
    [
        (8, 64),
        (77, 60),
        (213, 64),
        (333, 61),
        (96, 96),
        (640, 100),
        (300, 33),
        (72, 1100),
        (264, 1600),
    ],
)
def test_the_second_layout_gives_the_sums_of_both_bytes(n: int, k: int, bits: int) -> None:
    """Of all rows, from the second layout, which is stored behind the 1x1 layout."""
    w = matrix(n, k, bits, "neureka_both")
    engine, first = ENGINES["neureka_both"], ENGINES["neureka_1x1"]
    rows = stored_rows(w, None, engine.store.rows)
    data, before = engine.store.pack(rows).tobytes(), first.store.pack(rows).tobytes()
    shape = engine.shape(spec(rows=n, k=k, bits=bits))
    assert data.startswith(before) and len(data) == shape.bytes
    taps = engine.taps(k, bits)
    assert 4 * shape.words == w.pad == (3 if taps == 1 else 9) * (-(-k // (4 * taps)) * 4)
    rng = np.random.default_rng(k)
    low, high = rng.integers(-128, 128, (2, k))
    got = copied_sums(data[-(-len(before) // 32) * 32 :], rows.q, low, high, bits, taps)
    assert np.array_equal(got, rows.q.astype(np.int64) @ np.stack([low, high], 1))


def test_a_copy_is_no_slower() -> None:
    reason = "takes 470 cycles for one token with the second layout, 455 without"
    assert ENGINES["neureka_both"].refusal(spec(rows=8, k=32)) == reason


def test_the_weights_of_3x3_take_space_by_their_bits() -> None:
    sizes = [ENGINES["neureka_3x3"].shape(spec(k=252, bits=b)).block_bytes for b in (8, 4, 2)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2] == 8 * 8 * 32
    dense = {ENGINES["neureka_1x1"].shape(spec(bits=b)).block_bytes for b in (8, 4, 2)}
    assert dense == {8 * 64}


@pytest.mark.parametrize("name", NAMES)
def test_what_it_does_not_run(name: str) -> None:
    engine = ENGINES[name]
    assert engine.refusal(spec()) is engine.refusal(spec(embedding=True)) is None
    for fields in (
        {"group_size": 32},
        {"offsets": Offsets.WIDE},
        {"group_size": 16, "offsets": Offsets.WIDE},
    ):
        assert "has scales per group" in str(engine.refusal(spec(**fields)))
    assert "has an adapter" in str(engine.refusal(spec(rank=2)))


def test_vectors_take_all_numbers_of_taps() -> None:
    spread = ENGINES["neureka_both"].taps
    assert [spread(60, 8), spread(102, 8), spread(96, 4), spread(1600, 2)] == [3, 1, 1, 9]
