"""Integer primitives on numpy int64 arrays, each the exact twin of one in ``sc_num.h``.

Conventions
-----------
* ``frac``: a tensor of fraction bits ``f`` holds ``round(value * 2**f)`` in int32.
* One rounding rule: ``round half up``, that is ``floor(v / 2**s + 1/2)``.
* int32 results saturate symmetrically at ±(2**31 - 1).
* A *mantissa* is an integer in [2**14, 2**15]; with an exponent ``e`` it means ``m * 2**e``.
"""

from __future__ import annotations

import numpy as np

from shrinkc.abi import HASH_MULTIPLIER

I64 = np.int64
INT32_MAX = (1 << 31) - 1

MANTISSA_BITS = 15
QMAX = 127  # largest int8 magnitude used; -128 never occurs
QSHIFT = 23  # fraction bits of the reciprocal that quantises to int8

# exp2: cubic in Q16, 2**-x = C0 - x (C1 - x (C2 - x C3)), x in [0, 1): minimax fit, see
# tests/numerics/test_fixed.py, which also tests the stated bounds.
EXP2_C = (65531, 45287, 15078, 2557)
EXP2_MAX_REL_ERROR = 1.4e-4
SIGMOID_MAX_ABS_ERROR = 6e-5


def bit_length(v: np.ndarray | int) -> np.ndarray:
    """Number of bits of each v, 0 <= v < 2**63 (0 has 0 bits)."""
    v = np.asarray(v, dtype=I64)
    high = v >> 32
    low = v & 0xFFFFFFFF
    part = np.where(high > 0, high, low)
    # frexp is exact below 2**53: the exponent is the bit length
    bits = np.frexp(part.astype(np.float64))[1].astype(I64)
    return bits + np.where(high > 0, 32, 0)


RESIDUAL_BITS = 30  # of a residual stream's magnitudes


