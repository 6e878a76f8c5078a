"""quantize_matrix: rounds the scales first, then the weights with the rounded scales."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import QuantizeError
from shrinkc.ir.linear import ACC_MAX, QLinear, largest_cmax, largest_x_bits
from shrinkc.numerics.matrices import linear
from shrinkc.numerics.vectors import (
    WIDE_BITS,
    WIDE_MANTISSA,
    Q16Vector,
    QVector,
    quantize_q16,
    quantize_vector,
)
from shrinkc.quantize.weights import (
    D_MAX,
    Output,
    check_groups,
    quantize_matrix,
)
from shrinkc.storage import format_of, stored_group

KAPPA = 2.0**-20 / 127  # of a quantised vector with 20 fraction bits


def quantised(w: np.ndarray, bits: int = 8, **options: object) -> QLinear:
    out = Output(KAPPA, options.pop("frac", 16), options.pop("exponent_max", None))  # type: ignore[arg-type]
    return quantize_matrix("w", w, out, bits=bits, **options)  # type: ignore[arg-type]


def random_weight(n: int, k: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.exp(spread * rng.standard_normal((n, 1)))
    return (rng.standard_normal((n, k)) * rows / np.sqrt(k)).astype(np.float32)


def step_of(q: QLinear) -> np.ndarray:
    """Return the distance between two neighbouring weight values, [n, k]."""
    return per_weight(q, q.d, 1) * q.row_scale[:, None]


def per_weight(q: QLinear, values: np.ndarray | None, default: int) -> np.ndarray:
    """Repeat group values [n, groups] for every weight: [n, k]."""
    if values is None:
        return np.full((q.n, q.k), default)
    return np.repeat(values.astype(int), q.group, axis=1)[:, : q.k]


# --- rounding ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 33])
@pytest.mark.parametrize("k", [1, 5, 64, 65, 172])
def test_8_bit_rows_are_within_half_a_step(n: int, k: int) -> None:
    """|dequantised - weight| <= step / 2 for every weight: nothing is clipped."""
    w = random_weight(n, k)
    q = quantised(w)
    assert q.d is None and q.b is None
    assert np.abs(q.q).max() <= 127
    assert (np.abs(q.dequantized() - w) <= 0.5000001 * step_of(q)).all()
    # the scale is no larger than the row's largest weight and its 16-bit multiplier require
    top = np.abs(w).max(axis=1)
    grid = q.row_scale[0] / q.r[0]
    assert (q.row_scale <= top / 127 + 1.001 * grid).all()


@pytest.mark.parametrize("group", [1, 4, 8, 32, 60, 64, 100])
def test_8_bit_groups_are_within_half_a_step(group: int) -> None:
    """Group scales are rounded up, by at most one of 255 levels, so no weight is clipped."""
    w = random_weight(9, 300 if group in (4, 60, 100, 1) else 192, seed=group)
    q = quantised(w, group=group)
    assert q.d is not None and 1 <= q.d.min() and q.d.max() <= D_MAX
    assert (np.abs(q.dequantized() - w) <= 0.5000001 * step_of(q)).all()
    top = np.abs(w).reshape(9, -1, group).max(axis=2)
    need = np.repeat(top, group, axis=1) / 127
    assert (step_of(q) <= need + 1.01 * q.row_scale[:, None] + 1e-12).all()


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("group", [None, 8, 32])
@pytest.mark.parametrize("mean", [0.05, -3.0, 100.0])
def test_asymmetric_is_within_half_a_step(bits: int, group: int | None, mean: float) -> None:
    """|error| <= half a step plus half a unit of the row, by which offsets are rounded."""
    w = random_weight(12, 96, seed=3) + np.float32(mean)
    q = quantised(w, bits, group=group, asymmetric=True)
    assert q.b is not None and q.b.dtype == np.int16 and q.d is not None
    error = np.abs(q.dequantized() - w)
    assert (error <= 0.5000001 * step_of(q) + 0.5000001 * q.row_scale[:, None] + 1e-6).all()
    assert np.abs(q.effective()).max() <= 32767


def test_asymmetric_beats_symmetric_on_one_sided_weights() -> None:
    w = np.abs(random_weight(8, 128, seed=4))
    errors = [
        np.square(quantised(w, 4, group=32, asymmetric=a).dequantized() - w).sum()
        for a in (False, True)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("group", [None, 16])
def test_narrow_weights_clip_only_where_that_lowers_the_error(bits: int, group: int | None) -> None:
    """MSE clipping: less squared error than without, and scales within the clip factors."""
    w = random_weight(16, 128, seed=5)
    q = quantised(w, bits, group=group)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert q.q.min() >= low and q.q.max() <= high
    assert step_of(q).min() > 0
    width = group or 128
    top = np.repeat(np.abs(w).reshape(16, -1, width).max(axis=2), width, axis=1)
    step = top / high
    plain = np.square(np.clip(np.rint(w / step), low, high) * step - w).sum()
    # 2 % more for the rounding of the scales
    assert np.square(q.dequantized() - w).sum() <= 1.02 * plain
    # up to one unit of the row, no scale exceeds the full range
    grid = q.row_scale[:, None] if group else 0.0
    assert (step_of(q) <= step * max(format_of(bits).clip) * 1.001 + grid).all()


def test_zero_rows_and_zero_matrices() -> None:
    w = random_weight(5, 40)
    w[2] = 0
    for bits in (8, 6, 5, 4, 3, 2):
        for options in ({}, {"group": 8}, {"group": 8, "asymmetric": True}):
            q = quantised(w, bits, **options)
            assert (q.dequantized()[2] == 0).all()
            assert (quantised(w * 0, bits, **options).dequantized() == 0).all()


def test_result_is_stable() -> None:
    w = random_weight(9, 60)
    a, b = (quantised(w, 4, group=20, asymmetric=True) for _ in range(2))
    for name in ("q", "d", "b", "r"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.shift, a.cmax, a.frac, a.drop) == (b.shift, b.cmax, b.frac, b.drop)
    rows = [quantised(w, 4) for _ in range(2)]
    np.testing.assert_array_equal(rows[0].q, rows[1].q)
    assert rows[0].x_bits == rows[1].x_bits == WIDE_BITS


# --- groups ------------------------------------------------------------------------------


def test_groups_that_do_not_divide_are_named_all_at_once() -> None:
    """One refusal with every matrix and its K, and group sizes that do divide."""
    inputs = {"qkv and gate_up": 576, "o": 576, "down": 1536}
    with pytest.raises(QuantizeError) as refused:
        check_groups(inputs, 100, False)
    text = str(refused.value)
    for part in ("qkv and gate_up (576)", "o (576)", "down (1536)", "--short-last-group"):
        assert part in text
    offered = [int(v) for v in text.split("divide all: ")[1].split(";")[0].split(", ")]
    assert offered
    for group in offered:
        check_groups(inputs, group, False)
        assert not any(k % group for k in inputs.values())


def test_only_the_matrices_at_fault_are_named() -> None:
    with pytest.raises(QuantizeError) as refused:
        check_groups({"qkv": 64, "down": 100}, 32, False)
    assert "down (100)" in str(refused.value) and "qkv (" not in str(refused.value)


def test_no_group_size_divides() -> None:
    with pytest.raises(QuantizeError, match="none of the usual ones"):
        check_groups({"qkv": 37}, 8, False)


def test_no_group_is_offered_that_saves_nothing() -> None:
    inputs = {"qkv": 48, "down": 96}
    with pytest.raises(QuantizeError) as refused:
        check_groups(inputs, 32, False, lambda group: group > 12)
    assert "fewer bytes than 8 bit: 48, 24, 16; or --short-last-group" in str(refused.value)
    with pytest.raises(QuantizeError) as refused:
        check_groups(inputs, 5, False, lambda group: False)
    text = str(refused.value)
    assert "fewer bytes than 8 bit: none of the usual ones; or no --group-size" in text
    assert "or 8 bit" in text and "--short-last-group" not in text
    with pytest.raises(QuantizeError, match="divide all: none of the usual ones"):
        check_groups({"qkv": 100, "down": 260}, 32, False)


@pytest.mark.parametrize("group", [0, -1])
def test_unusable_group(group: int) -> None:
    with pytest.raises(QuantizeError, match="not usable"):
        check_groups({"qkv": 64}, group, False)


def test_short_last_group_is_allowed_when_asked() -> None:
    check_groups({"qkv": 37}, 8, True)
    check_groups({"qkv": 64}, None, False)


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize(("k", "group"), [(37, 8), (65, 64), (100, 96), (5, 8), (130, 128), (7, 3)])
def test_short_last_group(bits: int, k: int, group: int) -> None:
    """The last group of K mod group inputs has a scale of its own; no weight is dropped."""
    w = random_weight(6, k, seed=k)
    start = (k - 1) // group * group
    w[:, start:] *= 50  # a tail with another range than the rest
    q = quantised(w, bits, group=group)
    assert (q.n, q.k) == w.shape
    assert q.d is not None and q.d.shape == (6, q.groups) and q.groups == -(-k // q.group)
    error = np.abs(q.dequantized() - w)
    if bits == 8:
        assert (error <= 0.5000001 * step_of(q)).all()
    else:
        tail = np.square(error[:, start:]).sum() / np.square(w[:, start:]).sum()
        assert tail < (0.02 if bits > 2 else 0.2)
    assert (np.count_nonzero(q.q, axis=1) > 0).all()


@pytest.mark.parametrize("group", [None, *range(1, 300, 7), 128, 256, 97])
def test_stored_groups_divide_the_group_size(group: int | None) -> None:
    """A stored group divides the group size and has at most 96 inputs where that is possible."""
    for k in (1, 63, 64, 200, 1024):
        stored = stored_group(k, group)
        if group is None:
            assert stored == min(64, k)
        else:
            assert group % stored == 0
            assert stored <= 96 or not any(group % s == 0 for s in range(16, 97))


# --- accumulators ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.sampled_from([1, 17, 64, 172, 640]),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([None, 8, 32, 64]),
    asymmetric=st.booleans(),
    constant=st.booleans(),
    seed=st.integers(0, 999),
)
def test_accumulator_stays_in_int32_for_the_worst_input(
    n: int, k: int, bits: int, group: int | None, asymmetric: bool, constant: bool, seed: int
) -> None:
    """x = ±127 along every row's signs with c = cmax reaches the bound: |acc| <= 2**31 - 1."""
    assume(group is not None or asymmetric)
    w = random_weight(n, k, seed)
    if constant:
        w = np.full_like(w, 0.5)
    try:
        q = quantised(w, bits, group=group, asymmetric=asymmetric)
    except QuantizeError:
        # only if weights of the largest magnitude would not fit
        widest = (15 if bits == 4 else 255) * (D_MAX if group else 1)
        assert k * widest * 127 > ACC_MAX
        return
    assert q.cmax == 255 and q.x_bits == 0  # drop is increased until this cmax fits
    # the multipliers belong to the final cmax and drop
    unit = KAPPA / q.cmax * 2.0 ** (q.frac + q.drop + 32 + q.shift)
    np.testing.assert_allclose(q.r / unit, q.row_scale, rtol=1e-12)
    effective = [[int(v) for v in row] for row in q.effective()]
    half = (1 << q.drop) >> 1
    for row in effective:
        worst = [127 if v >= 0 else -127 for v in row]
        c = np.full((1, q.groups), q.cmax)
        x = QVector(np.array([worst]), c, np.array([1 << 14]), np.array([0]))
        want = []
        for other in effective:  # Python integers
            sums = [
                sum(
                    v * y
                    for v, y in zip(other[i : i + q.group], worst[i : i + q.group], strict=True)
                )
                for i in range(0, k, q.group)
            ]
            assert max(map(abs, sums)) * (16 if bits == 4 and q.d is not None else 1) <= 1 << 30
            want.append(sum(((s + half) >> q.drop) * q.cmax for s in sums))
        assert q.accumulate(x)[0].tolist() == want
        assert max(map(abs, want)) <= q.unit_bound() * q.cmax <= ACC_MAX
    # drop is no larger than necessary
    assert q.drop <= (1 if bits == 8 else 0) or q.unit_bound() * 255 > ACC_MAX * 0.4


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("k", [1, 17, 64, 1031, 1041, 8191, 8323, 65535])
@pytest.mark.parametrize("constant", [False, True])
def test_wide_activations_stay_in_int32_for_the_worst_input(
    bits: int, k: int, constant: bool
) -> None:
    """x = ±2**x_bits along a row's signs reaches the bound; one bit more would not fit."""
    w = np.full((2, k), 0.5, np.float32) if constant else random_weight(3, k)
    q = quantised(w, bits)
    assert q.d is None and q.b is None and (q.group, q.cmax) == (k, 0)
    assert 1 <= q.x_bits <= WIDE_BITS == 14
    unit = KAPPA * 127 / WIDE_MANTISSA * 2.0 ** (q.frac + 32 + q.shift)
    np.testing.assert_allclose(q.r / unit, q.row_scale, rtol=1e-12)
    sums = [sum(abs(int(v)) for v in row) for row in q.q]  # Python integers
    longest = int(np.argmax(sums))
    sign = np.where(q.q[longest] < 0, -1, 1).astype(np.int64)
    x = Q16Vector(sign[None] << q.x_bits, np.array([WIDE_MANTISSA]), np.array([0]))
    acc = [int(v) for v in q.accumulate(x)[0]]
    assert acc[longest] == sums[longest] << q.x_bits == q.acc_bound() <= ACC_MAX
    assert acc == [
        sum(int(v) * int(s) for v, s in zip(row, sign, strict=True)) << q.x_bits for row in q.q
    ]
    assert q.x_bits == WIDE_BITS or sums[longest] << (q.x_bits + 1) > ACC_MAX
    # a constant row has the largest weights of its width everywhere
    if constant and bits == 8:
        assert q.x_bits == min(14, (ACC_MAX // (127 * k)).bit_length() - 1)
        assert (q.x_bits == WIDE_BITS) == (k <= 1031)


def test_largest_x_bits() -> None:
    for total in (
        0,
        1,
        1 << 16,
        (1 << 17) - 1,
        1 << 17,
        127 * 65535,
        ACC_MAX >> 1,
        ACC_MAX,
        ACC_MAX + 1,
    ):
        bits = largest_x_bits(np.array([[127 * total], [0]]))
        assert 0 <= bits <= 14 and (total << bits <= ACC_MAX or bits == 0)
        assert bits == 14 or total << (bits + 1) > ACC_MAX


def test_limit_lowers_the_bits_of_activations() -> None:
    """An adapter and its matrix read one vector, so both take the smaller number of bits."""
    w = random_weight(4, 40)
    assert quantised(w, limit=9).x_bits == 9
    assert quantised(w, 4, limit=255).x_bits == 14


def test_largest_cmax() -> None:
    for bound in (0, 1, ACC_MAX // 255, ACC_MAX // 255 + 1, ACC_MAX // 2, ACC_MAX, ACC_MAX + 1):
        c = largest_cmax(bound)
        assert 0 <= c <= 255 and c * bound <= ACC_MAX
        assert c == 255 or (c + 1) * bound > ACC_MAX


def test_too_wide_for_any_accumulator() -> None:
    """133,153 products of 127 * 127 overflow an int32.  Grouped sums are shifted right, and 16-bit activations
    take fewer bits; only per-channel weights with int8 activations are refused."""
    ones = np.ones((1, 133_200), np.float32)
    grouped = quantised(ones, group=8)
    assert grouped.cmax == 255
    with pytest.raises(QuantizeError, match="int32 accumulator") as refused:
        quantised(ones, shares_input=grouped)
    assert "fewer bits" in str(refused.value)
    narrow = quantised(ones, 4, shares_input=grouped)
    assert narrow.x_bits == 0 and narrow.cmax == largest_cmax(narrow.unit_bound()) >= 1
    assert quantised(ones).x_bits == 6
    with pytest.raises(QuantizeError, match="int32 accumulator"):
        quantised(ones, limit=0)


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
@pytest.mark.parametrize("group", [None, 32])
def test_result_in_fixed_point_is_the_product(bits: int, group: int | None) -> None:
    """linear() equals the float product of dequantised weight and input to one unit + 2**-13 of the largest."""
    rng = np.random.default_rng(8)
    w = random_weight(40, 96, seed=9)
    q = quantised(w, bits, group=group)
    x = np.rint(rng.standard_normal((5, 96)) * 2.0**20).astype(np.int64)
    if group is None:
        wide = quantize_q16(x, q.x_bits)
        got = linear(q, wide) * 2.0**-16
        unit = (wide.mantissa * 2.0 ** (wide.exponent - 20))[:, None] / WIDE_MANTISSA
        want = wide.q * unit @ q.dequantized().T
    else:
        v = quantize_vector(x, q.group, q.cmax)
        got = linear(q, v) * 2.0**-16
        unit = (v.mantissa * 2.0**v.exponent)[:, None] * 2.0**-20 / (127 * q.cmax)
        want = v.scaled(q.group) * unit @ q.dequantized().T
    assert np.abs(got - want).max() <= 2.0**-16 + 2.0**-13 * np.abs(want).max()


def test_exponent_max_lowers_the_fraction_bits() -> None:
    """With exponent_max the final shift is a right shift for every input."""
    w = random_weight(8, 64)
    unlimited = quantised(w, frac=28)
    limited = quantised(w, frac=28, exponent_max=5)
    assert limited.frac < unlimited.frac == 28
    assert limited.shift - 5 >= 1 > unlimited.shift - 5
    assert np.abs(limited.dequantized() - w).max() <= step_of(limited).max()


def test_input_vectors_of_python_integers() -> None:
    """linear() equals its definition in Python integers, offsets and scales included."""
    rng = np.random.default_rng(10)
    q = quantised(random_weight(5, 21, seed=2), 4, group=8, asymmetric=True)
    assert q.d is not None and q.b is not None
    q.drop = 3
    x = QVector(
        rng.integers(-127, 128, (2, 21)), rng.integers(1, q.cmax + 1, (2, 3)),
        np.array([1 << 14, 32767]), np.array([-3, 2]),
    )  # fmt: skip
    got = linear(q, x)
    for t in range(2):
        for o in range(5):
            acc = 0
            for g in range(3):
                total = 0
                for i in range(8 * g, min(8 * g + 8, 21)):
                    w = int(q.q[o, i]) * int(q.d[o, g]) - int(q.b[o, g])
                    total += w * int(x.q[t, i])
                acc += ((total + 4) >> 3) * int(x.c[t, g])
            high = (acc * int(q.r[o]) * int(x.mantissa[t])) >> 32
            s = max(-31, min(30, q.shift - int(x.exponent[t])))
            want = (high + (1 << (s - 1)) >> s) if s > 0 else high << -s
            assert int(got[t, o]) == max(-ACC_MAX, min(ACC_MAX, want))
