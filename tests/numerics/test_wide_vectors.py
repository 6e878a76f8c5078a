"""Dynamic 16-bit vectors against float64 and Python integers, with their error bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.numerics.matrices import accumulate_q16
from shrinkc.numerics.vectors import (
    SHARES,
    WIDE_BITS,
    WIDE_MANTISSA,
    Q16Vector,
    norm_quantize_q16,
    places_of_share,
    quantize_q16,
    square_drop,
    square_pre_shift,
)


def check(x: np.ndarray, bits: int) -> Q16Vector:
    """Half a unit per element, in which the largest has at least half of the range, and no more than it."""
    v = quantize_q16(x, bits)
    assert v.q.shape == x.shape and (v.mantissa == WIDE_MANTISSA).all()
    for q, row, exponent in zip(v.q.tolist(), x.tolist(), v.exponent.tolist(), strict=True):
        top = max(map(abs, row))
        unit = 2.0**exponent
        assert all(abs(a * unit - b) <= unit / 2 for a, b in zip(q, row, strict=True))
        assert max(map(abs, q)) <= 1 << bits
        if top:
            assert 1 << bits - 1 <= max(map(abs, q))
            assert exponent == top.bit_length() - bits
            # half is rounded up, of negative ones too
            e = max(exponent, 0)
            assert q == [(b + (1 << e >> 1) >> e) << max(-exponent, 0) for b in row]
        else:
            assert q == [0] * len(row) and exponent == 1 - bits
    return v


@settings(max_examples=150, deadline=None)
@given(
    k=st.integers(1, 200), bits=st.integers(1, WIDE_BITS), shift=st.integers(0, 30),
    spread=st.booleans(), seed=st.integers(0, 1 << 20),
)  # fmt: skip
def test_half_a_unit_of_the_tops_bits(
    k: int, bits: int, shift: int, spread: bool, seed: int
) -> None:
    """|error| <= half of 2**-bits of the power of two above the largest magnitude."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (2, k)) >> shift
    if spread:
        x >>= rng.integers(0, 20, (2, k))
    check(x, bits)


@pytest.mark.parametrize("bits", [1, 8, 13, 14])
@pytest.mark.parametrize(
    "value", [INT32_MAX, 1 << 30, (1 << 30) - 1, 65535, 32767, 16384, 16383, 3, 1]
)
def test_one_value_at_either_end(bits: int, value: int) -> None:
    """What is rounded up to the next power of two is 2**bits; a power of two itself is half of that."""
    length = value.bit_length()
    dropped = max(length - bits, 0)
    for sign in (1, -1):
        q = sign * int(check(np.array([[0, sign * value, 0]]), bits).q[0, 1])
        if value == 1 << length - 1:
            assert q == 1 << bits - 1
        elif (1 << length) - value <= (1 << dropped) // 2 - (sign < 0):
            assert q == 1 << bits
    assert int(quantize_q16(np.array([[INT32_MAX]]), bits).q[0, 0]) == 1 << bits


def test_short_vectors_are_shifted_up() -> None:
    """Exponents below zero lose nothing."""
    for top in (1, 2, 100, 8191):
        x = np.array([[top, -top, 1, 0]])
        v = check(x, 14)
        assert v.exponent[0] == top.bit_length() - 14 < 0
        assert (v.q == x << -v.exponent[0]).all()


def test_all_zero() -> None:
    v = check(np.zeros((3, 7), int), 14)
    assert v.exponent.tolist() == [-13, -13, -13]
    gain = np.full(9, INT32_MAX)
    normed = norm_quantize_q16(np.zeros((1, 9), int), 14, square_pre_shift(9), 1, gain)
    assert (normed.q == 0).all() and 1 << 14 <= normed.mantissa[0] < 1 << 15


def test_tokens_do_not_influence_each_other() -> None:
    x = np.random.default_rng(1).integers(-INT32_MAX, INT32_MAX, (5, 90))
    x >>= np.arange(5)[:, None] * 6
    together = quantize_q16(x, 14)
    for t in range(5):
        alone = quantize_q16(x[t : t + 1], 14)
        np.testing.assert_array_equal(together.q[t], alone.q[0])
        assert together.exponent[t] == alone.exponent[0]


