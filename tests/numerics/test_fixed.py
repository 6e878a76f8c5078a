"""Every integer primitive against Python integers or float64, with the bound it states."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from shrinkc.abi import HASH_MULTIPLIER
from shrinkc.numerics import fixed

I32 = (1 << 31) - 1
RSQRT_MAX_REL_ERROR = 2.0**-14  # one unit in 2**15 from the root, one from the division


def signed(n: int, bits: int, seed: int) -> np.ndarray:
    """Signed integers of every magnitude below 2**bits."""
    rng = np.random.default_rng(seed)
    return rng.integers(-(1 << bits) + 1, 1 << bits, n) >> rng.integers(0, bits, n)


def around_powers(bits: int) -> list[int]:
    values = {0} | {(1 << b) + d for b in range(bits) for d in (-1, 0, 1)} | {(1 << bits) - 1}
    return sorted(v for v in values if 0 <= v < 1 << bits)


# --- exact ones --------------------------------------------------------------------------


def test_bit_length_at_powers_of_two() -> None:
    """Exact, 0 <= v < 2**63; floats round 2**53 and up, so those are where it could fail."""
    values = around_powers(63)
    assert fixed.bit_length(np.array(values)).tolist() == [v.bit_length() for v in values]
    assert int(fixed.bit_length((1 << 63) - 1)) == 63


def test_saturate_is_symmetric() -> None:
    v = np.array([-(1 << 31), -I32, -I32 + 1, 0, I32 - 1, I32, 1 << 31, -(1 << 62)])
    assert fixed.saturate32(v).tolist() == [-I32, -I32, -I32 + 1, 0, I32 - 1, I32, I32, -I32]


def test_round_shift_is_half_up() -> None:
    """floor(v / 2**s + 1/2) exactly, for both signs of v, ties included."""
    values = [*signed(300, 61, 0).tolist(), -3, -2, -1, 0, 1, 2, 3, (1 << 61) - 1, -(1 << 61)]
    for s in range(1, 63):
        for v in (*values, 1 << (s - 1), -(1 << (s - 1)), 3 << (s - 1) if s < 62 else 0):
            if abs(v) < 1 << 63:
                want = math.floor(Fraction(v, 1 << s) + Fraction(1, 2))
                assert int(fixed.round_shift(v, s)) == want, (v, s)
    for s in range(31):
        assert int(fixed.round_shift(-5, -s)) == -5 << s


def test_requantize_floors_the_high_word_then_rounds_then_saturates() -> None:
    """Exact against Python integers; the shift is clamped to -31..30."""
    rng = np.random.default_rng(1)
    acc = np.append(signed(4000, 31, 2), [I32, -I32] * 200)
    factor = np.append(np.abs(signed(4000, 31, 3)), [I32, 65535 << 15] * 200)
    shift = rng.integers(-40, 41, len(acc))
    got = fixed.requantize(acc, factor, shift)
    saturated = 0
    for a, f, s, g in zip(*(v.tolist() for v in (acc, factor, shift, got)), strict=True):
        high = (a * f) >> 32
        c = min(max(s, -31), 30)
        want = math.floor(Fraction(high, 1 << c) + Fraction(1, 2)) if c > 0 else high << -c
        clipped = min(max(want, -I32), I32)
        saturated += clipped != want
        assert g == clipped, (a, f, s)
    assert saturated > 100


def test_isqrt_is_exact() -> None:
    """floor(sqrt(v)) for every root's edges and all of 0..2**17."""
    root = np.arange(1 << 16)
    square = root * root
    for v, want in (
        (square, root),
        (square[1:] - 1, root[:-1]),
        (square + 2 * root, root),
        (np.arange(1 << 17), [math.isqrt(v) for v in range(1 << 17)]),
    ):
        np.testing.assert_array_equal(fixed.isqrt32(v), want)
    assert int(fixed.isqrt32(np.array((1 << 32) - 1))) == 65535


def test_mix32_is_the_published_finaliser_and_injective() -> None:
    # values of fmix32 in the reference implementation of MurmurHash3
    assert [int(fixed.mix32(v)) for v in (0, 1)] == [0, 0x514E28B7]
    rng = np.random.default_rng(4)
    v = np.unique(rng.integers(0, 1 << 32, 200_000))
    assert len(np.unique(fixed.mix32(v))) == len(v)


# --- hash --------------------------------------------------------------------------------


def slow_hash(words: np.ndarray) -> int:
    h = 0
    for w in words.tolist():
        h = (h * HASH_MULTIPLIER + w) % (1 << 32)
    return h


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 1000])
def test_hash_is_its_definition(n: int) -> None:
    words = signed(n, 31, n)
    assert fixed.hash_words(words) == slow_hash(words)


