"""Quantised matrices: the integers of one linear layer and what they mean."""

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
GROUP_SUM_MAX = 1 << 30  # of the kernel's folded sum (StorageFormat.fold)
WEIGHT_MAX = 32767  # |q * d - b|: with a row's uint16 scale it makes an int32 (embedding)
_CHUNK = 1 << 20  # weights


@dataclass
class QLinear:
    """An integer matrix [n, k] and its scales.

    weight[o, k] = (q[o, k] * d[o, g] - b[o, g]) * row_scale[o], g = k // group, and the result in
    fixed point with ``frac`` bits is ``acc * factor * 2**-(32 + shift - exponent)``, its high word and the
    shift rounded half up (numerics/matrices.py: rescale), with the upper 15 bits of ``r[o] * mantissa`` as
    factor, where
    ``acc = sum_g c[g] * round_shift(d[o, g] * sum_k q * x - b[o, g] * sum_k x, drop)`` is an exact
    int32: ``drop`` bits of a group's sum make room for it.

    q int8 [n, k] in the range of its storage format; d uint8 [n, groups] or None (all one, drop 0);
    b int16 [n, groups] or None (all zero), only next to d; r uint16 [n], at most R_MAX.
    ``pad``: inputs to a multiple of which a group is stored: those of the format's unit, for the
    first half of an adapter those of its matrix if they are more.  ``engine`` runs it and
    has decided ``group`` and ``pad``; beyond these it changes no integer.
    ``zero_points``: b is d times signed integers of ZERO_BITS bits, which are stored in its place.
    ``x_bits``: bits of the 16-bit activations that it reads as one group, with d None and acc the plain
    sum of q * x; 0: it reads int8 ones with group scales up to ``cmax``.
    ``row_scale`` float64 [n] is kept for bounds, reports and tests; the device has r.
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
        """int8 [n, groups]: b / d, of a matrix with zero points."""
        assert self.zero_points and self.b is not None and self.d is not None
        return (self.b // self.d).astype(np.int8)

    def all(self) -> list[QLinear]:
        """Itself, and the halves of its adapter."""
        return [self] + ([self.low_rank.a, self.low_rank.b] if self.low_rank else [])

    def effective(self) -> np.ndarray:
        """q * d - b as int64 [n, k]: the matrix that q of the activations is multiplied with."""
        return effective(self.q, self.d, self.b, self.group)

    def dequantized(self) -> np.ndarray:
        """float64 [n, k] in the units of the float model."""
        out: np.ndarray = self.effective() * self.row_scale[:, None]
        return out

    def group_bounds(self) -> np.ndarray:
        """int64 [n, groups]: the largest |sum| that a group can give before ``drop``."""
        return magnitudes(self.q, self.d, self.b, self.group)[1]

    def unit_bound(self) -> int:
        """Largest |acc| that c = 1 everywhere could give."""
        return unit_bound(self.group_bounds(), self.drop)

    def acc_bound(self) -> int:
        """Largest |acc| that any activations give."""
        if self.x_bits:
            return q16_bound(self.group_bounds(), self.x_bits)
        return self.unit_bound() * self.cmax

    def accumulate(self, x: QVector | Q16Vector) -> np.ndarray:
        """Exact acc int64 [T, n] of activations."""
        if isinstance(x, Q16Vector):
            return accumulate_q16(x, self._transposed(np.float64))
        table = self._transposed(product_type(self.d, self.group))
        return accumulate(x, table, self.d, self.b, self.group, self.drop)

    def _transposed(self, dtype: DTypeLike) -> np.ndarray:
        """q.T [k, n] in ``dtype``, made once."""
        cached: np.ndarray | None = getattr(self, "_cached", None)
        if cached is None:
            cached = np.ascontiguousarray(self.q.T.astype(dtype))
            self._cached = cached
        return cached


def magnitudes(
    q: np.ndarray, d: np.ndarray | None, b: np.ndarray | None, group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of the effective weights: the largest magnitude of each row, int64 [n], and 127 * sum |w| per
    group, int64 [n, groups].  Some rows at a time, because int64 is eight times the matrix."""
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
    """All rows of a matrix [n, k], so many at a time that copies in 64 bit stay small."""
    step = max(1, _CHUNK // max(k, 1))
    return (slice(at, at + step) for at in range(0, n, step))


def unit_bound(bounds: np.ndarray, drop: int) -> int:
    """Largest |acc| with c = 1 everywhere, of groups up to ``bounds`` [n, groups]."""
    return int(((bounds + ((1 << drop) >> 1)) >> drop).sum(axis=1).max(initial=0))


@dataclass
class LowRank:
    """The adapter y += b @ quantise(a @ x) next to a matrix; a shares the input of its matrix."""

    a: QLinear
    b: QLinear


def q16_bound(bounds: np.ndarray, x_bits: int) -> int:
    """Largest |acc| of 16-bit activations of that many bits; ``bounds`` [n, 1] are 127 * sum |q|."""
    return int(bounds.max(initial=0)) // QMAX << x_bits


def largest_x_bits(bounds: np.ndarray) -> int:
    """Most bits of 16-bit activations that keep every accumulator in int32; 0 if none do."""
    fit = (ACC_MAX // max(q16_bound(bounds, 0), 1)).bit_length() - 1
    return max(min(fit, WIDE_BITS), 0)


def largest_cmax(unit_bound: int) -> int:
    """Largest group scale in 1..255 that keeps every accumulator in int32; 0 if none does."""
    return min(CMAX, ACC_MAX // max(unit_bound, 1))
