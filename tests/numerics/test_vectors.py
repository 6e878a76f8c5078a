"""Dynamic int8 vectors and heads against float64, with their error bounds.

One step of an element is the smallest change of its value: c * mantissa * 2**exponent / (127 *
cmax).  One unit is the last of the token's 15-bit mantissas, 2**exponent.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.numerics.vectors import (
    HEAD_NORM_MAX_REL_ERROR,
    HeadNorm,
    QVector,
    group_max,
    norm_quantize_vector,
    quantize_heads,
    quantize_vector,
    square_pre_shift,
    store_heads,
    sum_of_squares,
)

HALF_STEP = 0.5 + 1 / 250  # half a step, and the reciprocal's floor
UNITS = 1.5  # rounding to the mantissa, and the group's limit rounded up to a whole unit


def step_of(v: QVector, group: int, cmax: int) -> np.ndarray:
    """[T, K]"""
    k = v.q.shape[1]
    scale = v.c * (v.mantissa * 2.0**v.exponent)[:, None] / (127.0 * cmax)
    return np.repeat(scale, group, axis=1)[:, :k]


def check(x: np.ndarray, group: int, cmax: int) -> QVector:
    v = quantize_vector(x, group, cmax)
    tokens, k = x.shape
    assert v.q.shape == (tokens, k) and v.c.shape == (tokens, -(-k // group))
    assert np.abs(v.q).max() <= 127
    assert v.c.min() >= 1 and v.c.max() <= cmax
    assert v.mantissa.min() >= 1 << 14 and v.mantissa.max() <= 1 << 15
    step = step_of(v, group, cmax)
    error = np.abs(v.q * step - x)
    assert (error <= HALF_STEP * step + UNITS * 2.0 ** v.exponent[:, None]).all()
    # the largest element uses the whole range, and its group the largest scale
    for t in range(tokens):
        if np.abs(x[t]).max() > 0:
            assert np.abs(v.q[t]).max() == 127
            assert v.c[t].max() == cmax
    return v


@settings(max_examples=150, deadline=None)
@given(
    k=st.integers(1, 200),
    group=st.sampled_from([1, 3, 4, 8, 32, 60, 64, 96]),
    cmax=st.sampled_from([1, 2, 17, 254, 255]),
    shift=st.integers(0, 30),
    spread=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_half_a_step_and_one_and_a_half_units(
    k: int, group: int, cmax: int, shift: int, spread: bool, seed: int
) -> None:
    """|error| <= 0.504 steps of the element's group + 1.5 units of the token, |q| <= 127."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (2, k)) >> shift
    if spread:
        x >>= rng.integers(0, 20, (2, k))
    check(x, min(group, k), cmax)


def test_all_zero() -> None:
    v = quantize_vector(np.zeros((2, 70), int), 32, 255)
    assert (v.q == 0).all() and (v.c == 1).all()
    assert v.mantissa.tolist() == [1 << 14] * 2 and v.exponent.tolist() == [0, 0]


@pytest.mark.parametrize("value", [INT32_MAX, -INT32_MAX, 1 << 15, 1, -1, 32767, 65535])
def test_single_outlier(value: int) -> None:
    """The outlier takes ±127 at full scale; the other groups keep the finest one."""
    x = np.zeros((1, 100), int)
    x[0, 37] = value
    v = check(x, 32, 255)
    assert v.q[0, 37] == 127 * np.sign(value) and np.count_nonzero(v.q) == 1
    assert v.c[0].tolist() == [1, 255, 1, 1]


def test_outlier_does_not_reach_into_other_groups() -> None:
    """A value 200 times smaller in another group keeps 7 bits there."""
    x = np.full((1, 128), 10_000)
    x[0, 0] = 200 * 10_000
    v = quantize_vector(x, 64, 255)
    error = np.abs(v.q * step_of(v, 64, 255) - x)[0, 64:]
    assert error.max() < 10_000 / 100


@pytest.mark.parametrize("k", [1, 63, 65, 127, 129])
def test_tail_is_a_group_of_its_own(k: int) -> None:
    x = np.random.default_rng(k).integers(-1000, 1000, (3, k))
    v = check(x, min(64, k), 255)
    start = (k - 1) // 64 * 64
    np.testing.assert_array_equal(group_max(x, 64)[:, -1], np.abs(x[:, start:]).max(axis=1))
    assert v.c.shape[1] == (k + 63) // 64


def test_tokens_do_not_influence_each_other() -> None:
    x = (
        np.random.default_rng(1).integers(-INT32_MAX, INT32_MAX, (5, 90))
        >> np.arange(5)[:, None] * 6
    )
    together = quantize_vector(x, 32, 255)
    for t in range(5):
        alone = quantize_vector(x[t : t + 1], 32, 255)
        np.testing.assert_array_equal(together.q[t], alone.q[0])
        np.testing.assert_array_equal(together.c[t], alone.c[0])
        assert (together.mantissa[t], together.exponent[t]) == (
            alone.mantissa[0],
            alone.exponent[0],
        )


