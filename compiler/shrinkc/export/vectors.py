"""ONNX versions of ``numerics.vectors``: activations and heads with dynamic scales.

In shapes, T is the number of tokens, a dynamic axis of the graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shrinkc.export.fixed import bit_length, requantize, round_shift, rsqrt
from shrinkc.export.values import I64, Value
from shrinkc.numerics.fixed import MANTISSA_BITS, QMAX, QSHIFT
from shrinkc.numerics.vectors import (
    HEAD_QSHIFT,
    INT32_BITS,
    SHARES,
    WIDE_MANTISSA,
    HeadNorm,
    places_of_share,
    square_drop,
)


class Vector(NamedTuple):
    """QVector, or Q16Vector if ``c`` [T, groups] is None: q [T, K], mantissa and exponent [T].

    A mantissa common to all tokens is [1]."""

    q: Value
    mantissa: Value
    exponent: Value
    c: Value | None = None


class Heads(NamedTuple):
    """QHeads: q [T, H, D], mantissa and exponent [T, H]."""

    q: Value
    mantissa: Value
    exponent: Value


class StoredHeads(NamedTuple):
    """Heads as the cache holds them: q [T, H, D], scale [T, H]."""

    q: Value
    scale: Value


def groups_of(k: int, group: int) -> np.ndarray:
    """Return the group index of each of k inputs."""
    found: np.ndarray = np.arange(k) // group
    return found


def quantize_vector(x: Value, k: int, group: int, cmax: int) -> Vector:
    """Quantise x [T, k] to int8 with group scales up to ``cmax``."""
    b = x.builder
    groups = -(-k // group)
    top = x.abs().padded(groups * group - k).reshape(0, groups, group).max(2)
    token_max = top.max(1)
    exponent = b.where(token_max > 0, bit_length(token_max) - MANTISSA_BITS, 0)
    mantissa = b.where(token_max > 0, round_shift(token_max, exponent), 1 << 14)
    x15 = round_shift(x, exponent.expand(1))
    top15 = round_shift(top, exponent.expand(1))
    m = mantissa.expand(1)
    c = b.maximum((top15 * cmax + m - 1).over(m), 1)
    limit = (m * c + (cmax - 1)).over(cmax)
    reciprocal = b.constant(QMAX << QSHIFT).over(limit)
    q = round_shift(x15 * reciprocal.take(groups_of(k, group), axis=1), QSHIFT)
    return Vector(q, mantissa, exponent, c)


def quantize_q16(x: Value, bits: int) -> Vector:
    exponent = _bits(x, 1) - bits
    q = round_shift(x, exponent.expand(1))
    return Vector(q, x.builder.constant([WIDE_MANTISSA]), exponent)


def norm_quantize_q16(
    x: Value, k: int, bits: int, pre_shift: int, eps: int, gain: np.ndarray
) -> Vector:
    """Apply RMSNorm with weights ``gain`` int32 [k] to x [T, k] and quantise to ``bits``."""
    b = x.builder
    places, drop = places_of_share(k), square_drop(k)
    lacks = SHARES * places - k
    z = x.padded(lacks).reshape(0, SHARES, places)
    up = INT32_BITS - _bits(z, 2)
    z = z << up.expand(2)
    squares = _squares(z, drop, 2) << 2 * (drop - pre_shift)
    total = squares.right(up + up).sum(1) + eps
    y = (z * np.pad(gain.astype(I64), (0, lacks)).reshape(SHARES, places)) >> 32
    largest = _bits(y, 2) - up
    most = largest.max(1)
    right = b.minimum(most.expand(1) + up - bits, INT32_BITS)
    q = round_shift(y, right.expand(2)).reshape(0, SHARES * places).part(0, k, 1)
    return Vector(q, *_normed(b.constant([WIDE_MANTISSA]), most + (1 - bits), total))


def norm_values(
    x: Value, pre_shift: int, eps: int, gain: np.ndarray, factor: int, exponent: int
) -> Value:
    b = x.builder
    total = _squares(x, pre_shift, 1) + eps
    r, j = rsqrt(total)
    up = b.maximum((INT32_BITS - pre_shift) - ((bit_length(total) + 1) >> 1), 0)
    z = ((x << up.expand(1)) * gain) >> 32
    shift = up + j + (pre_shift - exponent - 2)
    return requantize(z, (r * factor).expand(1), shift.expand(1))


def _bits(x: Value, axis: int) -> Value:
    """Return the number of bits of the largest magnitude along ``axis``, at least 1."""
    return bit_length(x.builder.maximum(x.abs().max(axis), 1))


def normed(v: Vector, x: Value, pre_shift: int, eps: int) -> Vector:
    """Scale ``v``, quantised from x [T, K] times weights, to the RMSNorm of x."""
    mantissa, exponent = _normed(v.mantissa, v.exponent, _squares(x, pre_shift, 1) + eps)
    return v._replace(mantissa=mantissa, exponent=exponent)


def _squares(x: Value, pre_shift: int, axis: int) -> Value:
    y = x >> pre_shift
    return (y * y).sum(axis)


def _normed(mantissa: Value, exponent: Value, total: Value) -> tuple[Value, Value]:
    r, j = rsqrt(total)
    product = mantissa * r
    extra = bit_length(product) - MANTISSA_BITS
    return product.right(extra), exponent + extra - j


# ---- heads: x [T, H, D]; cos and sin [T, 1, D / 2], or None without RoPE ----

Rope = tuple[Value, Value] | None


def quantize_heads(x: Value, d: int, rope: Rope, norm: HeadNorm | None) -> Heads:
    y, mantissa, exponent = _head_mantissas(_gained(x, norm), d, rope)
    reciprocal = x.builder.constant(QMAX << HEAD_QSHIFT).over(mantissa)
    q = round_shift(y * reciprocal.expand(2), HEAD_QSHIFT)
    if norm is None:
        return Heads(q, mantissa, exponent)
    total = _squares(x, norm.pre_shift, 2) + norm.eps
    return Heads(q, *_normed(mantissa, exponent, total))


def store_heads(x: Value, d: int, unit: int, rope: Rope, norm: HeadNorm | None) -> StoredHeads:
    b = x.builder
    y, top, exponent = _head_mantissas(_gained(x, norm), d, rope)
    if norm is None:
        scale, right = _stored_scale(top, exponent, unit)
        reciprocal = b.constant(QMAX << HEAD_QSHIFT).over(scale << right)
    else:
        total = _squares(x, norm.pre_shift, 2) + norm.eps
        mantissa, exponent = _normed(top, exponent, total)
        scale, right = _stored_scale(mantissa, exponent, unit)
        reciprocal = b.constant(QMAX << HEAD_QSHIFT).over(top)
        followed = (reciprocal * mantissa).over(scale << right)
        reciprocal = b.where(right > 0, followed, reciprocal)
    return StoredHeads(round_shift(y * reciprocal.expand(2), HEAD_QSHIFT), scale)


def _gained(x: Value, norm: HeadNorm | None) -> Value:
    return x if norm is None else (x * norm.gain.astype(I64)) >> 15


def _head_mantissas(x: Value, d: int, rope: Rope) -> tuple[Value, Value, Value]:
    b, z = x.builder, x
    shifted: Value | None = None
    least = 1
    if rope is not None:
        shifted = b.maximum(bit_length(z.abs().max(2)) - MANTISSA_BITS, 0)
        z = z >> shifted.expand(2)
        first, second = z.part(0, d // 2, 2), z.part(d // 2, d, 2)
        cos, sin = rope
        z = b.concat([first * cos - second * sin, second * cos + first * sin], axis=2)
        shifted = shifted - 15
        least = 1 << (MANTISSA_BITS - 1)
    top = b.maximum(z.abs().max(2), least)
    n = bit_length(top) - MANTISSA_BITS
    right, left = b.maximum(n, 0), b.maximum(-n, 0)
    y = (z << left.expand(2)) >> right.expand(2)
    return y, (top << left).right(right), n if shifted is None else shifted + n


def _stored_scale(mantissa: Value, exponent: Value, unit: int) -> tuple[Value, Value]:
    b = mantissa.builder
    right = b.clip(unit - exponent, 0, 31)
    return (mantissa + (b.constant(1) << right) - 1).right(right), right