def test_hash_detects_any_change_of_a_single_word() -> None:
    """Any difference in one word changes the hash: the word's weight is odd."""
    rng = np.random.default_rng(5)
    words = signed(64, 31, 6)
    h = fixed.hash_words(words)
    for at in range(64):
        for change in (1, -1, 1 << 30, -(1 << 31), 0x10000, int(rng.integers(1, 1 << 32))):
            changed = words.copy()
            changed[at] += change
            assert fixed.hash_words(changed) != h, (at, change)


def test_hash_detects_exchanged_neighbours() -> None:
    words = np.arange(1, 65)
    for at in range(63):
        swapped = words.copy()
        swapped[[at, at + 1]] = swapped[[at + 1, at]]
        assert fixed.hash_words(swapped) != fixed.hash_words(words)


# --- with an error bound -----------------------------------------------------------------


def test_exp2_mantissa_relative_error_below_1_4e_4() -> None:
    """All 2**16 inputs; the stated range; falling but for single units of its floors."""
    x = np.arange(1 << 16)
    got = fixed.exp2_mantissa(x)
    exact = 2.0 ** (15 - x / 65536)
    assert np.abs(got / exact - 1).max() <= fixed.EXP2_MAX_REL_ERROR == 1.4e-4
    assert got.min() >= (1 << 14) - 1 and got.max() <= (1 << 15) - 2
    assert np.diff(got).max() <= 1


def test_exp2_coefficients_are_the_best_cubic() -> None:
    """No cubic has a largest relative error much below the one of EXP2_C."""
    t = np.linspace(0, 1, 4001)
    exact = 2.0**-t
    c0, c1, c2, c3 = (c / 65536 for c in fixed.EXP2_C)
    own = np.abs((c0 - t * (c1 - t * (c2 - t * c3))) / exact - 1).max()
    nodes = (1 + np.cos(np.pi * (2 * np.arange(4) + 1) / 8)) / 2
    vandermonde = np.vander(nodes, 4, increasing=True) / (2.0**-nodes)[:, None]
    cubic = np.linalg.solve(vandermonde, np.ones(4))
    chebyshev = np.abs(np.polyval(cubic[::-1], t) / exact - 1).max()
    assert own < 1.1 * chebyshev


def test_exp2_table_error() -> None:
    """Every Q9 argument whose result has all 16 bits, and half a unit of the floor of the others."""
    x = np.arange(1 << 14)
    got, want = fixed.exp2_table(x), 2.0 ** (16 - x / 512)
    allowed = fixed.EXP2_TABLE_MAX_REL_ERROR * want + (x >= 512)
    assert (np.abs(got - want) <= allowed).all()
    assert np.abs(got[:512] / want[:512] - 1).max() > 0.9 * fixed.EXP2_TABLE_MAX_REL_ERROR


def test_exp2_q20_error() -> None:
    """Within 1.4e-4 relative, less one unit of Q20 for the floor; 0 from 2**-21 on."""
    delta = np.concatenate([np.arange(0, 33 << 16, 11), [(1 << 31) - 1, (1 << 32) - 1]])
    got = fixed.exp2_q20(delta) / 2.0**20
    exact = 2.0 ** (-delta / 65536)
    error = got - exact
    assert error.max() <= 1.4e-4 and (error <= fixed.EXP2_MAX_REL_ERROR * exact).all()
    assert (error >= -fixed.EXP2_MAX_REL_ERROR * exact - 2.0**-20).all()
    assert (got[delta >= 21 << 16] == 0).all()


def test_sigmoid_absolute_error_below_6e_5() -> None:
    """Every input up to ±16 and the ends of int32; no value leaves 0 .. 2**15 - 1."""
    x = np.concatenate(
        [np.arange(-(1 << 20) - 64, (1 << 20) + 65), [I32, -I32, 1 << 24, -(1 << 24)]]
    )
    got = fixed.sigmoid_q15(x)
    exact = 1 / (1 + np.exp(-np.clip(x / 65536, -700, 700)))
    assert np.abs(got / 2.0**15 - exact).max() <= fixed.SIGMOID_MAX_ABS_ERROR == 6e-5
    assert got.min() >= 0 and got.max() < 1 << 15


def test_rsqrt_relative_error_below_2_to_minus_14() -> None:
    """r * 2**(-31 - j) against 1/sqrt(total) over 1..2**63 - 1, r in 2**15..2**16."""
    rng = np.random.default_rng(7)
    values = [v for v in around_powers(63) if v]
    values += np.unique(rng.integers(1, 1 << 62, 200_000) >> rng.integers(0, 62, 200_000))[
        1:
    ].tolist()
    values += list(range(1, 1 << 16))
    total = np.array(values, np.int64)
    r, j = fixed.rsqrt(total)
    assert r.min() >= 1 << 15 and r.max() <= 1 << 16
    got = r * 2.0 ** (-31.0 - j)
    assert np.abs(got * np.sqrt(total.astype(np.float64)) - 1).max() <= RSQRT_MAX_REL_ERROR
