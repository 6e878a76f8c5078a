"""Quantised matrices of the IR, and bounds of their results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from shrinkc.engines import CORES
from shrinkc.numerics.fixed import I64, QMAX
from shrinkc.numerics.matrices import accumulate, accumulate_q16, effective, product_type
from shrinkc.numerics.vectors import WIDE_BITS, Q16Vector, QVector
from shrinkc.storage import Offsets, StorageFormat, format_of

CMAX = 255
ACC_MAX = (1 << 31) - 1
GROUP_SUM_MAX = 1 << 30  # limit of the kernel's folded sum (StorageFormat.fold)
WEIGHT_MAX = 32767  # limit of |q * d - b|: times the uint16 row scale it fits int32 (embedding)
_CHUNK = 1 << 20  # weights


@dataclass
class QLinear:
    """An integer matrix [n, k] and its scales.

    weight[o, k] = (q[o, k] * d[o, g] - b[o, g]) * row_scale[o] with g = k // group.  The result with ``frac``
    fraction bits is ``acc * factor * 2**-(32 + shift - exponent)`` (numerics/matrices.py: rescale).  Here factor is the
    upper 15 bits of ``r[o] * mantissa``, and
    ``acc = sum_g c[g] * round_shift(d[o, g] * sum_k q * x - b[o, g] * sum_k x, drop)``
    is an exact int32; ``drop`` shifts the group sums right so that it fits.

    q int8 [n, k] in the range of the storage format; d uint8 [n, groups] or None (all one, drop 0);
    b int16 [n, groups] or None (all zero), only together with d; r uint16 [n], at most R_MAX.
    ``pad``: groups are stored padded to a multiple of this many inputs.  ``engine`` decides ``group`` and ``pad``, and
    no other integer.  ``zero_points``: b is d times a signed integer of ZERO_BITS bits, which is stored instead of b.
    ``x_bits`` > 0: the matrix reads 16-bit activations of this many bits as one group; d is None and acc is the sum of
    q * x.  0: it reads int8 activations with group scales up to ``cmax``.
    ``row_scale`` float64 [n] is for bounds, reports and tests; the device has r.
    """

    name: str
    bits: int
    group_size: int | None
    group: int
    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None
    r: np.ndarray
    drop: int
    shift: int
    cmax: int
    frac: int
    pad: int
    row_scale: np.ndarray
    low_rank: LowRank | None = None
    engine: str = CORES
    x_bits: int = 0
    zero_points: bool = False

    @property
    def format(self) -> StorageFormat:
        return format_of(self.bits)

    @property
    def n(self) -> int:
        return int(self.q.shape[0])

    @property
    def k(self) -> int:
        return int(self.q.shape[1])

    @property
    def groups(self) -> int:
        return -(-self.k // self.group)

    @property
    def offsets(self) -> Offsets:
        """How b is stored."""
        if self.b is None:
            return Offsets.NONE
        return Offsets.ZEROS if self.zero_points else Offsets.WIDE

    def zeros(self) -> np.ndarray:
        """Return the zero points b / d, int8 [n, groups]."""
        assert self.zero_points and self.b is not None and self.d is not None
        return (self.b // self.d).astype(np.int8)

    def all(self) -> list[QLinear]:
        """Return the matrix, and a and b of its adapter."""
        return [self] + ([self.low_rank.a, self.low_rank.b] if self.low_rank else [])

    def effective(self) -> np.ndarray:
        """Return q * d - b as int64 [n, k]: the weights in units of the row scale."""
        return effective(self.q, self.d, self.b, self.group)

    def dequantized(self) -> np.ndarray:
        """Return the weights as float64 [n, k]."""
        out: np.ndarray = self.effective() * self.row_scale[:, None]
        return out

    def group_bounds(self) -> np.ndarray:
        """Return the largest possible |sum| of each group before ``drop``, int64 [n, groups]."""
        return magnitudes(self.q, self.d, self.b, self.group)[1]

    def unit_bound(self) -> int:
        """Return the largest possible |acc| if all group scales of the activations are 1."""
        return unit_bound(self.group_bounds(), self.drop)

    def acc_bound(self) -> int:
        """Return the largest possible |acc|."""
        if self.x_bits:
            return q16_bound(self.group_bounds(), self.x_bits)
        return self.unit_bound() * self.cmax

    def accumulate(self, x: QVector | Q16Vector) -> np.ndarray:
        """Return the exact acc, int64 [T, n], of activations."""
        if isinstance(x, Q16Vector):
            return accumulate_q16(x, self._transposed(np.float64))
        q = self._transposed(product_type(self.d, self.group))
        return accumulate(x, q, self.d, self.b, self.group, self.drop)

    def _transposed(self, dtype: DTypeLike) -> np.ndarray:
        """Return q.T [k, n] in ``dtype``; converted once."""
        cached: np.ndarray | None = getattr(self, "_cached", None)
        if cached is None:
            cached = np.ascontiguousarray(self.q.T.astype(dtype))
            self._cached = cached
        return cached


def magnitudes(
    q: np.ndarray, d: np.ndarray | None, b: np.ndarray | None, group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return of the effective weights: the largest magnitude per row, int64 [n], and 127 * sum |w| per group,
    int64 [n, groups]."""
    n, k = q.shape
    starts = np.arange(0, k, group)
    largest, sums = np.empty(n, I64), np.empty((n, len(starts)), I64)
    for rows in row_slices(n, k):
        w = effective(
            q[rows], None if d is None else d[rows], None if b is None else b[rows], group
        )
        np.abs(w, out=w)
        largest[rows] = w.max(axis=1)
        sums[rows] = np.add.reduceat(w, starts, axis=1) * QMAX
    return largest, sums


def row_slices(n: int, k: int) -> Iterator[slice]:
    """Yield slices of the rows of a matrix [n, k], small enough for copies as int64 or float64."""
    step = max(1, _CHUNK // max(k, 1))
    return (slice(at, at + step) for at in range(0, n, step))


def unit_bound(bounds: np.ndarray, drop: int) -> int:
    """Return the largest |acc| if all activation scales are 1 and group sums reach ``bounds`` [n, groups]."""
    return int(((bounds + ((1 << drop) >> 1)) >> drop).sum(axis=1).max(initial=0))


@dataclass
class LowRank:
    """Low-rank adapter of a matrix: y += b @ quantise(a @ x), where a reads the input of the matrix."""

    a: QLinear
    b: QLinear


def q16_bound(bounds: np.ndarray, x_bits: int) -> int:
    """Return the largest |acc| of activations of ``x_bits`` bits; ``bounds`` [n, 1] are 127 * sum |q|."""
    return int(bounds.max(initial=0)) // QMAX << x_bits


def largest_x_bits(bounds: np.ndarray) -> int:
    """Return the most bits of 16-bit activations with which every accumulator fits int32; 0 if none."""
    fit = (ACC_MAX // max(q16_bound(bounds, 0), 1)).bit_length() - 1
    return max(min(fit, WIDE_BITS), 0)


def largest_cmax(unit_bound: int) -> int:
    """Return the largest group scale in 1..255 with which every accumulator fits int32; 0 if none."""
    return min(CMAX, ACC_MAX // max(unit_bound, 1))
