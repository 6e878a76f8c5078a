"""sc_num.h against numerics/fixed.py, bit for bit, on random and edge inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shrinkc.numerics import fixed

from .harness import NUMBER_FUNCTIONS, NUMBERS, Harness, assert_same, to_words

Get = Callable[[str], Harness]
I32 = (1 << 31) - 1
EDGES = np.array(
    [0, 1, 2, 3, 127, 128, 32767, 32768, 65535, 65536, 1 << 30, I32 - 1, I32], np.int64
)
SIGNED = np.unique(np.concatenate([EDGES, -EDGES]))


def call(
    h: Harness, name: str, a: object, b: object = 0, c: object = 0
) -> tuple[np.ndarray, np.ndarray]:
    """First and second result of a function over broadcast arguments."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.int64).reshape(-1) for v in (a, b, c)))
    head = [NUMBER_FUNCTIONS.index(name), len(a)]
    payload = np.concatenate([to_words(v) for v in (head, a, b, c)])
    out = h.run([(NUMBERS, payload)])[0].reshape(-1, 2)
    return out[:, 0].astype(np.int64), out[:, 1].astype(np.int64)


def pairs(*axes: np.ndarray) -> list[np.ndarray]:
    """The cross product, flat."""
    return [v.reshape(-1) for v in np.meshgrid(*axes, indexing="ij")]


def randoms(n: int = 20000, seed: int = 0) -> np.ndarray:
    """Signed words of every magnitude within ±(2**31 - 1)."""
    rng = np.random.default_rng(seed)
    return rng.integers(-I32, I32 + 1, n) >> rng.integers(0, 31, n)


@pytest.fixture(scope="module")
def h(harness: Get) -> Harness:
    return harness("hd2")


def test_saturation(h: Harness) -> None:
    v = np.concatenate(
        [SIGNED, SIGNED * 3, SIGNED << 31, [-(1 << 31), 1 << 31, -(1 << 63), (1 << 63) - 1]]
    )
    assert_same(call(h, "sat64", v, v >> 32)[0], fixed.saturate32(v), "sc_sat64")
    a, b = pairs(SIGNED, SIGNED)
    a, b = np.append(a, randoms()), np.append(b, randoms(seed=1))
    assert_same(call(h, "sat_add", a, b)[0], fixed.saturate32(a + b), "sc_sat_add")


def test_shifts(h: Harness) -> None:
    v, s = pairs(np.append(SIGNED, randoms(500)), np.arange(1, 32))
    assert_same(call(h, "rshift", v, s)[0], fixed.round_shift(v, s), "sc_rshift")
    assert_same(call(h, "shift", v, s)[0], fixed.round_shift(v, s), "sc_shift right")
    assert_same(
        call(h, "lshift_sat", v, s)[0], fixed.saturate32(fixed.round_shift(v, -s)), "sc_lshift_sat"
    )
    small = v >> s  # a left shift by at most s stays in 32 bits
    fits = s < 31
    assert_same(
        call(h, "shift", small[fits], -s[fits])[0],
        fixed.round_shift(small[fits], -s[fits]),
        "sc_shift left",
    )
    assert_same(call(h, "shift", SIGNED, 0)[0], SIGNED, "sc_shift by 0")


def test_requantize(h: Harness) -> None:
    factors = np.array([0, 1, 2, 65535 * 16384, 65535 * 32768, I32 - 1, I32])
    a, f, s = pairs(SIGNED, factors, np.arange(-40, 41))
    rng = np.random.default_rng(2)
    a = np.append(a, randoms())
    f = np.append(f, np.abs(randoms(seed=3)))
    s = np.append(s, rng.integers(-40, 41, 20000))
    got = call(h, "requantize", a, f, s)[0]
    assert_same(got, fixed.requantize(a, f, s), "sc_requantize")


def test_exp2(h: Harness) -> None:
    """All 2**16 mantissas; exponents beyond the last that counts."""
    x = np.arange(1 << 16)
    assert_same(call(h, "exp2_mantissa", x)[0], fixed.exp2_mantissa(x), "sc_exp2_mantissa")
    delta = np.concatenate(
        [x * 37, (x << 16) + 5, np.arange(28 << 16, 34 << 16, 7), [(1 << 32) - 1]]
    )
    assert_same(call(h, "exp2_q20", delta)[0], fixed.exp2_q20(delta), "sc_exp2_q20")


def test_exp2_table(h: Harness) -> None:
    got = call(h, "exp2_entry", np.arange(256))[0]
    assert_same(got, fixed.EXP2_TABLE, "sc_exp2_table")


def test_sigmoid(h: Harness) -> None:
    x = np.concatenate(
        [np.arange(-(1 << 21), 1 << 21, 31), np.arange(-3000, 3000), SIGNED, randoms()]
    )
    assert_same(call(h, "sigmoid_q15", x)[0], fixed.sigmoid_q15(x), "sc_sigmoid_q15")


def test_square_roots(h: Harness) -> None:
    root = np.arange(1 << 15, 1 << 16)  # all there are
    v = np.concatenate([root * root, root * root + 2 * root, np.abs(randoms()) | 1 << 30])
    assert_same(call(h, "isqrt", v)[0], fixed.isqrt32(v), "sc_isqrt")
    rng = np.random.default_rng(4)
    bits = np.arange(63)
    total = np.concatenate([1 << bits, (1 << bits) + 1, (2 << bits[:-1]) - 1, [(1 << 63) - 1],
                            rng.integers(1, 1 << 62, 5000) >> rng.integers(0, 61, 5000)])  # fmt: skip
    total = total[total > 0]
    got, want = call(h, "rsqrt", total, total >> 32), fixed.rsqrt(total)
    assert_same(got[0], want[0], "sc_rsqrt")
    assert_same(got[1], want[1], "exponent of sc_rsqrt")
    assert_same(call(h, "bits64", total, total >> 32)[0], fixed.bit_length(total), "sc_bits64")


def test_bits_and_mix(h: Harness) -> None:
    v = np.concatenate(
        [[0], 1 << np.arange(32), (1 << np.arange(32)) - 1, (1 << np.arange(31)) + 1]
    )
    assert_same(call(h, "bits", v)[0], fixed.bit_length(v), "sc_bits")
    v = np.append(v, np.random.default_rng(5).integers(0, 1 << 32, 5000))
    assert_same(call(h, "mix32", v)[0] & 0xFFFFFFFF, fixed.mix32(v), "sc_mix32")


def test_dot_products(h: Harness) -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-128, 128, (5000, 4)).astype(np.int8) for _ in range(2))
    a[:4], b[:4] = -128, [[-128] * 4, [127] * 4, [0] * 4, [1, 2, 3, 4]]
    d = rng.integers(-(1 << 24), 1 << 24, 5000)
    words = [v.view(np.int32).reshape(-1) for v in (a, b)]
    want = d + (a.astype(np.int64) * b).sum(axis=1)
    assert_same(call(h, "sdot4", d, *words)[0], want, "sc_sdot4")
    want = d + (a.view(np.uint8).astype(np.int64) * b).sum(axis=1)
    assert_same(call(h, "sdotu4", d, *words)[0], want, "sc_sdotu4")
