"""Quantised matrices: the integers of one linear layer and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shrinkc.numerics.fixed import I64, QMAX

ROW_BLOCK = 8  # rows the kernels walk together; storage is padded to it, never the result
SEGMENT = 64  # activation group along K where the weights ask for nothing smaller
SEGMENT_MAX = 96
CMAX = 255
ACC_MAX = (1 << 31) - 1


def segment_size(k: int, group: int | None) -> int:
    """Elements per activation segment for a matrix [*, k] with weight groups of ``group``.

    A segment never crosses a weight group.  Per-channel weights use 64 (measured on SmolLM2:
    +0.5 % perplexity, against +3.9 % with one scale per token).
    """
    if group is None:
        return min(SEGMENT, k)
    if group <= SEGMENT_MAX:
        return group
    divisors = [s for s in range(SEGMENT_MAX, 15, -1) if group % s == 0]
    return divisors[0] if divisors else group


@dataclass
class QLinear:
    """An integer matrix [n, k] and its scales.

    weight[o, k] = (q[o, k] - z[o, g]) * d[o, g] * row_scale[o], g = k // seg, and the result in
    fixed point with ``frac`` bits is ``requantize(acc, r[o] * mantissa, shift - exponent)`` where
    ``acc = sum_g c[g] * d[o, g] * sum_k (q - z) * x`` is an exact int32.

    q int8 [n, k] (4 bit: -8..7, 8 bit: -127..127, asymmetric 8 bit: -128..127);
    d uint8 [n, nseg] or None (all one); z int8 [n, nseg] or None (all zero);
    r uint16 [n].  ``row_scale`` float64 [n] is kept for reports and tests only.
    """

    name: str
    bits: int
    group: int | None
    seg: int
    q: np.ndarray
    d: np.ndarray | None
    z: np.ndarray | None
    r: np.ndarray
    shift: int
    cmax: int
    frac: int
    row_scale: np.ndarray
    low_rank: LowRank | None = None

    @property
    def n(self) -> int:
        return int(self.q.shape[0])

    @property
    def k(self) -> int:
        return int(self.q.shape[1])

    @property
    def nseg(self) -> int:
        return -(-self.k // self.seg)

    def per_element(self, table: np.ndarray | None, default: int) -> np.ndarray:
        """A [n, nseg] table spread over [n, k]."""
        if table is None:
            return np.full((self.n, self.k), default, I64)
        return np.repeat(table.astype(I64), self.seg, axis=1)[:, : self.k]

    def effective(self) -> np.ndarray:
        """(q - z) * d as int64 [n, k]: the matrix that meets q * c of the activations."""
        w = self.q.astype(I64)
        if self.z is not None:
            w = w - self.per_element(self.z, 0)
        if self.d is not None:
            w = w * self.per_element(self.d, 1)
        return w

    def dequantized(self) -> np.ndarray:
        """float64 [n, k] in the units of the float model."""
        out: np.ndarray = self.effective() * self.row_scale[:, None]
        return out

    def unit_bound(self) -> int:
        """Largest |acc| that c = 1 everywhere could give."""
        return int(np.abs(self.effective()).sum(axis=1).max(initial=0)) * QMAX

    def accumulate(self, x_scaled: np.ndarray) -> np.ndarray:
        """Exact acc int64 [T, n] of activations q * c (float64 [T, k]) through float64 BLAS.

        Exact because every partial sum is an integer below 2**31.
        """
        return np.rint(x_scaled @ self.float_t()).astype(I64)

    def float_t(self) -> np.ndarray:
        """effective().T as float64, made once."""
        cached: np.ndarray | None = getattr(self, "_float_t", None)
        if cached is None:
            cached = np.ascontiguousarray(self.effective().T.astype(np.float64))
            self._float_t = cached
        return cached


@dataclass
class LowRank:
    """The side path y += b @ quantise(a @ x) next to a matrix; a shares the input of its matrix."""

    a: QLinear
    b: QLinear


def largest_cmax(unit_bound: int) -> int:
    """Largest segment scale in 1..255 that keeps every accumulator in int32; 0 if none does."""
    return min(CMAX, ACC_MAX // max(unit_bound, 1))
