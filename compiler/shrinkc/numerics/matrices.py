"""Products with quantised matrices, and embedding rows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from shrinkc.numerics.fixed import (
    I64,
    QMAX,
    requantize,
    round_shift,
    saturate32,
    shift_saturated,
)
from shrinkc.numerics.vectors import Q16Vector, QVector, quantize_q16, quantize_vector

_CACHED = 1 << 18


class Matrix(Protocol):
    """The attributes of a matrix [n, k] that a product needs, see ``ir.linear.QLinear``."""

    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None
    r: np.ndarray
    group: int
    cmax: int
    x_bits: int
    shift: int

    @property
    def low_rank(self) -> Adapter | None: ...

    def accumulate(self, x: QVector | Q16Vector) -> np.ndarray:
        """Return the exact acc, int64 [T, n]."""


class Adapter(Protocol):
    """Low-rank adapter: y += b @ quantise(a @ x)."""

    @property
    def a(self) -> Matrix: ...
    @property
    def b(self) -> Matrix: ...


def effective(q: np.ndarray, d: np.ndarray | None, b: np.ndarray | None, group: int) -> np.ndarray:
    """Return q * d - b as int64 [n, k], from q [n, k], and d and b [n, groups]; None stands for d = 1 or b = 0."""
    k = q.shape[1]
    w: np.ndarray = q.astype(I64)
    if d is not None:
        w *= np.repeat(d.astype(I64), group, axis=1)[:, :k]
    if b is not None:
        w -= np.repeat(b.astype(I64), group, axis=1)[:, :k]
    return w


def accumulate_q16(x: Q16Vector, weights: np.ndarray) -> np.ndarray:
    """Return the exact acc = sum_k q * x, int64 [T, n], computed by BLAS; ``weights`` is q as float64 [k, n]."""
    return np.rint(x.q.astype(np.float64) @ weights).astype(I64)


def product_type(d: np.ndarray | None, group: int) -> type[np.float32] | type[np.float64]:
    """Return the narrowest float type in which ``accumulate`` is exact.

    Sums are integers: float32 is exact for a group's sum below 2**24, float64 for all sums below 2**31."""
    return np.float32 if d is not None and group * 128 * QMAX < 1 << 24 else np.float64


def accumulate(
    x: QVector,
    weights: np.ndarray,
    d: np.ndarray | None,
    b: np.ndarray | None,
    group: int,
    drop: int,
) -> np.ndarray:
    """Return the exact acc of activations, int64 [T, n], computed by BLAS.

    ``acc = sum_g c[g] * round_shift(d[o, g] * sum_k q * x - b[o, g] * sum_k x, drop)``; ``weights`` is q transposed,
    [k, n], in ``product_type``.
    """
    if d is None:
        return np.rint(x.scaled(group) @ weights).astype(I64)
    k, n = weights.shape
    q = x.q.astype(weights.dtype)
    tokens = len(q)
    starts = np.arange(0, k, group)
    sums = np.add.reduceat(x.q, starts, axis=1).astype(np.int32)
    c = x.c.astype(np.int32)
    d = d.astype(np.int32)
    half = (1 << drop) >> 1
    out = np.zeros((tokens, n), np.int32)
    width = max(64, _CACHED // max(tokens, 1))  # rows at a time, for the processor's caches
    for first in range(0, n, width):
        rows = slice(first, first + width)
        acc = out[:, rows]
        for g, at in enumerate(starts):
            part = slice(at, at + group)
            t = (q[:, part] @ weights[part, rows]).astype(np.int32)
            t *= d[rows, g]
            if b is not None:
                t -= np.multiply.outer(sums[:, g], b[rows, g].astype(np.int32))
            t += half
            t >>= drop
            t *= c[:, g, None]
            acc += t
    return out.astype(I64)


FACTOR_DROP = 16  # bits of a row's multiplier times a mantissa that are rounded off
R_MAX = 65534  # largest multiplier: times a mantissa of 2**15, and rounded, it is below 2**31


def rescale(w: Matrix, acc: np.ndarray, x: QVector | Q16Vector) -> np.ndarray:
    """Convert acc [T, n] of ``x`` to the fixed-point format of the matrix's result.

    The row multiplier times the token's mantissa is rounded to its upper 15 bits (error at most 2**-14 of the largest
    row's), because a core multiplies half words in one cycle and words in five.  The product's high word is rounded
    half up: with massive activations one row's multiplier is hundreds of times the others', and rounding the others
    down would add a bias of half a unit each to the residual stream.
    """
    factor = w.r.astype(I64)[None, :] * x.mantissa[:, None]
    factor = round_shift(factor, FACTOR_DROP) << FACTOR_DROP
    high = round_shift(np.asarray(acc, I64) * factor, 32)
    return shift_saturated(high, w.shift - x.exponent[:, None])


def linear(w: Matrix, x: QVector | Q16Vector) -> np.ndarray:
    """Return the integer matrix product, with the adapter's, as int64 [T, n] in int32 range."""
    y = rescale(w, w.accumulate(x), x)
    if w.low_rank is not None:
        a, b = w.low_rank.a, w.low_rank.b
        middle = rescale(a, a.accumulate(x), x)
        t = quantize_q16(middle, b.x_bits) if b.x_bits else quantize_vector(middle, b.group, b.cmax)
        y = saturate32(y + rescale(b, b.accumulate(t), t))
    return y


def embed(w: Matrix, ids: np.ndarray, factor: int, shift: int) -> np.ndarray:
    """Return embedding rows ``ids`` in the residual stream's fixed-point format, int64 [T, k]:
    requantize((q * d - b) * r[row], factor, shift)."""
    d = None if w.d is None else w.d[ids]
    b = None if w.b is None else w.b[ids]
    rows = effective(w.q[ids], d, b, w.group)
    return requantize(rows * w.r[ids].astype(I64)[:, None], factor, shift)
