"""Quantisation of one matrix: round-to-nearest of floats, and conversion of a checkpoint's integers.

The device stores row scales as uint16 multiples of one unit per matrix, and group scales as multiples
1..255 of their row's scale.  Float weights are rounded with these stored scales, so rounding the scales
adds no error.  For a checkpoint's integers, scales and offsets are rounded to the nearest stored value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shrinkc.core.errors import QuantizeError
from shrinkc.engines import CORES, engine_named
from shrinkc.importer.model import QuantizedWeight, Zero
from shrinkc.ir.linear import (
    ACC_MAX,
    CMAX,
    GROUP_SUM_MAX,
    WEIGHT_MAX,
    QLinear,
    largest_cmax,
    largest_x_bits,
    magnitudes,
    q16_bound,
    row_slices,
    unit_bound,
)
from shrinkc.numerics.fixed import QMAX
from shrinkc.numerics.matrices import R_MAX
from shrinkc.numerics.vectors import WIDE_MANTISSA
from shrinkc.storage import WIDEST, WIDTHS, ZERO_BITS, ZERO_MAX, ZERO_MIN, Offsets, format_of

D_MAX = 255
B_MAX = 32767
ZERO_POINT_TOLERANCE = 1e-3  # in quantisation steps: files hold 16-bit scales and offsets
# Fraction bits beyond those that make the final shift a right shift for every possible input.  A left
# shift is exact but slower, and rare: 1 of 1000 vectors of SmolLM2.  4 bits gave no better accuracy.
RARE_BITS = 2
# No groups of 4: with their scale they take 5 bytes, more than 8-bit weights without groups.
USUAL_GROUPS = (128, 96, 64, 48, 32, 24, 16, 12, 8)


def check_groups(
    inputs: dict[str, int],
    group: int | None,
    short_last: bool,
    saves: Callable[[int], bool] | None = None,
) -> None:
    """Raise QuantizeError if the group size does not divide the inputs of some matrices, and name them all.

    ``inputs`` maps matrix name to K.  ``short_last`` allows a shorter last group.  The message suggests only
    group sizes for which ``saves`` returns True: weights take fewer bytes than at the widest format.
    """
    if group is None:
        return
    if group < 1:
        raise QuantizeError(f"--group-size {group} is not usable.", "allowed: 1 and more.")
    bad = {name: k for name, k in inputs.items() if k % group}
    if bad and not short_last:
        near = [
            g
            for g in USUAL_GROUPS
            if not any(k % g for k in inputs.values()) and (saves is None or saves(g))
        ]
        less = "" if saves is None else f" and take fewer bytes than {WIDEST} bit"
        ways = [
            f"group sizes that divide all{less}: "
            + (", ".join(map(str, near)) or "none of the usual ones")
        ]
        if saves is None or saves(group):
            ways.append("--short-last-group to let the last group of a channel be shorter")
        ways.append("no --group-size, for one scale per output channel")
        if saves is not None:
            ways.append(f"{WIDEST} bit")
        raise QuantizeError(
            f"group size {group} does not divide the inputs of "
            + ", ".join(f"{name} ({k})" for name, k in bad.items())
            + ".",
            f"{'; or '.join(ways)}.",
        )


def _symmetric_scale(w: np.ndarray, bits: int) -> np.ndarray:
    """Return the scales [...] of groups w [..., G].

    MSE clipping tries the format's ``clip`` factors; a format without them scales the largest weight to ``high``."""
    form = format_of(bits)
    low, high = form.symmetric
    top = np.abs(w).max(axis=-1)
    if not form.clip:
        return top / high
    best = np.full(top.shape, np.inf)
    scale = top / high
    for factor in form.clip:
        trial = np.maximum(top * factor / high, 1e-30)
        error = (
            (np.clip(np.rint(w / trial[..., None]), low, high) * trial[..., None] - w) ** 2
        ).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, trial, scale)
    return scale


