"""Round-to-nearest quantisation of one matrix: scales are fixed first, then weights rounded.

Row scales live on the grid that the device multiplies with (uint16 against the layer's largest),
group scales on a grid of 1..127 against their row.  Both are rounded up before the weights are
rounded with exactly those scales, so no scale carries an error of its own.
"""

from __future__ import annotations

import math

import numpy as np

from shrinkc.core.errors import QuantizeError
from shrinkc.ir.linear import ACC_MAX, QLinear, largest_cmax, segment_size
from shrinkc.numerics.fixed import QMAX

D_MAX = 127
R_MAX = 65535
# Shrinking a 4-bit group's range trades clipping for resolution; tried per group, least
# squared error kept.
CLIP_CANDIDATES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.75)


def check_groups(inputs: dict[str, int], group: int | None, short_last: bool) -> None:
    """Refuse a group size that does not divide the inputs of a matrix, naming all of them.

    ``inputs``: matrix name -> K.  ``short_last`` allows a shorter last group.
    """
    if group is None:
        return
    if group < 1:
        raise QuantizeError(f"--group {group} is not usable.", "allowed: 1 and more.")
    bad = {name: k for name, k in inputs.items() if k % group}
    if bad and not short_last:
        near = [
            g
            for g in (128, 96, 64, 48, 32, 24, 16, 12, 8, 4)
            if not any(k % g for k in inputs.values())
        ]
        raise QuantizeError(
            f"group size {group} does not divide the inputs of "
            + ", ".join(f"{name} ({k})" for name, k in bad.items())
            + ".",
            f"group sizes that divide all: {', '.join(map(str, near)) or 'none of the usual ones'}; or "
            "--short-last-group to let the last group of a row be shorter; or no --group for one "
            "scale per row.",
        )


def _levels(bits: int) -> tuple[int, int]:
    return (-8, 7) if bits == 4 else (-QMAX, QMAX)


def _symmetric_scale(w: np.ndarray, bits: int) -> np.ndarray:
    """Least-squares scale over CLIP_CANDIDATES for groups w [..., G]; 8 bit: the maximum."""
    low, high = _levels(bits)
    top = np.abs(w).max(axis=-1)
    if bits == 8:
        return top / high
    best = np.full(top.shape, np.inf)
    scale = top / high
    for factor in CLIP_CANDIDATES:
        trial = np.maximum(top * factor / high, 1e-30)
        error = (
            (np.clip(np.rint(w / trial[..., None]), low, high) * trial[..., None] - w) ** 2
        ).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, trial, scale)
    return scale


def quantize_matrix(
    name: str,
    weight: np.ndarray,
    *,
    bits: int,
    group: int | None,
    asymmetric: bool,
    kappa: float,
    frac: int,
    cmax_limit: int = 255,
    exponent_max: int | None = None,
) -> QLinear:
    """Quantise float [n, k].

    ``kappa`` is the unit of the input's mantissa times cmax: the input is
    q * c * mantissa * 2**exponent * kappa / cmax.  ``frac`` is the result's fraction bits; with
    ``exponent_max``, the largest exponent an input can have, it is lowered until the final shift
    is to the right for every input: more bits than the accumulator has would be made up.
    Raises QuantizeError when no accumulator bound is possible.
    """
    n, k = weight.shape
    seg = segment_size(k, group)
    grouped = group is not None or asymmetric
    width = group if group is not None else k
    groups = -(-k // width)
    # zeros behind a shorter last group change neither its range nor its error
    w = np.zeros((n, groups * width))
    w[:, :k] = weight
    w = w.reshape(n, groups, width)
    low, high = _levels(bits)
    if asymmetric:
        low, high = (-8, 7) if bits == 4 else (-128, 127)
        spread = np.maximum(w.max(axis=-1), 0) - np.minimum(w.min(axis=-1), 0)
        raw = spread / (high - low)
    else:
        raw = _symmetric_scale(w, bits)
    raw = np.maximum(raw, 1e-30)
    d_levels = D_MAX if group is not None else 1

    def quantised(row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        d = np.clip(np.ceil(raw / row[:, None] - 1e-9), 1, d_levels)
        step = (d * row[:, None])[..., None]
        if not asymmetric:
            return np.clip(np.rint(w / step), low, high), d, None
        zero = np.clip(np.rint(low - np.minimum(w.min(axis=-1), 0) / step[..., 0]), low, high)
        return np.clip(np.rint(w / step) + zero[..., None], low, high), d, zero

    def bound(q: np.ndarray, d: np.ndarray, zero: np.ndarray | None) -> int:
        magnitude = np.abs(q if zero is None else q - zero[..., None]).sum(axis=-1) * d
        return int(magnitude.sum(axis=-1).max()) * QMAX

    row = raw.max(axis=-1) / d_levels
    cmax = min(cmax_limit, largest_cmax(bound(*quantised(row))))
    for _ in range(4):
        # the exponent that puts the largest row multiplier into 16 bits, then rows rounded up
        if cmax < 1:
            break
        if exponent_max is not None:
            room = math.log2(R_MAX * cmax / (row.max() * kappa))
            frac = min(frac, math.floor(room) - 32 - exponent_max - 1)
        unit = kappa / cmax * 2.0**frac
        shift = math.floor(math.log2(R_MAX / (row.max() * unit))) - 32
        r = np.clip(np.ceil(row * unit * 2.0 ** (32 + shift) - 1e-6), 1, R_MAX)
        row_scale = r / (unit * 2.0 ** (32 + shift))
        q, d, zero = quantised(row_scale)
        allowed = largest_cmax(bound(q, d, zero))
        if allowed >= cmax:
            break
        cmax = allowed
    else:
        raise AssertionError(f"{name}: cmax did not settle")
    if cmax < 1:
        raise QuantizeError(
            f"{name}: {k} inputs at {bits} bit do not fit an int32 accumulator of {ACC_MAX}.",
            "use 4-bit weights or a narrower matrix.",
        )

    def table(values: np.ndarray, dtype: type) -> np.ndarray:
        """[n, groups] -> [n, nseg] by repeating a group's entry over its segments."""
        if group is None:
            return np.repeat(values, -(-k // seg), axis=1).astype(dtype)
        return np.repeat(values, group // seg, axis=1)[:, : -(-k // seg)].astype(dtype)

    return QLinear(
        name=name,
        bits=bits,
        group=group,
        seg=seg,
        q=np.ascontiguousarray(q.reshape(n, -1)[:, :k]).astype(np.int8),
        d=table(d, np.uint8) if grouped else None,
        z=table(zero, np.int8) if zero is not None else None,
        r=r.astype(np.uint16),
        shift=int(shift),
        cmax=int(cmax),
        frac=frac,
        row_scale=row_scale,
    )
