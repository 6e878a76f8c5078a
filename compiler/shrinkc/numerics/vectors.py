"""Dynamic vectors: a token's activations as integers with scales of their own.

Per-channel matrices read 16-bit vectors (``Q16Vector``); grouped matrices read int8
vectors with one small integer scale per group:

A vector x[K] (int32, fraction bits f) is cut into groups of S elements (the last may be
shorter).  Its int8 form is

    x[k] * 2**-f  ~  q[k] * c[g] * mantissa * 2**exponent * kappa

with one c in 1..cmax per group and one mantissa and exponent per token; ``kappa`` is a
compile-time constant that the consuming matrix absorbs.  The group scale is rounded *up* to
a multiple of the token's finest step and the values are then rounded with that scale (to within
one unit of a 15-bit mantissa), so the scale adds next to no error of its own, and an inner product
needs one small multiplication per group, in int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from shrinkc.numerics.fixed import (
    I64,
    MANTISSA_BITS,
    QMAX,
    QSHIFT,
    bit_length,
    requantize,
    round_shift,
    rsqrt,
)

STORED_MAX = 32767  # largest scale of a head in the cache
INT32_BITS = 31  # of a magnitude
HEAD_QSHIFT = 22  # fraction bits of the reciprocal, of at most 15 bits, that makes heads int8


@dataclass
class QVector:
    """T quantised tokens: q int64 [T, K] in ±127, c int64 [T, groups], mantissa and exponent [T]."""

    q: np.ndarray
    c: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray

    def scaled(self, group: int) -> np.ndarray:
        """q * c per element, float64 [T, K]: exact integers, ready for a BLAS product."""
        k = self.q.shape[1]
        return (self.q * np.repeat(self.c, group, axis=1)[:, :k]).astype(np.float64)


def group_max(x: np.ndarray, group: int) -> np.ndarray:
    """max |x| per group: [T, K] -> [T, ceil(K / group)]."""
    tokens, k = x.shape
    groups = -(-k // group)
    padded = np.zeros((tokens, groups * group), I64)
    padded[:, :k] = np.abs(x)
    return padded.reshape(tokens, groups, group).max(axis=2)


def quantize_vector(x: np.ndarray, group: int, cmax: int) -> QVector:
    """Quantise x int32 [T, K]; mantissa and exponent are those of the vector's own maximum.

    kappa of the result is ``2**-f / (127 * cmax)``.
    """
    x = np.asarray(x, I64)
    k = x.shape[1]
    top = group_max(x, group)
    token_max = top.max(axis=1)
    exponent = np.where(token_max > 0, bit_length(token_max) - MANTISSA_BITS, 0)
    mantissa = np.where(token_max > 0, round_shift(token_max, exponent), 1 << 14)
    x15 = round_shift(x, exponent[:, None])
    top15 = round_shift(top, exponent[:, None])
    m = mantissa[:, None]
    c = np.maximum(1, (top15 * cmax + m - 1) // m)
    limit = (m * c + cmax - 1) // cmax
    reciprocal = (QMAX << QSHIFT) // limit
    q = round_shift(x15 * np.repeat(reciprocal, group, axis=1)[:, :k], QSHIFT)
    return QVector(q=q, c=c, mantissa=mantissa, exponent=exponent)


def sum_of_squares(x: np.ndarray, pre_shift: int) -> np.ndarray:
    """sum((x >> pre_shift)**2) per token, int64: x [T, K] -> [T]."""
    y = np.asarray(x, I64) >> pre_shift
    return (y * y).sum(axis=1)


def square_pre_shift(k: int) -> int:
    """Smallest u with k * (2**(31 - u))**2 <= 2**62, so that the sum plus eps stays below 2**63."""
    return max(0, -(-(int(k - 1).bit_length()) // 2))


def norm_quantize_vector(
    x: np.ndarray, group: int, cmax: int, pre_shift: int, eps: int, gain: np.ndarray
) -> QVector:
    """RMSNorm followed by quantisation of x int32 [T, K].

    The int8 values do not depend on the norm, only the mantissa and exponent do.  ``eps`` is
    the norm's epsilon in the units of ``sum_of_squares``; ``gain`` int [K] in Q31, |gain| < 2**31,
    is applied before quantisation.
    kappa of the result is ``sqrt(K) / (127 * cmax * 2**(31 + pre_shift))``.
    """
    x = np.asarray(x, I64)
    total = sum_of_squares(x, pre_shift) + eps
    v = quantize_vector((x * gain) >> GAIN_BITS, group, cmax)
    v.mantissa, v.exponent = _normed(v.mantissa, v.exponent, total)
    return v


def norm_values(
    x: np.ndarray, pre_shift: int, eps: int, gain: np.ndarray, factor: int, exponent: int
) -> np.ndarray:
    """RMSNorm of x int32 [T, K] as saturated int32 [T, K], with ``pre_shift``, ``eps`` and ``gain`` as in
    :func:`norm_quantize_vector`.

    ``factor`` * 2**exponent, with a factor of 15 bits, is sqrt(K) in the units of the result and of the gain.  Values
    are first shifted up by as many bits as the sum of squares shows to be unused."""
    x = np.asarray(x, I64)
    total = sum_of_squares(x, pre_shift) + eps
    r, j = rsqrt(total)
    up = np.maximum(INT32_BITS - pre_shift - ((bit_length(total) + 1) >> 1), 0)
    z = ((x << up[:, None]) * gain) >> 32
    return requantize(z, (r * factor)[:, None], (up + pre_shift + j - exponent - 2)[:, None])


SHARES = 8  # of a norm's places, each with an exponent of its own
GAIN_BITS = 31  # fraction bits of a norm's gains


def places_of_share(k: int) -> int:
    """Places of each of the ``SHARES`` runs that k places are cut into, a multiple of 4, which cores
    have as a word of bytes; the last ones may have fewer or none."""
    return -(-k // (4 * SHARES)) * 4


def square_drop(k: int) -> int:
    """Smallest t for which the squares of a share's values of 31 - t bits sum to less than 2**32."""
    t = 15
    while places_of_share(k) << (62 - 2 * t) >= 1 << 32:
        t += 1
    return t


