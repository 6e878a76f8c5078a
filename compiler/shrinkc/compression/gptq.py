"""GPTQ of one matrix (Frantar et al. 2022) in torch, for matrices that GPTQModel does not quantise.

Rows are quantised independently, in asymmetric groups along the inputs: ``w ≈ scale·q + offset`` with 16-bit floats,
or ``w ≈ scale·(q - zero)`` with integer zero points, which take fewer bytes.  An error δ of a row costs ``δᵀ H δ``,
where the Hessian H is the second moment of the inputs.  Columns are quantised one after another, and the following
columns compensate each error (equations 2 and 3 of the paper, with the Cholesky factor of H⁻¹).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shrinkc.compression.stages.context import Work
from shrinkc.importer.model import QuantizedWeight

if TYPE_CHECKING:
    from torch import Tensor

# bits -> ranges that are tried for a group, relative to its full range
SHRINK = {8: (1.0, 0.95), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)}
# passes over the weights: for each of SHRINK's ranges with points and without, when rounding, and of the error feedback
_RANGE_PASSES, _ROUND_PASSES, _FEEDBACK_PASSES = {False: 32, True: 56}, 8, 70
_COLUMN_CALLS = 35  # of torch, for a column that is rounded with error feedback
_ROWS = 8192  # rows that are quantised together; limits the memory
_LEAST = 2.0**-14  # least scale, for constant rows: the smallest normal float16

_Fit = Callable[["Tensor", "Tensor", int], "tuple[Tensor, Tensor]"]


def rounding_passes(bits: int, *, points: bool = False) -> int:
    """Return the passes over the weights of a fit of all groups, and of rounding without error feedback."""
    return _ROUND_PASSES + len(SHRINK.get(bits, SHRINK[4])) * _RANGE_PASSES[points]


def work_of_matrix(n: int, k: int, bits: int, *, points: bool = False) -> Work:
    """Return the work of :func:`quantize_matrix`; its tokens are through this matrix only."""
    passes = rounding_passes(bits, points=points) + _FEEDBACK_PASSES
    return Work(k / 2, n * k * passes, _COLUMN_CALLS * k)


def damped(moment: Tensor, share: float) -> Tensor:
    """Return ``moment`` scaled to a mean diagonal of 1, plus ``share`` times the identity."""
    import torch

    mean = moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
    return moment / mean + share * torch.eye(moment.shape[0], dtype=moment.dtype)


@dataclass(frozen=True)
class Weighting:
    """Weighting of errors: the diagonal of H [k], and the upper Cholesky factor of H⁻¹ [k, k]."""

    importance: Tensor
    factor: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> Weighting:
        """Return the weighting for ``hessian`` [k, k], which has to be positive definite: see :func:`damped`."""
        import torch

        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
        factor = torch.linalg.cholesky(inverse, upper=True)
        return cls(hessian.diagonal().float(), factor.float())


def quantize_matrix(
    weight: Tensor, weighting: Weighting, *, bits: int, group_size: int, points: bool = False
) -> QuantizedWeight:
    """Quantise ``weight`` [n, k] float32; ``group_size`` divides k.

    Scales are float16 values.  Offsets are float16 values too, or with ``points`` come from integer zero points of
    ``bits`` bits.
    """
    import torch

    fit = fit_points if points else fit_groups
    parts = [
        _quantize_rows(rows.clone(), weighting, bits, group_size, fit)
        for rows in weight.split(_ROWS)
    ]
    q, scale, offset = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return QuantizedWeight(bits, group_size, q, scale, offset)


def _quantize_rows(
    w: Tensor, weighting: Weighting, bits: int, group_size: int, fit: _Fit
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, scale and offset of ``w`` [n, k], which is overwritten by the compensated weights."""
    import torch

    n, k = w.shape
    factor = weighting.factor
    q = torch.empty(n, k, dtype=torch.uint8)
    scale, offset = torch.empty(n, k // group_size), torch.empty(n, k // group_size)
    for g, begin in enumerate(range(0, k, group_size)):
        end = begin + group_size
        s, o = fit(w[:, begin:end], weighting.importance[begin:end], bits)
        scale[:, g], offset[:, g] = s, o
        lost = torch.empty(n, group_size)
        for j in range(begin, end):
            q[:, j] = ((w[:, j] - o) / s).round_().clamp_(0, 2**bits - 1)
            lost[:, j - begin] = (w[:, j] - (q[:, j] * s + o)) / factor[j, j]
            w[:, j + 1 : end] -= lost[:, j - begin, None] * factor[j, j + 1 : end]
        w[:, end:] -= lost @ factor[begin:end, end:]
    return q, scale, offset


def fit_groups(w: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale (> 0) and offset per row of ``w`` [n, group_size] with the least weighted squared error.

    Tries ranges that are shrunk around the middle, and for each the best scale and offset for its integers (weighted
    regression).  Both results are float32 [n] with float16 values.
    """
    import torch

    top = 2**bits - 1
    low, high = w.amin(1), w.amax(1)
    middle, half = (high + low) / 2, (high - low) / 2
    best = torch.full_like(low, torch.inf)
    scale, offset = torch.ones_like(low), low.clone()
    share = importance / importance.sum()
    mean_w = w @ share
    for shrink in SHRINK.get(bits, SHRINK[4]):
        s = 2 * shrink * half / top
        o = middle - shrink * half
        for regress in (False, True):
            if regress:
                q = _integers(w, s, o, top)
                mean_q = q @ share
                variance = ((q - mean_q[:, None]) ** 2) @ share
                slope = ((q - mean_q[:, None]) * (w - mean_w[:, None])) @ share
                s = torch.where(variance > 0, slope / variance.clamp_min(1e-12), s)
                o = mean_w - s * mean_q
            s, o = s.half().float().clamp_min(_LEAST), o.half().float()
            error = ((_integers(w, s, o, top) * s[:, None] + o[:, None] - w) ** 2) @ share
            better = error < best
            best = torch.where(better, error, best)
            scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
    return scale, offset


def fit_points(w: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale (> 0) and offset (−scale · zero point) per row of ``w`` [n, group_size] with the least weighted
    squared error; zero points are integers of ``bits`` bits.

    Tries ranges that include zero and are shrunk around the middle, for each the two nearest zero points, and for
    these the best scale (weighted regression).  Both results are float32 [n]; scales are float16 values.
    """
    import torch

    top = 2**bits - 1
    low, high = w.amin(1).clamp_max(0), w.amax(1).clamp_min(0)
    share = importance / importance.sum()
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINK.get(bits, SHRINK[4]):
        full_scale = shrink * (high - low) / top
        between = top / 2 - (high + low) / 2 / full_scale.clamp_min(_LEAST)
        for z in (between.floor().clamp(0, top), between.ceil().clamp(0, top)):
            s = full_scale
            for regress in (False, True):
                if regress:
                    q = _integers(w, s, -s * z, top) - z[:, None]
                    square = q.square() @ share
                    s = torch.where(square > 0, (q * w) @ share / square.clamp_min(1e-12), s)
                s = s.half().float().clamp_min(_LEAST)
                error = ((_integers(w, s, -s * z, top) - z[:, None]) * s[:, None] - w) ** 2 @ share
                better = error < best
                best = torch.where(better, error, best)
                scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    return scale, -scale * zero


def _integers(w: Tensor, s: Tensor, o: Tensor, top: int) -> Tensor:
    return ((w - o[:, None]) / s.clamp_min(1e-12)[:, None]).round_().clamp_(0, top)
