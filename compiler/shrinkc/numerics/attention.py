"""Softmax attention of one head over the KV cache, in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shrinkc.numerics.fixed import I64, INT32_MAX, bit_length, exp2_table, round_shift
from shrinkc.numerics.vectors import QHeads, StoredHeads

SCORE_SHIFTS = (18, 49)
"""Allowed fraction bits of a score difference, minus 9; the shift is clipped to this range."""


@dataclass(frozen=True)
class SoftmaxScale:
    """Scaling of dot products to log2 units, and of probabilities.

    score = -(sum of round(-dot / 2**dot_shift) * k_scale over a key's parts) * query mantissa
    * 2**(query exponent) * mantissa * 2**exponent, with a mantissa of 15 bits.  Values are multiplied by
    ``weight_bits`` (at most 15) bits of probability times value scale.  Value scales are in units of 2**v_unit; the
    result has ``extra_bits`` more fraction bits than the values.
    """

    mantissa: int
    exponent: int
    dot_shift: int
    weight_bits: int
    v_unit: int
    extra_bits: int


def attend(
    scale: SoftmaxScale, q: QHeads, k: Sequence[StoredHeads], v: StoredHeads, mask: np.ndarray
) -> np.ndarray:
    """Compute attention of T queries of one head over S cached positions under mask [T, S]: int64 [T, D].

    q is [T, D] with mantissa and exponent [T]; the parts of k are [S, n] with scale [S], for as many channels of q in
    order; v is [S, D] with scale [S].  Probabilities relative to the largest come from a table of 256 entries with a
    relative error of at most EXP2_TABLE_MAX_REL_ERROR.  The result is
    127/128 of the value, with ``extra_bits`` more fraction bits than the values.
    """
    product = q.mantissa * scale.mantissa
    extra = bit_length(product) - 16
    c = product >> extra | 1  # 16 bits, more than 2**15
    shift = np.clip(-(extra + q.exponent + scale.exponent + 9), *SCORE_SHIFTS)[:, None]
    # negative scores, so that the smallest is the most probable one
    score = np.zeros(mask.shape, I64)
    at = 0
    for part in k:
        own = q.q[:, at : at + part.q.shape[1]]
        dot = np.rint(own.astype(np.float64) @ part.q.T.astype(np.float64)).astype(I64)
        score += round_shift(-dot, scale.dot_shift) * part.scale
        at += part.q.shape[1]
    least = np.where(mask, score, 1 << 31).min(axis=1)[:, None]
    # at most 16 bits, so that the product with c has 9 fraction bits and 5 integer bits
    delta = np.minimum(np.where(mask, score - least, 0) >> (shift - 18), (1 << 16) - 1)
    p = np.where(mask, exp2_table((delta * c[:, None]) >> 18), 0)
    total = p.sum(axis=1)
    largest = np.where(mask, v.scale, 0).max(axis=1)
    drop = 16 + bit_length(largest) - scale.weight_bits
    weight = round_shift(p * v.scale, drop[:, None])
    acc = np.rint(weight.astype(np.float64) @ v.q.astype(np.float64)).astype(I64)
    z_shift = bit_length(total) - 16
    reciprocal = (np.int64(1) << 31) // (total >> z_shift)
    return _mean(acc, reciprocal << 14, 20 + z_shift - drop - scale.v_unit - scale.extra_bits)


def _mean(acc: np.ndarray, factor: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Like :func:`requantize` with acc [T, D], but a left shift saturates before it shifts."""
    high = (acc * factor[:, None]) >> 32
    left, right = (np.clip(n, 0, 31)[:, None] for n in (-shift, shift))
    limit = INT32_MAX >> left
    out: np.ndarray = round_shift(np.clip(high, -limit, limit - 1) << left, right)
    return out