WIDE_BITS = 14  # most bits of a 16-bit vector's magnitudes: both bytes of a value are signed
# of one whose scale is a power of two: it takes no bit of a row's multiplier
WIDE_MANTISSA = 1 << MANTISSA_BITS


@dataclass
class Q16Vector:
    """T tokens in 16 bit: q int64 [T, K] in ±2**bits, mantissa and exponent [T].

    x[k] * 2**-f = q[k] * mantissa * 2**exponent * kappa.  The device has q as two planes of signed
    bytes, q = 256 * high + low, so that byte products serve both.
    """

    q: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray


def quantize_q16(x: np.ndarray, bits: int) -> Q16Vector:
    """x int32 [T, K] less as many bits as make its largest magnitude one of ``bits`` (1..14) bits.

    Vectors of fewer bits are shifted up.  kappa of the result is ``2**-f / WIDE_MANTISSA``.
    """
    x = np.asarray(x, I64)
    exponent = _bits(x) - bits
    q = round_shift(x, exponent[:, None])
    return Q16Vector(q, np.full(len(q), WIDE_MANTISSA, I64), exponent)


def norm_quantize_q16(
    x: np.ndarray, bits: int, pre_shift: int, eps: int, gain: np.ndarray
) -> Q16Vector:
    """RMSNorm and quantisation of x int32 [T, K] to ``bits`` bits, with the arguments of
    :func:`norm_quantize_vector`.

    A residual stream has few bits in its first layers.  So each of ``SHARES`` runs of places is first
    shifted up to 31 bits: all of these take part in the product with the gain, which is halved, and
    the highest 31 - ``square_drop`` in the sum of squares.
    kappa of the result is ``sqrt(K) / (WIDE_MANTISSA * 2**(31 + pre_shift))``.
    """
    x = np.asarray(x, I64)
    tokens, k = x.shape
    places, drop = places_of_share(k), square_drop(k)
    y, total = np.empty_like(x), np.full(tokens, eps, I64)
    up = np.zeros((tokens, SHARES), I64)
    largest = np.full((tokens, SHARES), 1 - INT32_BITS, I64)  # bits of magnitudes before the shift
    for share, first in enumerate(range(0, k, places)):
        run = slice(first, first + places)
        up[:, share] = INT32_BITS - _bits(x[:, run])
        z = x[:, run] << up[:, share, None]
        squares = ((z >> drop) ** 2).sum(axis=1)
        total += (squares << 2 * (drop - pre_shift)) >> 2 * up[:, share]
        y[:, run] = (z * gain[run]) >> 32
        largest[:, share] = _bits(y[:, run]) - up[:, share]
    most = largest.max(axis=1)
    right = np.minimum(most[:, None] + up - bits, INT32_BITS)
    q = round_shift(y, np.repeat(right, places, axis=1)[:, :k])
    mantissa = np.full(tokens, WIDE_MANTISSA, I64)
    return Q16Vector(q, *_normed(mantissa, most + 1 - bits, total))


def _bits(x: np.ndarray) -> np.ndarray:
    """Of the largest magnitude of each row, at least 1."""
    return bit_length(np.maximum(np.abs(x).max(axis=1), 1))


