"""ONNX versions of the primitives of ``numerics.fixed``, with equal names and integers."""

from __future__ import annotations

import numpy as np

from shrinkc.export.values import I64, POWERS, Number, Value
from shrinkc.numerics.fixed import EXP2_TABLE, INT32_MAX, RESIDUAL_BITS, SIGMOID_TABLE


def bit_length(v: Value) -> Value:
    """Return the number of bits of ``v``, by comparison with every power of two."""
    return (v.expand(-1) >= POWERS).cast(I64).sum(-1)


def saturate32(v: Value) -> Value:
    return v.builder.clip(v, -INT32_MAX, INT32_MAX)


def add_to_residual(x: Value, y: Value) -> Value:
    b, top = x.builder, 1 << RESIDUAL_BITS
    return b.clip(x + b.clip(y, -top, top - 1), -top, top - 1)


def round_shift(v: Value, s: Number) -> Value:
    """Return v / 2**s rounded half up, as floor(((v >> (s - 1)) + 1) / 2)."""
    if isinstance(s, int):
        if s <= 0:
            return v << -s
        return ((v >> (s - 1)) + 1) >> 1
    b = v.builder
    s = b.value(s)
    rounded = ((v >> (b.maximum(s, 1) - 1)) + 1) >> 1
    return b.where(s > 0, rounded, v << b.maximum(-s, 0))


def requantize(acc: Value, factor: Number, shift: Number) -> Value:
    return shift_saturated((acc * factor) >> 32, shift)


def shift_saturated(high: Value, shift: Number) -> Value:
    if isinstance(shift, int):
        return saturate32(round_shift(high, min(max(shift, -31), 30)))
    return saturate32(round_shift(high, high.builder.clip(high.builder.value(shift), -31, 30)))


def exp2_table(q9: Value) -> Value:
    entry = q9.builder.constant(EXP2_TABLE).take(q9.right(1) % 256)
    return entry.right(q9.right(9))


def sigmoid_q15(x16: Value) -> Value:
    b = x16.builder
    x16 = b.clip(x16, -(1 << 20), (1 << 20) - 1)
    entry = b.constant(SIGMOID_TABLE).take((x16 >> 12) + 256)
    slope = (entry + 32768) % 65536 - 32768
    return (entry + slope * (x16 % 4096)) >> 16


def isqrt32(v: Value) -> Value:
    """Return the integer square root: a float64 root, corrected by at most one."""
    root = v.builder.node("Sqrt", v.cast(np.float64)).cast(I64)
    root = root - (root * root > v).cast(I64)
    return root + (v >= (root + 1) * (root + 1)).cast(I64)


def rsqrt(total: Value) -> tuple[Value, Value]:
    b = total.builder
    bits = bit_length(total)
    shift = (bits - 31) - (bits - 31) % 2  # whichever of bits - 32 and bits - 31 is even
    scaled = b.where(shift >= 0, total.right(b.maximum(shift, 0)), total << b.maximum(-shift, 0))
    return b.constant(1 << 31).over(isqrt32(scaled)), shift >> 1
