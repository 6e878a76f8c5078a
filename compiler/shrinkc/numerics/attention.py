"""Attention of one head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shrinkc.numerics.fixed import (
    I64,
    bit_length,
    exp2_mantissa,
    exp2_q20,
    requantize,
    round_shift,
)


@dataclass
class QHead:
    """One head over tokens: q [T, D], mantissa [T], exponent [T]."""

    q: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray


def attend(
    q: QHead,
    k: QHead,
    v: QHead,
    mask: np.ndarray,
    *,
    scale_mantissa: int,
    scale_exponent: int,
    dot_shift: int,
    weight_bits: int,
) -> np.ndarray:
    """One head: q over T tokens against S cached ones under mask [T, S] -> int64 [T, D].

    Scores are log2 units in Q16 up to 2**13, by ``scale_mantissa`` (15 bit) and ``scale_exponent``;
    larger ones would be compressed by the shift's limit.  ``dot_shift`` makes a dot product fit 16
    bits, probabilities weigh the values with ``weight_bits`` bits.
    The result is 127/128 of the value in its own fixed point.
    """
    product = q.mantissa * scale_mantissa
    extra = bit_length(product) - 15
    c = product >> extra
    base = -(15 + dot_shift + extra + q.exponent + scale_exponent)
    dot = np.rint(q.q.astype(np.float64) @ k.q.T.astype(np.float64)).astype(I64)
    factor = round_shift(c[:, None] * k.mantissa[None, :], 15)
    shift = np.clip(base[:, None] - k.exponent[None, :], 1, 30)
    score = round_shift(round_shift(dot, dot_shift) * factor, shift)
    top = np.where(mask, score, -(1 << 30)).max(axis=1)
    delta = np.where(mask, top[:, None] - score, 0)
    z = np.where(mask, exp2_q20(delta), 0).sum(axis=1)
    e = np.where(mask, v.exponent[None, :] - np.minimum(delta >> 16, 31), -(1 << 20))
    e_max = e.max(axis=1)
    drop = 30 - weight_bits
    weight = exp2_mantissa(delta & 0xFFFF) * v.mantissa[None, :]
    a = round_shift(weight, np.minimum(e_max[:, None] - e + drop, 31))
    a = np.where(mask, np.minimum(a, (1 << weight_bits) - 1), 0)
    acc = np.rint(a.astype(np.float64) @ v.q.astype(np.float64)).astype(I64)
    z_shift = bit_length(z) - 16
    reciprocal = (np.int64(1) << 31) // (z >> z_shift)
    return requantize(acc, (reciprocal << 14)[:, None], (15 + z_shift - e_max - drop)[:, None])