@pytest.mark.parametrize("bits", range(1, WIDE_BITS + 1))
def test_both_bytes_are_signed(bits: int) -> None:
    """All values of ±2**bits: q = 256 * high + low, each in -128..127, as the device keeps them."""
    q = np.arange(-(1 << bits), (1 << bits) + 1)
    low = (q & 255).astype(np.uint8).view(np.int8).astype(int)
    high = (q + 128) >> 8
    np.testing.assert_array_equal(256 * high + low, q)
    assert -128 <= high.min() and high.max() <= 127
    # and the high byte's sum, times 256, is no larger than the whole's bound
    if bits >= 8:
        assert 256 * np.abs(high).max() <= 1 << bits


@pytest.mark.parametrize("k", [1, 5, 64, 100, 577])
@pytest.mark.parametrize("shift", [0, 9, 20, 27])
@pytest.mark.parametrize("spread", [0, 12])
@pytest.mark.parametrize("bits", [9, 14])
def test_norm_against_float(k: int, shift: int, spread: int, bits: int) -> None:
    """x / rms * gain within half a unit of ``bits`` bits of the largest, however few bits x has; and
    within what the mantissa and the sum of squares may lose."""
    rng = np.random.default_rng(k + shift)
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (4, k)) >> shift
    x >>= rng.integers(0, spread + 1, (4, k))
    u, eps = square_pre_shift(k), 1 << 10
    gain = rng.integers(-INT32_MAX, INT32_MAX + 1, k) >> rng.integers(0, 8, k)
    v = norm_quantize_q16(x, bits, u, eps, gain)
    assert v.mantissa.min() >= 1 << 14 and v.mantissa.max() < 1 << 15
    assert np.abs(v.q).max() <= 1 << bits
    kappa = np.sqrt(k) / (WIDE_MANTISSA * 2.0 ** (31 + u))
    got = v.q * (v.mantissa * 2.0**v.exponent)[:, None] * kappa
    total = ((x.astype(float) / 2.0**u) ** 2).sum(axis=1) + eps
    rms = np.sqrt(total / k)[:, None] * 2.0**u
    want = x * (gain / 2**31)
    top = np.abs(want).max(axis=1, keepdims=True)
    # a share has 31 bits before the gain, of whose product the lowest is lost
    rounding = top * 2.0**-bits * 1.0001 + np.abs(x).max(axis=1, keepdims=True) * 2.0**-28
    relative = 2.0**-13 + np.sqrt(places_of_share(k)) * 2.0 ** (square_drop(k) - 30)
    relative += SHARES / 2 / total[:, None]
    allowed = (rounding + np.abs(want) * relative) / rms
    assert (np.abs(got - want / rms) <= allowed).all()


@pytest.mark.parametrize("k", [1, 7, 8, 9, 95, 96, 576, 2048, 8192, 65536])
def test_no_sum_of_squares_overflows(k: int) -> None:
    """Of a share whose values all have 31 bits, and none that could keep a bit more."""
    places, drop = places_of_share(k), square_drop(k)
    most = (INT32_MAX >> drop) + 1  # of negative ones
    assert places * most**2 < 1 << 32
    assert drop == 15 or places * (2 * most) ** 2 >= 1 << 32
    assert SHARES * places >= k
    assert places % 4 == 0  # whole words of bytes


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 300), n=st.integers(1, 9), seed=st.integers(0, 1 << 20))
def test_products_are_exact(k: int, n: int, seed: int) -> None:
    """Through floating point up to the largest sums of int32."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-127, 127], (n, k))
    top = 1 << 14
    q = rng.choice([-top, top, top - 1, 0], (3, k))
    v = Q16Vector(q, np.full(3, WIDE_MANTISSA), np.zeros(3, int))
    want = [[sum(int(a) * int(b) for a, b in zip(row, x, strict=True)) for row in w] for x in q]
    assert accumulate_q16(v, w.T.astype(np.float64)).tolist() == want