# --- norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 16, 17, 64, 65, 576, 2048, 4096])
def test_square_pre_shift_is_the_smallest_that_keeps_2_to_62(k: int) -> None:
    """k * (2**(31 - u))**2 <= 2**62; the sum in int64 is the exact one."""
    u = square_pre_shift(k)
    assert k * (1 << (31 - u)) ** 2 <= 1 << 62
    assert u == 0 or k * (1 << (32 - u)) ** 2 > 1 << 62
    x = np.full((1, k), -INT32_MAX)
    assert int(sum_of_squares(x, u)[0]) == k * (-INT32_MAX >> u) ** 2 < 1 << 63


@pytest.mark.parametrize("k", [1, 5, 64, 100, 577])
@pytest.mark.parametrize("shift", [0, 9, 20, 27])
def test_norm_against_float(k: int, shift: int) -> None:
    """x / rms * gain within 0.504 steps + 1.5 units + 2**-13 relative + 1 of x for the gain."""
    rng = np.random.default_rng(k + shift)
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (4, k)) >> shift
    u, group, cmax, eps = square_pre_shift(k), min(64, k), 255, 1 << 10
    gain = rng.integers(-INT32_MAX, INT32_MAX + 1, k)
    v = norm_quantize_vector(x, group, cmax, u, eps, gain)
    plain = quantize_vector((x * gain) >> 31, group, cmax)
    np.testing.assert_array_equal(v.q, plain.q)
    np.testing.assert_array_equal(v.c, plain.c)
    assert v.mantissa.min() >= 1 << 14 and v.mantissa.max() < 1 << 15
    kappa = np.sqrt(k) / (127 * cmax * 2.0 ** (31 + u))
    got = v.scaled(group) * (v.mantissa * 2.0**v.exponent)[:, None] * kappa
    total = ((x.astype(float) / 2.0**u) ** 2).sum(axis=1) + eps
    rms = np.sqrt(total / k) * 2.0**u
    want = x / rms[:, None] * gain / 2**31
    step = step_of(plain, group, cmax)
    unit = 2.0 ** plain.exponent[:, None]
    rounding = HALF_STEP * step + UNITS * unit + 1
    # x >> u floors each square by less than 2**u, which matters only for tiny x
    floor = 0.0 if u == 0 else 2.0**u / rms[:, None]
    allowed = rounding / rms[:, None] + np.abs(want) * (2.0**-13 + floor)
    assert (np.abs(got - want) <= allowed).all()


def test_norm_of_zero_is_zero() -> None:
    v = norm_quantize_vector(
        np.zeros((1, 9), int), 9, 255, square_pre_shift(9), 1, np.full(9, 32767)
    )
    assert (v.q == 0).all() and 1 << 14 <= v.mantissa[0] < 1 << 15


# --- heads -------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 4, 6, 64, 128])
@pytest.mark.parametrize("shift", [0, 12, 28])
def test_heads_without_rope(dim: int, shift: int) -> None:
    """Within 0.504 steps of mantissa * 2**exponent / 127, + 1 unit; |q| <= 127."""
    x = np.random.default_rng(dim).integers(-INT32_MAX, INT32_MAX + 1, (3, 4, dim)) >> shift
    h = quantize_heads(x)
    assert np.abs(h.q).max() <= 127
    unit = 2.0 ** h.exponent[..., None]
    step = h.mantissa[..., None] * unit / 127
    assert (np.abs(h.q * step - x) <= HALF_STEP * step + unit).all()