def add_to_residual(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y, both clipped to -2**30 .. 2**30 - 1, so that no sum on the way has more than 32 bits."""
    low, high = -(1 << RESIDUAL_BITS), (1 << RESIDUAL_BITS) - 1
    return np.clip(x + np.clip(y, low, high), low, high)


def saturate32(v: np.ndarray) -> np.ndarray:
    """Clip to ±(2**31 - 1)."""
    return np.clip(v, -INT32_MAX, INT32_MAX)


def round_shift(v: np.ndarray | int, s: np.ndarray | int) -> np.ndarray:
    """v / 2**s rounded half up for s > 0; v * 2**-s for s <= 0.  |s| <= 62, no saturation."""
    v = np.asarray(v, dtype=I64)
    s = np.asarray(s, dtype=I64)
    right = np.maximum(s, 1)
    rounded = (v >> right) + ((v >> (right - 1)) & 1)
    return np.where(s > 0, rounded, v << np.maximum(-s, 0))


def requantize(acc: np.ndarray, factor: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """acc * factor * 2**-(32 + shift) as a saturated int32.

    ``acc`` int32, ``factor`` in [0, 2**31).  The product's high word is taken first (floor),
    then rounded by ``shift`` (clamped to at most 30), or shifted left where it is negative
    (clamped to at least -31).
    """
    return shift_saturated((np.asarray(acc, I64) * np.asarray(factor, I64)) >> 32, shift)


def shift_saturated(high: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """high * 2**-shift as a saturated int32, with ``requantize``'s roundings and clamps of a shift."""
    return saturate32(round_shift(high, np.clip(np.asarray(shift, I64), -31, 30)))


def exp2_mantissa(frac16: np.ndarray) -> np.ndarray:
    """2**-(frac16 / 2**16) in Q15, for 0 <= frac16 < 2**16; result in [2**14 - 1, 2**15 - 2]."""
    x = np.asarray(frac16, I64)
    c0, c1, c2, c3 = EXP2_C
    t = c2 - ((c3 * x) >> 16)
    t = c1 - ((t * x) >> 16)
    y = c0 - ((t * x) >> 16)
    return (y + 1) >> 1


# 2**-((i + 1/2) / 256) in Q16 for i = 0..255; runtime_c/src/sc_tables.c holds the same numbers
EXP2_BITS = 8
EXP2_TABLE = np.rint(65536 * 2.0 ** (-(np.arange(1 << EXP2_BITS) + 0.5) / (1 << EXP2_BITS))).astype(
    I64
)
EXP2_TABLE_MAX_REL_ERROR = 1.37e-3  # ln(2) / 512 and half a unit


def exp2_table(q9: np.ndarray) -> np.ndarray:
    """2**-(q9 / 2**9) in Q16 (floor), for 0 <= q9 < 2**14: the lowest bit does not count."""
    q9 = np.asarray(q9, I64)
    return EXP2_TABLE[q9 >> 1 & 255] >> (q9 >> 9)


def exp2_q20(delta: np.ndarray) -> np.ndarray:
    """2**-(delta / 2**16) in Q20 (floor), for 0 <= delta < 2**32."""
    delta = np.asarray(delta, I64)
    return (exp2_mantissa(delta & 0xFFFF) << 5) >> np.minimum(delta >> 16, 31)


def _sigmoid_table() -> np.ndarray:
    """For each x = (i - 256) / 16 one int32: the sigmoid in Q31, whose lower half is, as an int16, how much it grows
    per 2**-16 of x.  The upper halves are such that what is cut off to Q15 is right in the mean of a step."""
    steps = np.arange(4096)
    x = np.arange(-256, 257) / 16
    slope = np.rint(np.diff(2.0**31 / (1 + np.exp(-x))) / 4096).astype(I64)
    exact = 2.0**15 / (1 + np.exp(-(x[:-1, None] + steps / 65536)))
    high = np.rint(np.mean(exact - (slope[:, None] * (1 + steps) >> 16), axis=1)).astype(I64)
    # none of the 4096 steps leaves the int32
    high = np.minimum(high, ((1 << 31) - 1 - slope * 4096) >> 16)
    return np.maximum(high, 0) * 65536 + slope


# runtime_c/src/sc_tables.c holds the same numbers
SIGMOID_TABLE = _sigmoid_table()


def sigmoid_q15(x16: np.ndarray) -> np.ndarray:
    """sigmoid(x16 / 2**16) in Q15, for |x16| <= 2**31 - 1; |error| <= SIGMOID_MAX_ABS_ERROR.

    Linear interpolation with a step of 1/16; beyond 16 the value at 16 is used.
    """
    x16 = np.clip(np.asarray(x16, I64), -(1 << 20), (1 << 20) - 1)
    entry = SIGMOID_TABLE[(x16 >> 12) + 256]
    slope = ((entry + 32768) & 65535) - 32768
    return (entry + slope * (x16 & 4095)) >> 16


def isqrt32(v: np.ndarray) -> np.ndarray:
    """floor(sqrt(v)) for 0 <= v < 2**32, exact."""
    v = np.asarray(v, I64)
    root = np.sqrt(v.astype(np.float64)).astype(I64)
    root -= root * root > v
    root += (root + 1) * (root + 1) <= v
    return root


def rsqrt(total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r, j) with 1/sqrt(total) = r * 2**(-31 - j), r in [2**15, 2**16]; 1 <= total < 2**63."""
    total = np.asarray(total, I64)
    bits = bit_length(total)
    shift = np.where((bits - 32) % 2 == 0, bits - 32, bits - 31)
    scaled = np.where(shift >= 0, total >> np.maximum(shift, 0), total << np.maximum(-shift, 0))
    return (np.int64(1) << 31) // isqrt32(scaled), shift >> 1


def mix32(v: np.ndarray | int) -> np.ndarray:
    """The 32-bit finaliser of MurmurHash3: a bijection used as counter-based random generator."""
    h = np.asarray(v, dtype=np.uint64) & np.uint64(0xFFFFFFFF)
    mask = np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(0x85EBCA6B)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(0xC2B2AE35)) & mask
    h ^= h >> np.uint64(16)
    return h.astype(I64)


def hash_words(values: np.ndarray) -> int:
    """h = h * HASH_MULTIPLIER + word over int32 words, from 0, modulo 2**32."""
    words = np.asarray(values, I64).reshape(-1) & 0xFFFFFFFF
    power: np.ndarray = np.ones(len(words), np.uint64)
    if len(words) > 1:
        power[1:] = np.uint64(HASH_MULTIPLIER)
        # uint64 products of 32-bit factors are exact modulo 2**64, hence modulo 2**32
        power = np.multiply.accumulate(power) & np.uint64(0xFFFFFFFF)
    with np.errstate(over="ignore"):
        total = (words.astype(np.uint64)[::-1] * power).sum(dtype=np.uint64)
    return int(total) & 0xFFFFFFFF
