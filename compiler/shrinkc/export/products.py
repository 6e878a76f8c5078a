"""ONNX versions of ``numerics.matrices``, ``attention`` and ``gating``."""

from __future__ import annotations

import numpy as np

from shrinkc.export.fixed import (
    bit_length,
    exp2_table,
    requantize,
    round_shift,
    saturate32,
    shift_saturated,
    sigmoid_q15,
)
from shrinkc.export.values import I64, Value
from shrinkc.export.vectors import (
    Heads,
    StoredHeads,
    Vector,
    groups_of,
    quantize_q16,
    quantize_vector,
)
from shrinkc.ir.linear import QLinear
from shrinkc.numerics.attention import SCORE_SHIFTS, SoftmaxScale
from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.numerics.gating import GELU_CUBIC, GELU_LINEAR, GELU_MOST
from shrinkc.numerics.matrices import FACTOR_DROP


def linear(w: QLinear, x: Vector) -> Value:
    """Return w times x with its adapter, [T, n]."""
    y = rescale(w, accumulate(w, x), x)
    if w.low_rank is not None:
        a, b = w.low_rank.a, w.low_rank.b
        middle = rescale(a, accumulate(a, x), x)
        t = (
            quantize_q16(middle, b.x_bits)
            if b.x_bits
            else quantize_vector(middle, b.k, b.group, b.cmax)
        )
        y = saturate32(y + rescale(b, accumulate(b, t), t))
    return y


def rescale(w: QLinear, acc: Value, x: Vector) -> Value:
    scales = acc.builder.table(w.r, f"{w.name}.r").cast(I64)
    factor = x.mantissa.expand(1) * scales
    factor = round_shift(factor, FACTOR_DROP) << FACTOR_DROP
    return shift_saturated(round_shift(acc * factor, 32), w.shift - x.exponent.expand(1))


def accumulate(w: QLinear, x: Vector) -> Value:
    """Return the exact accumulator [T, n].  Products are int32, which holds all their sums."""
    b = x.q.builder
    table = b.table(w.q, f"{w.name}.q")  # int8 [n, k]
    if w.d is None:
        q = x.q if x.c is None else x.q * x.c.take(groups_of(w.k, w.group), axis=1)
        return (q.cast(np.int32) @ table.transpose(1, 0).cast(np.int32)).cast(I64)
    assert x.c is not None, "weights in groups read int8 activations"
    lacks = w.groups * w.group - w.k  # inputs missing in the last group
    by_group = table.padded(lacks).reshape(0, w.groups, w.group).transpose(1, 2, 0)
    q = x.q.padded(lacks).reshape(0, w.groups, w.group).transpose(1, 0, 2)
    sums = (q.cast(np.int32) @ by_group.cast(np.int32)).cast(I64)  # [groups, T, n]
    sums = sums * _by_group(b.table(w.d, f"{w.name}.d"))
    if w.b is not None:
        sums = sums - q.sum(2, keep=True) * _by_group(b.table(w.b, f"{w.name}.b"))
    sums = (sums + ((1 << w.drop) >> 1)) >> w.drop
    return (sums * x.c.transpose(1, 0).expand(2)).sum(0)


def _by_group(table: Value) -> Value:
    """Reshape scales or offsets [n, groups] to [groups, 1, n]."""
    return table.transpose(1, 0).expand(1).cast(I64)


def embed(w: QLinear, ids: Value, factor: int, shift: int) -> Value:
    """Return rows of the embedding, [T, k]."""
    b = ids.builder
    rows = b.table(w.q, f"{w.name}.q").take(ids).cast(I64)
    at = groups_of(w.k, w.group)
    if w.d is not None:
        rows = rows * b.table(w.d, f"{w.name}.d").take(ids).cast(I64).take(at, axis=1)
    if w.b is not None:
        rows = rows - b.table(w.b, f"{w.name}.b").take(ids).cast(I64).take(at, axis=1)
    scales = b.table(w.r, f"{w.name}.r").take(ids).cast(I64)
    return requantize(rows * scales.expand(1), factor, shift)


def attend(
    how: SoftmaxScale,
    q: Heads,
    k: StoredHeads,
    v: StoredHeads,
    sizes: tuple[int, int, int],
    seen: Value,
) -> Value:
    """Return attention of all heads, [T, heads * inputs]: q has T tokens, k and v have S positions.

    ``sizes``: (KV heads, query heads per KV head, inputs).  ``seen`` [T, S]: positions a token attends to.
    Axes of intermediate values are [KV heads, query heads per KV head, T, S].
    """
    b = q.q.builder
    kv, each, d = sizes

    def per_token(value: Value) -> Value:
        return value.reshape(0, kv, each).transpose(1, 2, 0).expand(3)

    product = per_token(q.mantissa) * how.mantissa
    extra = bit_length(product) - 16
    c = product.right(extra)
    c = c + (1 - c % 2)  # | 1
    shift = b.clip(-(extra + per_token(q.exponent) + (how.exponent + 9)), *SCORE_SHIFTS)
    queries = q.q.reshape(0, kv, each, d).transpose(1, 2, 0, 3)
    dot = queries @ k.q.transpose(1, 2, 0).expand(1)
    score = round_shift(-dot, how.dot_shift) * k.scale.transpose(1, 0).expand(1).expand(1)
    least = b.where(seen, score, 1 << 31).min(3, keep=True)
    delta = b.where(seen, score - least, 0).right(shift - 18)
    delta = b.minimum(delta, (1 << 16) - 1)
    p = b.where(seen, exp2_table((delta * c).right(18)), 0)
    total = p.sum(3, keep=True)
    scales = v.scale.transpose(1, 0).expand(1).expand(1)
    largest = b.where(seen, scales, 0).max(3, keep=True)
    drop = bit_length(largest) + (16 - how.weight_bits)
    weight = round_shift(p * scales, drop)
    acc = weight @ v.q.transpose(1, 0, 2).expand(1)
    z_shift = bit_length(total) - 16
    reciprocal = b.constant(1 << 31).over(total.right(z_shift))
    mean = _mean(acc, reciprocal << 14, z_shift - drop + (20 - how.v_unit - how.extra_bits))
    return mean.transpose(2, 0, 1, 3).reshape(0, kv * each * d)


def _mean(acc: Value, factor: Value, shift: Value) -> Value:
    b = acc.builder
    high = (acc * factor) >> 32
    left, right = b.clip(-shift, 0, 31), b.clip(shift, 0, 31)
    limit = b.constant(INT32_MAX).right(left)
    return round_shift(b.clip(high, -limit, limit - 1) << left, right)


def _gelu_argument(x16: Value) -> Value:
    s = (x16.builder.clip(x16, -GELU_MOST, GELU_MOST) + 8) >> 4
    return (s * ((((s * s) >> 12) * GELU_CUBIC >> 16) + GELU_LINEAR)) >> 10


def silu_mul(y: Value, width: int, gate_shift: int, shift: int, up_shift: int, gelu: bool) -> Value:
    gate, up = y.part(0, width, 1), y.part(width, 2 * width, 1)
    argument = saturate32(round_shift(gate, gate_shift))
    sigma = sigmoid_q15(_gelu_argument(argument) if gelu else argument)
    silu = round_shift(gate * sigma, 16) << shift
    return (silu * (up << up_shift)) >> 32