def _normed(
    mantissa: np.ndarray, exponent: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """mantissa * 2**exponent / sqrt(total), with a mantissa of 15 bits."""
    r, j = rsqrt(total)
    product = mantissa * r
    extra = bit_length(product) - MANTISSA_BITS
    return product >> extra, exponent + extra - j


@dataclass
class QHeads:
    """T x H heads in int8 with one mantissa and exponent each: q [T, H, D], m and e [T, H]."""

    q: np.ndarray
    mantissa: np.ndarray
    exponent: np.ndarray


@dataclass
class StoredHeads:
    """T x H heads as the cache holds them: q int64 [T, H, D], scale int64 [T, H] in 1..32767.

    value = q * scale * 2**unit / 127 in the head's fixed point, with one compile-time ``unit``: the
    scale is rounded up and the values then with it, so that it adds no error of its own.
    ``Coding`` says which q there are.
    """

    q: np.ndarray
    scale: np.ndarray


class Coding(Enum):
    """How the cache stores channels of a head.

    ``BYTES``: q in ±127.  ``NIBBLES``: q = 16 * code + offset, with codes of 4 bits (-8..7) and one offset (-112..127)
    for all channels; the 16 values of q lie evenly between the smallest channel and the largest, and include about 0.
    """

    BYTES = QMAX
    NIBBLES = 240

    @property
    def largest(self) -> int:
        """The largest magnitude of q."""
        return int(self.value)


class HeadNorm(NamedTuple):
    """RMSNorm over each head: ``gain`` int [D] in Q15, |gain| <= 32767, ``eps`` in the units of ``sum_of_squares``."""

    gain: np.ndarray
    pre_shift: int
    eps: int


def quantize_heads(
    x: np.ndarray,
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    norm: HeadNorm | None = None,
) -> QHeads:
    """Optional norm, optional RoPE, then int8 per head: x int32 [T, H, D]; cos, sin Q15 [T, D/2].

    value = q * mantissa * 2**exponent / 127 * 2**-f.  RoPE pairs i with i + D/2 (the Hugging
    Face convention) and works on 15-bit mantissas of the head.

    As in :func:`norm_quantize_vector` the int8 values do not depend on the norm, and its gain comes before
    them.  With one, sqrt(D) * 2**-(31 + pre_shift) takes the place of 2**-f.
    """
    y, mantissa, exponent = _head_mantissas(_gained(x, norm), cos, sin)
    q = round_shift(y * ((QMAX << HEAD_QSHIFT) // mantissa)[:, :, None], HEAD_QSHIFT)
    return QHeads(q, *_norm_scale(x, mantissa, exponent, norm))


def store_heads(
    x: np.ndarray,
    unit: int,
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    norm: HeadNorm | None = None,
) -> StoredHeads:
    """As :func:`quantize_heads`, with a scale in units of 2**unit.

    ``unit`` is at least -14, and no value after RoPE is larger than 32767 * 2**unit.  Raises
    ArithmeticError where one is.
    """
    y, top, exponent = _head_mantissas(_gained(x, norm), cos, sin)
    return _stored(y, top, *_norm_scale(x, top, exponent, norm), unit, norm is not None)


def store_parts(
    x: np.ndarray,
    unit: int,
    parts: Sequence[tuple[Coding, np.ndarray]],
    cos: np.ndarray | None = None,
    sin: np.ndarray | None = None,
    norm: HeadNorm | None = None,
) -> list[StoredHeads]:
    """As :func:`store_heads`, in parts with scales of their own: (coding, channels int [H, n]).

    No value after RoPE is larger than 30950 * 2**unit.
    """
    z, exponent = _rotated(_gained(x, norm), cos, sin)
    found = []
    for coding, channels in parts:
        part = np.take_along_axis(z, np.broadcast_to(channels, (len(z), *channels.shape)), axis=2)
        y, top, n = _mantissas(part, 1)
        if coding is Coding.NIBBLES:
            top = _half_range(y)
        scaled = _norm_scale(x, top, exponent + n, norm)
        stored = _stored(y, top, *scaled, unit, norm is not None, coding)
        found.append(stored)
    return found


def rotation_bits(head_dim: int) -> int:
    """Binary logarithm of the channels that a Hadamard rotation mixes: the largest power of two in ``head_dim``."""
    return (head_dim & -head_dim).bit_length() - 1


def rotate_heads(x: np.ndarray) -> np.ndarray:
    """Hadamard rotation of heads int64 [..., D], block by block, without its factor 2**(-rotation_bits / 2).

    Rotating twice multiplies by 2**rotation_bits.  Results are int32, modulo 2**32.
    """
    size, shape = 1 << rotation_bits(x.shape[-1]), x.shape
    half = 1
    while half < size:
        pairs = x.reshape(*shape[:-1], -1, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(shape)
        half *= 2
    return x.astype(np.int32).astype(I64)


def store_rotated(x: np.ndarray, unit: int) -> StoredHeads:
    """Heads as 4-bit codes of their Hadamard rotation times 2**-(rotation_bits // 2), which makes channels similar.

    No such value is larger than 30950 * 2**unit.
    """
    y, _, exponent = _mantissas(np.asarray(x, I64), 1)
    exponent = exponent - rotation_bits(x.shape[-1]) // 2
    z, top, n = _mantissas(rotate_heads(y), 1)
    top = _half_range(z)
    return _stored(z, top, top, exponent + n, unit, False, Coding.NIBBLES)


def _half_range(y: np.ndarray) -> np.ndarray:
    """Half of the distance of the largest from the smallest of the channels and 0, times 127/120, rounded up: 14 to
    16 bits [T, H] for y [T, H, n]."""
    low, high = np.minimum(y.min(axis=2), 0), np.maximum(y.max(axis=2), 0)
    half = np.maximum((high - low + 1) >> 1, 1 << (MANTISSA_BITS - 2))
    return (half * 271 + 255) >> 8


def _stored(
    y: np.ndarray,
    top: np.ndarray,
    mantissa: np.ndarray,
    exponent: np.ndarray,
    unit: int,
    normed: bool,
    coding: Coding = Coding.BYTES,
) -> StoredHeads:
    """Heads of y [T, H, n] with the scale mantissa * 2**exponent [T, H], as the cache holds them.

    ``top``: the mantissa before the norm."""
    # by how many bits the scale's unit is larger than the mantissa's
    right = np.clip(unit - exponent, 0, 31)
    scale = (mantissa + (np.int64(1) << right) - 1) >> right
    if not normed:
        reciprocal = (QMAX << HEAD_QSHIFT) // (scale << right)
    else:  # the values follow the scale that was rounded up
        reciprocal = (QMAX << HEAD_QSHIFT) // top
        reciprocal = np.where(right > 0, reciprocal * mantissa // (scale << right), reciprocal)
    # Only heads of zeros may have a unit larger than the scale's: any scale serves them, because epsilon alone
    # gives the norm of them a huge one.
    if ((exponent > unit) & y.any(axis=2)).any():
        raise ArithmeticError("a head is larger than its unit allows although bounded")
    values = y * reciprocal[:, :, None]
    if coding is Coding.BYTES:
        return StoredHeads(round_shift(values, HEAD_QSHIFT), scale)
    low = np.minimum(values.min(axis=2), 0)
    below = np.maximum(-round_shift(low, HEAD_QSHIFT), 1)[:, :, None]  # 1..240
    codes = round_shift(values + (below << HEAD_QSHIFT), HEAD_QSHIFT + 4)
    return StoredHeads(16 * codes - below, scale)


def _gained(x: np.ndarray, norm: HeadNorm | None) -> np.ndarray:
    x = np.asarray(x, I64)
    return x if norm is None else (x * norm.gain) >> 15


def _head_mantissas(
    x: np.ndarray, cos: np.ndarray | None, sin: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y [T, H, D] in 16 bits with y * 2**exponent the rotated heads, mantissa [T, H] of 15 bits, the
    largest |y| to within one, and exponent [T, H].  All that is shifted out is rounded down."""
    z, exponent = _rotated(x, cos, sin)
    y, top, n = _mantissas(z, 1 if cos is None else 1 << (MANTISSA_BITS - 1))
    return y, top, exponent + n


def _rotated(
    x: np.ndarray, cos: np.ndarray | None, sin: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """z [T, H, D] with z * 2**exponent the rotated heads, and exponent [T, H]."""
    exponent = np.zeros(x.shape[:2], I64)
    if cos is None or sin is None:
        return x, exponent
    exponent = np.maximum(bit_length(np.abs(x).max(axis=2)) - MANTISSA_BITS, 0)
    half = x.shape[2] // 2
    z = x >> exponent[:, :, None]
    a, b = z[:, :, :half], z[:, :, half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=2), exponent - 15


def _mantissas(z: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y [T, H, n] in 16 bits with y * 2**shift = z, the largest |y| of 15 bits and shift [T, H]."""
    top = np.maximum(np.abs(z).max(axis=2), least)
    n = bit_length(top) - MANTISSA_BITS
    right, left = np.maximum(n, 0), np.maximum(-n, 0)
    y = (z << left[:, :, None]) >> right[:, :, None]
    return y, (top << left) >> right, n


# of the factor 1 / rms, in addition to what the pre-shift drops: sqrt(D) * 2**pre_shift / ||x||
HEAD_NORM_MAX_REL_ERROR = 2.0**-13


def _norm_scale(
    x: np.ndarray, mantissa: np.ndarray, exponent: np.ndarray, norm: HeadNorm | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mantissa and exponent of heads of x, times 1 / rms where there is a norm."""
    if norm is None:
        return mantissa, exponent
    y = np.asarray(x, I64) >> norm.pre_shift
    return _normed(mantissa, exponent, (y * y).sum(axis=2) + norm.eps)
