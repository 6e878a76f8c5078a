"""Softmax attention and SiLU against float64, with a stated largest error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from shrinkc.numerics.attention import SoftmaxScale, attend
from shrinkc.numerics.fixed import INT32_MAX, SIGMOID_MAX_ABS_ERROR, sigmoid_q15
from shrinkc.numerics.gating import gelu_argument, silu_mul
from shrinkc.numerics.vectors import QHeads, StoredHeads, quantize_heads, store_heads

FRAC = 20  # of q, k and v
UNIT = 8  # of stored scales: 32767 * 2**(8 - 20) = 8
ATTENTION_MAX_ERROR = 1e-3  # of the largest |v| among the positions


def softmax_scale(dim: int, context: int, unit: int = UNIT) -> SoftmaxScale:
    """As lower() makes it for q and k with FRAC fraction bits."""
    dot_shift = max(0, (dim * 127 * 127).bit_length() - 15)
    kappa = math.log2(math.e) * 2.0 ** (dot_shift + unit - 2 * FRAC) / (math.sqrt(dim) * 127**2)
    exponent = math.floor(math.log2(kappa)) - 14
    bits = min(15, 24 - max(9, (context - 1).bit_length()))
    return SoftmaxScale(round(kappa * 2.0**-exponent), exponent, dot_shift, bits, unit, 0)


def fixed(x: np.ndarray) -> np.ndarray:
    return np.rint(x * 2.0**FRAC).astype(np.int64)[:, None]


def query(x: np.ndarray) -> QHeads:
    h = quantize_heads(fixed(x))
    return QHeads(h.q[:, 0], h.mantissa[:, 0], h.exponent[:, 0])


def cached(x: np.ndarray, unit: int = UNIT) -> StoredHeads:
    h = store_heads(fixed(x), unit)
    return StoredHeads(h.q[:, 0], h.scale[:, 0])


def value(h: QHeads | StoredHeads) -> np.ndarray:
    if isinstance(h, StoredHeads):
        return h.q * (h.scale * 2.0**UNIT)[:, None] / 127 * 2.0**-FRAC
    return h.q * (h.mantissa * 2.0**h.exponent)[:, None] / 127 * 2.0**-FRAC


def worst_score_error(how: SoftmaxScale, q: QHeads, k: StoredHeads, scores: np.ndarray) -> float:
    """Largest error of a score in log2 units: half a unit of the rounded dot product, a 16-bit and
    a 15-bit factor, and a unit and a quarter of Q9 of which the table rounds away one."""
    unit = (q.mantissa * 2.0**q.exponent).max() * (k.scale * 2.0**UNIT).max()
    unit *= 2.0 ** (-2 * FRAC) / 127**2 * math.log2(math.e) / math.sqrt(q.q.shape[1])
    dot = 0.0 if how.dot_shift == 0 else 2.0 ** (how.dot_shift - 1)
    return dot * unit + np.abs(scores).max() * math.log2(math.e) * 2.0**-13 + 2.0**-9


@pytest.mark.parametrize("dim", [2, 4, 8, 64, 128])
@pytest.mark.parametrize("context", [1, 2, 17, 64, 500, 2048])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_attention_error_below_1e_3_of_the_largest_value(
    dim: int, context: int, spread: float
) -> None:
    """softmax(q k / sqrt(dim)) v of the same int8 heads, flat and usual scores.

    Contexts beyond 512 have fewer bits per probability: 2**(14 - bits) times the bound.  Scores
    beyond a hundred (spread 4) add the error e of a score, worst_score_error: 4**e - 1.
    """
    rng = np.random.default_rng(dim + context)
    how = softmax_scale(dim, context)
    tokens = 3
    q = query(rng.standard_normal((tokens, dim)) * spread)
    k, v = (
        cached(
            rng.standard_normal((context, dim))
            * np.exp(rng.standard_normal((context, 1)).clip(-3, 0.5))
        )
        for _ in range(2)
    )
    mask = np.arange(context)[None, :] <= (context - tokens + np.arange(tokens))[:, None]
    mask[:, 0] = True
    got = attend(how, q, [k], v, mask) * 128 / 127 * 2.0**-FRAC
    scores = value(q) @ value(k).T / math.sqrt(dim)
    p = np.where(mask, np.exp(scores - np.where(mask, scores, -np.inf).max(axis=1)[:, None]), 0)
    want = p / p.sum(axis=1, keepdims=True) @ value(v)
    allowed = ATTENTION_MAX_ERROR * 2.0 ** max(0, 14 - how.weight_bits)
    if spread > 1:
        allowed += 4.0 ** worst_score_error(how, q, k, scores) - 1
    assert np.abs(got - want).max() <= allowed * np.abs(value(v)).max()


def test_attention_to_one_position_is_its_value() -> None:
    """127/128 of v within 2e-4 of it."""
    rng = np.random.default_rng(3)
    q, k, v = (
        query(rng.standard_normal((1, 8))),
        *(cached(rng.standard_normal((1, 8))) for _ in "kv"),
    )
    got = attend(softmax_scale(8, 64), q, [k], v, np.ones((1, 1), bool)) * 2.0**-FRAC
    assert np.abs(got - value(v) * 127 / 128).max() <= 2e-4 * np.abs(value(v)).max()


def test_masked_positions_do_not_count() -> None:
    """Garbage behind the mask changes nothing."""
    rng = np.random.default_rng(4)
    how = softmax_scale(8, 64)
    q, k, v = (
        query(rng.standard_normal((2, 8))),
        *(cached(rng.standard_normal((9, 8))) for _ in "kv"),
    )
    mask = np.arange(9)[None, :] <= np.array([[3], [4]])
    want = attend(how, q, [k], v, mask)
    for t in (k, v):
        t.q[5:], t.scale[5:] = 127, 32767
    np.testing.assert_array_equal(attend(how, q, [k], v, mask), want)


@pytest.mark.parametrize("exponent", [-70, -45, -31, 0])
def test_largest_scores_stay_in_range(exponent: int) -> None:
    """Heads at the ends of int32, scores from flat to far beyond what can be told apart: the result
    is a mean of values."""
    x = np.full((4, 1, 4), INT32_MAX)
    x[::2] *= -1
    how = replace(softmax_scale(4, 16, unit=17), exponent=exponent)
    h, kept = quantize_heads(x), store_heads(x, 17)
    head = QHeads(h.q[:, 0], h.mantissa[:, 0], h.exponent[:, 0])
    cache = StoredHeads(kept.q[:, 0], kept.scale[:, 0])
    got = attend(how, head, [cache], cache, np.ones((4, 4), bool))
    assert np.abs(got).max() <= INT32_MAX
    if exponent > -40:
        assert (np.sign(got[:, 0]) == np.sign(x[:, 0, 0])).all()


# --- SiLU --------------------------------------------------------------------------------


@pytest.mark.parametrize("frac", [16, 20, 24, 27])
@pytest.mark.parametrize("largest", [0.01, 1.0, 15.0])
def test_silu_mul_error(frac: int, largest: float) -> None:
    """|error| <= 6.5e-5 |gate up| + 2**(3 - frac) |up| + 2**-31 of the range of up + a unit."""
    if largest * 2.0**frac > INT32_MAX:
        pytest.skip("beyond int32 at this fixed point")
    rng = np.random.default_rng(frac)
    y = np.rint(rng.uniform(-largest, largest, (4, 2000)) * 2.0**frac).astype(np.int64)
    shift = min(15, math.floor(math.log2(INT32_MAX / (largest * 2.0 ** (frac - 1) + 1))))
    up_shift = min(15, math.floor(math.log2(INT32_MAX / (largest * 2.0**frac + 1))))
    h_frac = 2 * frac - 33 + shift + up_shift
    got = silu_mul(y, frac - 16, shift, up_shift) * 2.0**-h_frac
    gate, up = y[:, :1000] * 2.0**-frac, y[:, 1000:] * 2.0**-frac
    want = gate / (1 + np.exp(-gate)) * up
    # the gate in Q16 is off by half a unit, which moves a sigmoid by a quarter of one
    slack = SIGMOID_MAX_ABS_ERROR + 2.0**-18
    allowed = slack * np.abs(gate * up) + 2.0 ** (3 - frac) * np.abs(up) + 2.0**-h_frac
    assert (np.abs(got - want) <= allowed).all()


def test_gelu_error() -> None:
    """GELU by tanh, relative to the larger of |x| and 1; large gates pass or vanish."""
    x16 = np.arange(-(9 << 16), 9 << 16, 37)
    x = x16 / 65536
    want = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    got = x * sigmoid_q15(gelu_argument(x16)) / 32768
    assert np.abs(got - want).max() < 3e-4
    far = np.array([INT32_MAX, 1 << 30, -(1 << 30), -INT32_MAX])
    np.testing.assert_array_equal(sigmoid_q15(gelu_argument(far)) > 16384, far > 0)
    # the C program has 32-bit products
    s = (np.arange(-360440, 360441) + 8) >> 4
    slope = 26145 + ((18705 * ((s * s) >> 12)) >> 16)
    assert (s * s).max() < 1 << 31 and (18705 * ((s * s) >> 12)).max() < 1 << 32
    assert np.abs(s * slope).max() < 1 << 31


def test_silu_mul_refuses_to_overflow() -> None:
    with pytest.raises(ArithmeticError, match="beyond int32"):
        silu_mul(np.array([[INT32_MAX, INT32_MAX]]), 0, 2, 0)
    with pytest.raises(ArithmeticError, match="beyond int32"):
        silu_mul(np.array([[0, INT32_MAX]]), 0, 0, 1)


def test_silu_mul_saturates_the_gate_of_a_left_shift() -> None:
    """A gate shift below 0 brings large gates to ±(2**31 - 1): sigmoid 1 and 0."""
    y = np.array([[1 << 27, -(1 << 27), 1 << 28, 1 << 28]])
    got = silu_mul(y, -12, 3, 0)[0]
    assert got[0] == pytest.approx(1 << 25, rel=1e-4) and abs(int(got[1])) <= 1 << 10