@pytest.mark.parametrize("dim", [2, 4, 6, 64, 128])
@pytest.mark.parametrize("shift", [0, 12, 24])
def test_heads_with_rope(dim: int, shift: int) -> None:
    """The rotation in float within 0.504 steps + 4 units; a rotation keeps the range."""
    rng = np.random.default_rng(dim)
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (3, 4, dim)) >> shift
    angle = rng.uniform(0, 2 * np.pi, (3, dim // 2))
    cos, sin = (
        np.clip(np.rint(f(angle) * 32768), -32767, 32767).astype(np.int64) for f in (np.cos, np.sin)
    )
    h = quantize_heads(x, cos, sin)
    a, b = x[..., : dim // 2], x[..., dim // 2 :]
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    want = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
    assert np.abs(h.q).max() <= 127
    unit = 2.0 ** h.exponent[..., None]
    step = h.mantissa[..., None] * unit / 127
    assert (np.abs(h.q * step - want) <= HALF_STEP * step + 4 * unit).all()


@pytest.mark.parametrize("dim", [2, 6, 64])
@pytest.mark.parametrize("shift", [0, 12, 28])
@pytest.mark.parametrize("above", [0, 3, 14, 20])
def test_stored_heads(dim: int, shift: int, above: int) -> None:
    """Within 0.504 steps of scale * 2**unit / 127, + 1 unit of the mantissa; the scale is the least
    that holds the head.  ``above``: by how many bits the unit is larger than the least possible."""
    x = np.random.default_rng(dim).integers(-INT32_MAX, INT32_MAX + 1, (3, 4, dim)) >> shift
    unit = max(-14, 32 - shift - 15 + above)
    h = store_heads(x, unit)
    top = np.abs(x).max(axis=2)
    scale = h.scale * 2.0**unit
    assert h.scale.min() >= 1 and h.scale.max() <= 32767 and np.abs(h.q).max() <= 127
    mantissa_unit = np.maximum(2.0 ** (np.floor(np.log2(np.maximum(top, 1))) - 14), 2.0**-14)
    assert (scale >= top - mantissa_unit).all() and (scale < top + mantissa_unit + 2.0**unit).all()
    step = scale[..., None] / 127
    assert (np.abs(h.q * step - x) <= HALF_STEP * step + mantissa_unit[..., None]).all()


def test_stored_heads_too_large_for_their_unit() -> None:
    with pytest.raises(ArithmeticError, match="larger than its unit"):
        store_heads(np.array([[[1 << 20, 0]]]), 4)


def test_heads_of_zero() -> None:
    h = quantize_heads(np.zeros((1, 2, 4), int), np.full((1, 2), 32767), np.zeros((1, 2), int))
    assert (h.q == 0).all() and (h.mantissa == 1 << 14).all()


@settings(max_examples=150, deadline=None)
@given(
    half=st.integers(1, 64),
    shift=st.integers(0, 24),
    eps=st.sampled_from([1, 1 << 20, 1 << 61]),
    rotated=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
def test_normalised_heads(half: int, shift: int, eps: int, rotated: bool, seed: int) -> None:
    """The int8 values are those without the norm; the factor 1 / rms has the stated error."""
    rng = np.random.default_rng(seed)
    d = 2 * half
    x = rng.integers(-INT32_MAX, INT32_MAX + 1, (2, 3, d)) >> shift
    x[0, 0] = 0
    gain = rng.integers(-32767, 32768, d)
    angle = rng.uniform(0, 6, (2, half))
    turn = [np.rint(f(angle) * 32767).astype(int) for f in (np.cos, np.sin)] if rotated else []
    pre_shift = square_pre_shift(d)
    norm = HeadNorm(gain, pre_shift, eps)
    got = quantize_heads(x, *turn, norm=norm)
    plain = quantize_heads((x * gain) >> 15, *turn)
    np.testing.assert_array_equal(got.q, plain.q)
    assert got.mantissa.min() >= 1 << 14 and got.mantissa.max() <= 1 << 15
    # the values of both, in units of sqrt(D) * 2**-(31 + pre_shift) and of x
    unit = np.sqrt(d) * 2.0 ** -(31 + pre_shift)
    factor = got.mantissa * 2.0**got.exponent * unit / (plain.mantissa * 2.0**plain.exponent)
    mean = (x.astype(np.float64) ** 2).sum(axis=2) / d + eps * 4.0**pre_shift / d
    dropped = np.sqrt(d) * 2.0**pre_shift / np.sqrt(mean * d)
    error = np.abs(factor * np.sqrt(mean) - 1)
    assert (error <= HEAD_NORM_MAX_REL_ERROR + dropped).all()
    # in the cache: the same values with a scale rounded up, here by no more than a 64th
    stored = store_heads(x, 17 + pre_shift, *turn, norm=norm)
    assert np.abs(stored.q).max() <= 127
    scale, plain_scale = stored.scale * 2.0 ** (17 + pre_shift), got.mantissa * 2.0**got.exponent
    full = np.abs(x).max(axis=2) >= 1 << pre_shift
    assert (scale[full] >= plain_scale[full] * (1 - 2.0**-14)).all()
    close = full & (stored.scale >= 64)
    step = scale[..., None] / 127
    off = np.abs(stored.q * step - got.q * plain_scale[..., None] / 127) / step
    assert (off[close] <= 1.02).all()


def test_a_head_is_what_rmsnorm_makes_of_it() -> None:
    """Against float64: half an int8 step of the head's largest value."""
    rng = np.random.default_rng(3)
    d, frac = 64, 24
    values = rng.standard_normal((5, 2, d))
    gains = 1 + 0.5 * rng.standard_normal(d)
    top = np.abs(gains).max()
    x = np.rint(values * 2.0**frac).astype(int)
    shift = square_pre_shift(d)
    eps = round(1e-6 * d * 2.0 ** (2 * frac - 2 * shift))
    norm = HeadNorm(np.rint(gains / top * 32767).astype(int), shift, eps)
    got = quantize_heads(x, norm=norm)
    unit = top * 32768 / 32767 * np.sqrt(d) * 2.0 ** -(31 + shift) / 127
    found = got.q * (got.mantissa * 2.0**got.exponent)[:, :, None] * unit
    want = gains * values / np.sqrt((values**2).mean(axis=2, keepdims=True) + 1e-6)
    assert (np.abs(found - want).max(axis=2) <= np.abs(want).max(axis=2) * 0.51 / 127).all()