@dataclass(frozen=True)
class Output:
    """Scale of a matrix's input and fixed-point format of its result.

    An int8 input stands for q * c * mantissa * 2**exponent * kappa / cmax.  ``frac`` is the result's fraction
    bits.  With ``exponent_max``, the largest exponent of an int8 input, ``frac`` is lowered until the final
    shift is a right shift for nearly every input: a left shift would add bits that carry no information.
    """

    kappa: float
    frac: int
    exponent_max: int | None = None


@dataclass(frozen=True)
class _Integers:
    """Weights q int8 [n, k]; group scales d and offsets b, whole numbers as float [n, groups] or None."""

    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None


@dataclass(frozen=True)
class _Grouping:
    """Groups of a stored matrix of k inputs: ``group_size`` weights per scale (None: a whole row), stored in groups
    of ``group`` weights, padded to multiples of ``pad``, as ``engine`` requires."""

    name: str
    k: int
    bits: int
    group_size: int | None
    group: int
    pad: int
    engine: str
    wide: bool  # reads 16-bit activations

    @classmethod
    def of(
        cls, name: str, k: int, bits: int, group_size: int | None, grouped: bool, engine: str,
        shares_input: QLinear | None = None,
    ) -> _Grouping:  # fmt: skip
        """Ask the engine for the groups; ``shares_input``, a matrix with the same input, fixes them instead."""
        group, pad = engine_named(engine).cut_of(k, group_size, grouped, bits)
        if shares_input is not None:
            group, pad = shares_input.group, shares_input.pad
        wide = not grouped if shares_input is None else shares_input.x_bits > 0
        return cls(name, k, bits, group_size, group, pad, engine, wide)

    def per_group(self, values: np.ndarray | None, dtype: type) -> np.ndarray | None:
        """Expand [n, scales] to [n, groups]: repeat each scale for all stored groups that share it."""
        if values is None:
            return None
        groups = -(-self.k // self.group)
        times = groups if self.group_size is None else self.group_size // self.group
        return np.repeat(values, times, axis=1)[:, :groups].astype(dtype)


def quantize_matrix(
    name: str,
    weight: np.ndarray,
    out: Output,
    *,
    bits: int,
    group: int | None = None,
    asymmetric: bool = False,
    limit: int = CMAX,
    shares_input: QLinear | None = None,
    engine: str = CORES,
) -> QLinear:
    """Quantise float weights [n, k] to integers of ``bits`` bits for ``engine``.

    ``shares_input`` is another matrix that reads the same input, and ``limit`` its cmax or x_bits.  Raises
    QuantizeError if the sums do not fit an int32 accumulator.
    """
    n, k = weight.shape
    grouped = group is not None or asymmetric
    grouping = _Grouping.of(name, k, bits, group, grouped, engine, shares_input)
    width = group if group is not None else k
    groups = -(-k // width)
    # zeros after a shorter last group change neither its range nor its error
    w = np.zeros((n, groups * width))
    w[:, :k] = weight
    w = w.reshape(n, groups, width)
    low, high = format_of(bits).symmetric
    centre: np.ndarray = np.zeros((n, groups))
    if asymmetric:
        low, high = format_of(bits).low, format_of(bits).high
        top, bottom = np.maximum(w.max(axis=-1), 0), np.minimum(w.min(axis=-1), 0)
        raw, centre = (top - bottom) / (high - low), (top + bottom) / 2
    else:
        raw = np.concatenate([_symmetric_scale(w[rows], bits) for rows in row_slices(n, k)])
    all_zero = raw == 0
    raw = np.maximum(raw, 1e-30)

    def integers(row: np.ndarray) -> _Integers:
        unit = row[:, None]
        d = np.clip(np.ceil(raw / unit - 1e-9), 1, D_MAX if grouped else 1)
        b = np.rint((low + high) / 2 * d - centre / unit) if asymmetric else np.zeros_like(d)
        b[all_zero] = 0
        q = np.empty((n, k), np.int8)
        for rows in row_slices(n, k):
            steps = w[rows] / unit[rows, :, None]
            steps += b[rows, :, None]
            steps /= d[rows, :, None]
            np.clip(np.rint(steps, out=steps), low, high, out=steps)
            q[rows] = steps.reshape(len(steps), -1)[:, :k]
        return _Integers(q, d if grouped else None, b if asymmetric else None)

    # |q * d - b| <= WEIGHT_MAX limits the number of levels of an 8-bit matrix's group scales
    levels = min(D_MAX, WEIGHT_MAX // (high - low if asymmetric else high)) if grouped else 1
    return _with_stored_scales(grouping, raw.max(axis=-1) / levels, integers, np.ceil, out, limit)


def convert_matrix(
    name: str,
    weight: QuantizedWeight,
    out: Output,
    *,
    limit: int = CMAX,
    engine: str = CORES,
) -> QLinear:
    """Convert a checkpoint's integers [n, k], columns in stored order, to signed integers of the device.

    Scales and offsets are rounded to stored values.  Offsets are chosen so that the value nearest to zero
    that a group can represent (within its row's integers) is off by at most half a unit: zero stays zero.
    Zero points that are small integers are kept exactly.  The scale of a group whose weights are all equal
    is ignored if its offset alone gives their value: importers write 1 where the file has 0.
    """
    k = weight.q.shape[1]
    middle = 1 << (weight.bits - 1)
    form, points = MatrixFormat.of(weight), _zero_points(weight)
    grouping = _Grouping.of(name, k, form.bits, form.group, form.grouped, engine)
    q = (weight.q.astype(np.int16) - middle).astype(np.int8)
    scale, offset = weight.scale.astype(np.float64), weight.offset.astype(np.float64)
    least, most = weight.q.min(axis=1, keepdims=True), weight.q.max(axis=1, keepdims=True)
    starts = np.arange(0, k, weight.group)
    first = np.minimum.reduceat(weight.q, starts, axis=1)
    flat = first == np.maximum.reduceat(weight.q, starts, axis=1)
    flat &= form.asymmetric or first == middle  # symmetric: only the value 0 needs no scale
    if zeros := form.offsets is Offsets.ZEROS:
        flat &= first == points + middle  # zero points: again only the value 0
    nearest = np.where(flat, first, np.clip(-offset / scale, least, most))
    rest = scale * nearest + offset

    def integers(row: np.ndarray) -> _Integers:
        if not form.grouped:
            return _Integers(q, None, None)
        unit = row[:, None]
        d = np.where(flat, 1, np.clip(np.rint(scale / unit), 1, D_MAX))
        if zeros:
            return _Integers(q, d, d * points)
        b = np.rint(d * (nearest - middle) - rest / unit) if form.asymmetric else None
        return _Integers(q, d, b)

    row = np.where(flat, 0, scale).max(axis=1) / (D_MAX if form.grouped else 1)
    only_flat = np.maximum(np.abs(rest).max(axis=1) / B_MAX, 1e-30)
    row = np.where(row > 0, row, only_flat)
    # a unit that is rounded down could put d out of range
    rounding = np.ceil if form.grouped else np.rint
    found = _with_stored_scales(grouping, row, integers, rounding, out, limit)
    return replace(found, zero_points=zeros)


def _zero_points(weight: QuantizedWeight) -> np.ndarray:
    """Return each group's zero point minus the middle of the integer range, float64 [n, groups]."""
    found: np.ndarray = -weight.offset.astype(np.float64) / weight.scale - (1 << (weight.bits - 1))
    nearest = np.rint(found)
    return np.where(np.abs(found - nearest) < ZERO_POINT_TOLERANCE, nearest, found)


@dataclass(frozen=True)
class MatrixFormat:
    """Storage of a matrix: bits per weight, inputs per scale (None: a whole row), and kind of offsets."""

    bits: int
    group: int | None
    offsets: Offsets

    @property
    def asymmetric(self) -> bool:
        return self.offsets is not Offsets.NONE

    @property
    def grouped(self) -> bool:
        """Whether groups have scales of their own."""
        return self.group is not None or self.asymmetric

    @classmethod
    def of(cls, weight: QuantizedWeight) -> MatrixFormat:
        """Return the format of a checkpoint's integers: symmetric if the middle of their range is always zero."""
        points = _zero_points(weight)
        zero = Zero.MIDDLE
        if points.any():
            known = points == np.rint(points)
            known &= (points >= ZERO_MIN) & (points <= ZERO_MAX)
            zero = Zero.NEAR if known.all() else Zero.ANY
        return cls.fused([(weight.bits, weight.group, zero)], weight.q.shape[1])

    @classmethod
    def fused(cls, parts: Sequence[tuple[int, int, Zero]], k: int) -> MatrixFormat:
        """Return the format of stacked matrices of k inputs, each given as (bits, inputs per scale, zero).

        It has the gcd of the group sizes, the widest offsets, and of the widths that hold all bits the one that takes
        the fewest bytes.
        """
        groups = [group for _, group, _ in parts if group < k]
        group = math.gcd(*groups) if groups else None
        most = max(bits for bits, _, _ in parts)
        bits = min((w for w in WIDTHS if w >= most), key=lambda w: (_group_bits(w, group or k), w))
        # every zero point of up to ZERO_BITS bits is near the middle
        zero = max(
            Zero.NEAR if zero is Zero.POINT and bits <= ZERO_BITS else zero
            for bits, _, zero in parts
        )
        offsets = Offsets.NONE
        if zero is not Zero.MIDDLE:
            offsets = Offsets.ZEROS if zero is Zero.NEAR else Offsets.WIDE
        return cls(bits=bits, group=group, offsets=offsets)


def _group_bits(bits: int, group: int) -> int:
    """Return the bits of a group.  It fills whole units: 16 weights of 3 bits take the place of 32."""
    inputs = format_of(bits).inputs
    return -(-group // inputs) * inputs * bits


def fuse(parts: dict[str, QuantizedWeight]) -> QuantizedWeight:
    """Stack matrices that read the same input.  Raises QuantizeError if their column orders differ."""
    first, *others = parts.values()
    for other in others:
        if not np.array_equal(_order(first), _order(other)):
            raise QuantizeError(
                f"{' and '.join(parts)} read the same input, but their columns are stored in "
                "different orders (act-order).",
                "quantise them without act-order (desc_act=false).",
            )
    k = first.q.shape[1]
    form = MatrixFormat.fused([(p.bits, p.group, Zero.MIDDLE) for p in parts.values()], k)
    group = form.group or k
    at = np.arange(0, k, group)
    wide = [_widened(p, form.bits) for p in parts.values()]
    return QuantizedWeight(
        bits=form.bits,
        group=group,
        q=np.concatenate([p.q for p in wide]),
        scale=np.concatenate([p.scale[:, at // p.group] for p in wide]),
        offset=np.concatenate([p.offset[:, at // p.group] for p in wide]),
        order=first.order,
    )


def _order(weight: QuantizedWeight) -> np.ndarray:
    return np.arange(weight.q.shape[1]) if weight.order is None else weight.order


def _widened(weight: QuantizedWeight, bits: int) -> QuantizedWeight:
    """Return the same weights as integers of ``bits`` bits, around the middle of the larger range."""
    if bits == weight.bits:
        return weight
    by = (1 << (bits - 1)) - (1 << (weight.bits - 1))
    offset = weight.offset - weight.scale.astype(np.float64) * by
    return replace(weight, bits=bits, q=weight.q + np.uint8(by), offset=offset)


def _with_stored_scales(
    grouping: _Grouping,
    row: np.ndarray,
    integers: Callable[[np.ndarray], _Integers],
    rounding: Callable[[np.ndarray], np.ndarray],
    out: Output,
    limit: int,
) -> QLinear:
    """Return the matrix with its scales rounded to stored values.

    ``row`` float64 [n] is the smallest possible unit of each row's scales; it grows until every integer is in
    range.  ``integers`` computes the integers for given row units.
    """
    for _ in range(20):
        found = integers(row)
        over, bounds = _measured(grouping, found)
        if over.max(initial=0.0) <= 1:
            break
        row = row * np.where(over > 1, over * 1.01, 1)
    else:
        raise AssertionError(f"{grouping.name}: integers did not converge")
    grouped = found.d is not None
    fold = format_of(grouping.bits).fold
    drop = 1 if grouped and not fold else 0
    frac = out.frac
    for _ in range(6):
        x_bits = cmax = 0
        if grouping.wide:
            x_bits = limit = min(limit, largest_x_bits(bounds))
        elif grouped:
            cmax = limit
            # shift enough for the largest cmax: the lost bits are far below a group's quantisation error
            while unit_bound(bounds, drop) * cmax > ACC_MAX:
                drop += 1
        else:
            cmax = limit = min(limit, largest_cmax(unit_bound(bounds, 0)))
        if max(x_bits, cmax) < 1:
            raise QuantizeError(
                f"{grouping.name}: {grouping.k} inputs at {grouping.bits} bit do not fit an int32 accumulator of "
                f"{ACC_MAX}.",
                "use fewer bits per weight or a narrower matrix.",
            )
        kappa = out.kappa * QMAX / WIDE_MANTISSA if grouping.wide else out.kappa / cmax
        # the exponent that puts the largest row multiplier into 16 bits
        if out.exponent_max is not None:
            # the largest value of a vector uses at least half of the range, 15 bits for int8 times scale
            exponent_max = out.exponent_max
            if grouping.wide:
                exponent_max += WIDE_MANTISSA.bit_length() - x_bits
            room = math.log2(R_MAX / (row.max() * kappa * 2.0**drop))
            frac = min(frac, math.floor(room) - 32 - exponent_max - 1 + RARE_BITS)
        unit = kappa * 2.0 ** (frac + drop)
        shift = math.floor(math.log2(R_MAX / (row.max() * unit))) - 32
        r = np.clip(rounding(row * unit * 2.0 ** (32 + shift) - 1e-6), 1, R_MAX)
        row_scale = r / (unit * 2.0 ** (32 + shift))
        found = integers(row_scale)
        over, bounds = _measured(grouping, found)
        if over.max(initial=0.0) > 1:
            row = row * 1.01  # a row's unit was rounded down
        elif (
            q16_bound(bounds, x_bits) if grouping.wide else unit_bound(bounds, drop) * cmax
        ) <= ACC_MAX:
            break
    else:
        raise AssertionError(f"{grouping.name}: scales did not converge")
    return QLinear(
        name=grouping.name,
        bits=grouping.bits,
        group_size=grouping.group_size,
        group=grouping.group,
        q=found.q,
        d=grouping.per_group(found.d, np.uint8),
        b=grouping.per_group(found.b, np.int16),
        r=r.astype(np.uint16),
        drop=drop,
        shift=int(shift),
        cmax=cmax,
        frac=frac,
        pad=grouping.pad,
        row_scale=row_scale,
        engine=grouping.engine,
        x_bits=x_bits,
    )


def _measured(grouping: _Grouping, found: _Integers) -> tuple[np.ndarray, np.ndarray]:
    """Return (largest integer / its limit per row [n], bounds of the groups' sums [n, groups])."""
    # clip offsets far out of range, so that they do not wrap; the row unit grows in any case
    b = None if found.b is None else np.clip(found.b, -(1 << 31), 1 << 31)
    largest, bounds = magnitudes(
        found.q,
        grouping.per_group(found.d, np.int64),
        grouping.per_group(b, np.int64),
        grouping.group,
    )
    if found.d is None:
        return np.zeros(len(found.q)), bounds
    sums = bounds.max(axis=1) << format_of(grouping.bits).fold
    over = np.maximum(largest / WEIGHT_MAX, sums / GROUP_SUM_MAX)
    if found.b is not None:
        over = np.maximum(over, np.abs(found.b).max(axis=1) / B_MAX)
    return over, bounds
