"""pack_matrix read again by a reader written from the format comment in sc_matrix.h alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from shrinkc.codegen.pack import gate_up_order, pack_matrix
from shrinkc.ir.linear import LowRank, QLinear
from shrinkc.storage import MatrixShape, Offsets

ROWS = 8
ZEROS, WIDE = 1, 2  # of asymmetric ones
EDGE_K = (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 65, 100, 172, 173)
FORMATS = [
    (bits, grouped, asym)
    for bits in (8, 6, 5, 4, 3, 2)
    for grouped, asym in ((0, 0), (1, 0), (1, ZEROS), (1, WIDE))
]


UNITS = {
    8: (4, 1),
    6: (16, 3),
    5: (32, 5),
    4: (8, 1),
    3: (32, 3),
    2: (16, 1),
}  # inputs and words of a row


def lane_values(lane: list[int], bits: int) -> list[int]:
    """What the bytes of one lane hold, as the head of each file of ``storage`` says."""
    if bits == 3:
        out = [v for byte in lane for v in (byte >> 5, byte >> 2 & 7)]
        return [*out, (lane[0] & 3) << 1 | (lane[2] >> 1 & 1), (lane[1] & 3) << 1 | (lane[2] & 1)]
    if bits == 5:
        a, b, c, d, e = lane
        mixed = (a << 5 ^ b << 3, b << 5 ^ c << 3 ^ d << 4, e << 5 ^ d << 3)
        return [v >> 3 & 31 for v in (*lane, *mixed)]
    if bits == 6:
        a, b, c = lane
        return [v >> 2 & 63 for v in (*lane, a << 6 ^ b << 4 ^ c << 2)]
    return [lane[0] >> at & ((1 << bits) - 1) for at in range(0, 8, bits)]


@dataclass
class Read:
    """What a block stream says: q [rows, k], d and b [rows, groups], r [rows], and what was left."""

    q: np.ndarray
    d: np.ndarray
    b: np.ndarray
    r: np.ndarray
    padding: list[int]
    end: int


def read(
    data: bytes,
    rows: int,
    k: int,
    group: int,
    bits: int,
    grouped: int,
    asym: int,
    at: int,
    pad: int = 0,
) -> Read:
    """One block of 8 rows, byte by byte, from ``at`` on.

    uint16 r[8]; per group: [uint8 d[8] if grouped] [int16 b[8], or nibbles z[8] with b = d * z, if asymmetric]
    weights, of which every row has a word in turn.  All integers are signed.
    """
    groups = (k + group - 1) // group
    out = Read(np.zeros((ROWS, k), int), np.ones((ROWS, groups), int), np.zeros((ROWS, groups), int),
               np.zeros(ROWS, int), [], 0)  # fmt: skip

    def signed(v: int, width: int) -> int:
        return v - (1 << width) if v >> (width - 1) else v

    for row in range(ROWS):
        out.r[row] = data[at] | data[at + 1] << 8
        at += 2
    for g in range(groups):
        if grouped:
            for row in range(ROWS):
                out.d[row, g] = data[at + row]
            at += ROWS
        if asym == ZEROS:
            for row in range(ROWS):
                out.b[row, g] = out.d[row, g] * signed(data[at + row // 2] >> 4 * (row % 2) & 15, 4)
            at += ROWS // 2
        elif asym:
            for row in range(ROWS):
                out.b[row, g] = signed(data[at + 2 * row] | data[at + 2 * row + 1] << 8, 16)
            at += 2 * ROWS
        elements = min(group, k - g * group)
        per_unit, words = UNITS[bits]
        pad = pad or per_unit
        for first in range(0, -(-elements // pad) * pad, per_unit):
            for row in range(ROWS):
                for j in range(4):
                    lane = [data[at + (word * ROWS + row) * 4 + j] for word in range(words)]
                    for step, value in enumerate(lane_values(lane, bits)):
                        i = first + 4 * step + j
                        if i < elements:
                            out.q[row, g * group + i] = signed(value, bits)
                        else:
                            out.padding.append(value)
            at += words * ROWS * 4
    out.end = at
    return out


def make(
    rng: np.random.Generator,
    n: int,
    k: int,
    group: int,
    bits: int,
    grouped: int,
    asym: int,
    pad: int = 0,
) -> QLinear:
    groups = -(-k // group)
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    low += bits == 8 and not asym
    d = rng.integers(1, 256, (n, groups)).astype(np.uint8) if grouped else None
    b = rng.integers(-32768, 32768, (n, groups)).astype(np.int16) if asym else None
    if asym == ZEROS:
        assert d is not None
        b = (d * rng.integers(-8, 8, (n, groups))).astype(np.int16)
    return QLinear(
        name="w", bits=bits, group_size=group if grouped else None, group=group,
        q=rng.integers(low, high, (n, k)).astype(np.int8), d=d, b=b, zero_points=asym == ZEROS,
        r=rng.integers(0, 65536, n).astype(np.uint16), drop=0, shift=0, cmax=1, frac=0,
        pad=pad or UNITS[bits][0],
        row_scale=np.ones(n),
    )  # fmt: skip


def check(w: QLinear, order: np.ndarray, packed: np.ndarray) -> int:
    """Every integer of w in its place, padding zero; returns how many were compared."""
    grouped, asym = int(w.d is not None), int(w.offsets)
    compared = 0
    assert packed.dtype == np.uint8 and len(packed) == -(-len(order) // ROWS)
    for b, block in enumerate(packed):
        data = block.tobytes()
        main = read(data, ROWS, w.k, w.group, w.bits, grouped, asym, 0, w.pad)
        assert set(main.padding) <= {0}
        parts = [(w, main)]
        if w.low_rank is not None:
            adapter = w.low_rank.b
            parts.append((adapter, read(data, ROWS, adapter.k, adapter.group, 8, 0, 0, main.end)))
        assert parts[-1][1].end == len(data)
        for row in range(ROWS):
            at = b * ROWS + row
            source = int(order[at]) if at < len(order) else -1
            for m, got in parts:
                if source < 0:
                    assert not got.q[row].any() and got.r[row] == 0
                    continue
                np.testing.assert_array_equal(got.q[row], m.q[source])
                assert got.r[row] == m.r[source]
                if m.d is not None:
                    np.testing.assert_array_equal(got.d[row], m.d[source])
                if m.b is not None:
                    np.testing.assert_array_equal(got.b[row], m.b[source])
                compared += m.k + 1
    return compared


@pytest.mark.parametrize(("bits", "grouped", "asym"), FORMATS)
@pytest.mark.parametrize("adapter", [pytest.param(False, marks=pytest.mark.slow), True])
def test_unpacks_to_the_same_integers(bits: int, grouped: int, asym: int, adapter: bool) -> None:
    """Rows 1..17, K around every word and group edge, groups 1..96."""
    rng = np.random.default_rng(bits + 2 * grouped + 4 * asym)
    compared = 0
    for n in range(1, 18):
        for k in EDGE_K:
            group = min(k, int(rng.choice([1, 3, 4, 8, 32, 60, 64, 96])))
            w = make(rng, n, k, group, bits, grouped, asym)
            if adapter:
                rank = int(rng.integers(1, 70))
                b = make(rng, n, rank, min(64, rank), 8, 0, 0)
                w.low_rank = LowRank(make(rng, rank, k, group, 8, 0, 0), b)
            compared += check(w, np.arange(n), pack_matrix(w))
            shape = MatrixShape("w", n, k, bits, group, bool(grouped), Offsets(asym),
                                w.low_rank.a.n if w.low_rank else 0)  # fmt: skip
            assert pack_matrix(w).shape == (shape.blocks, shape.block_bytes)
    assert compared > 10_000


def test_an_adapter_next_to_4_bit_weights_is_padded_to_their_words() -> None:
    """8-bit weights whose groups are stored as multiples of 8 inputs."""
    rng = np.random.default_rng(3)
    for k, group in ((37, 37), (37, 12), (100, 60), (8, 8), (5, 3)):
        a = make(rng, 9, k, group, 8, 0, 0, pad=8)
        assert check(a, np.arange(9), pack_matrix(a)) == 9 * (k + 1)
        shape = MatrixShape("w.a", 9, k, 8, group, False, Offsets.NONE, 0, 8)
        assert pack_matrix(a).shape == (shape.blocks, shape.block_bytes)


def test_example_of_the_comment() -> None:
    """Inputs 0..7 of a row hold 1,2,3,4,5,6,7,-1: bytes 0x51 0x62 0x73 0xf4."""
    w = make(np.random.default_rng(0), 1, 8, 8, 4, 0, 0)
    w.q[0] = [1, 2, 3, 4, 5, 6, 7, -1]
    assert pack_matrix(w)[0, 16:20].tolist() == [0x51, 0x62, 0x73, 0xF4]


def test_examples_of_the_narrow_formats() -> None:
    w = make(np.random.default_rng(0), 1, 16, 16, 2, 0, 0)
    w.q[0] = [1, -1, 0, -2] * 4
    assert pack_matrix(w)[0, 16:20].tolist() == [0x55, 0xFF, 0x00, 0xAA]
    w = make(np.random.default_rng(0), 1, 32, 32, 3, 0, 0)
    w.q[0] = 0
    # byte 0 of a row's three words, which lie 8 rows apart: inputs 0, 4, ... 28
    w.q[0, ::4] = [1, 2, 3, -1, -2, -3, -4, 3]
    lane = pack_matrix(w)[0, [16, 48, 80]].tolist()
    assert lane == [0b001_010_10, 0b011_111_01, 0b110_101_01]


@pytest.mark.parametrize(("bits", "least"), [(8, -128), (4, -8), (3, -4), (2, -2)])
def test_packing_is_injective(bits: int, least: int) -> None:
    """Any single changed integer changes the bytes."""
    rng = np.random.default_rng(1)
    w = make(rng, 9, 21, 8, bits, 1, WIDE)
    base = pack_matrix(w).tobytes()
    for table in (w.q, w.d, w.b, w.r):
        assert table is not None
        for at in np.ndindex(table.shape):
            keep = table[at]
            table[at] = keep - 1 if keep > least else keep + 1
            assert pack_matrix(w).tobytes() != base
            table[at] = keep


@pytest.mark.parametrize("ffn", [1, 2, 3, 4, 5, 7, 8, 9, 86, 172])
def test_gate_up_order(ffn: int) -> None:
    """4 gate rows, 4 up rows, again and again; every row once; padding -1 behind either half."""
    order = gate_up_order(2 * ffn)
    assert len(order) == 8 * -(-ffn // 4)
    for i, row in enumerate(order.tolist()):
        block, r = divmod(i, 8)
        unit = block * 4 + r % 4
        want = -1 if unit >= ffn else unit + (ffn if r >= 4 else 0)
        assert row == want
    w = make(np.random.default_rng(ffn), 2 * ffn, 5, 5, 8, 0, 0)
    assert check(w, order, pack_matrix(w, order)) == 2 * ffn * 6
