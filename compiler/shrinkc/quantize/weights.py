"""One matrix as integers: round-to-nearest quantisation, and matrices that are integers already.

Row scales live on the grid that the device multiplies with (uint16 against the layer's largest),
group scales on a grid of 1..255 against their row.  Weights are rounded with exactly the scales on
those grids, so no scale carries an error of its own; where the integers are given, scales and
offsets are rounded to the grids' nearest.
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
from shrinkc.storage import WIDEST, ZERO_BITS, ZERO_MAX, ZERO_MIN, Offsets, format_of

D_MAX = 255
B_MAX = 32767
_SAME = 1e-3  # of a step: files hold scales and offsets of 16 bits
# Fraction bits beyond those whose final shift is to the right for every vector a norm can give: hardly
# one has nearly all of its square in one channel.  Of SmolLM2's, 2 more leave one in a thousand to be
# shifted to the left, which is exact and slower, and 4 more no nearer to the float model.
RARE_BITS = 2
# Groups of 4 take 5 bytes at either width: more than 8 bit without groups.
USUAL_GROUPS = (128, 96, 64, 48, 32, 24, 16, 12, 8)


def check_groups(
    inputs: dict[str, int],
    group: int | None,
    short_last: bool,
    saves: Callable[[int], bool] | None = None,
) -> None:
    """Refuse a group size that does not divide the inputs of a matrix, naming all of them.

    ``inputs``: matrix name -> K.  ``short_last`` allows a shorter last group.  ``saves`` says of a
    group size whether weights in such groups take fewer bytes than the widest; no other is offered.
    Raises QuantizeError.
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
    """Least-squares scale over the format's clip for groups w [..., G]; without any, the maximum."""
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
    """What surrounds a matrix.

    ``kappa`` is the unit of an int8 input's mantissa times cmax: the input is
    q * c * mantissa * 2**exponent * kappa / cmax.  ``frac`` is the result's fraction bits; with
    ``exponent_max``, the largest exponent an int8 input can have, it is lowered until the final shift
    is to the right for nearly every input: more bits than the accumulator has would be made up.
    """

    kappa: float
    frac: int
    exponent_max: int | None = None


@dataclass(frozen=True)
class _Integers:
    """q int8 [n, k], d and b [n, groups] (float arrays of whole numbers) or None."""

    q: np.ndarray
    d: np.ndarray | None
    b: np.ndarray | None


@dataclass(frozen=True)
class _Cut:
    """How a matrix of k inputs is stored: ``group_size`` weights per scale or None, stored groups of ``group``, as
    ``engine`` asks."""

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
    ) -> _Cut:  # fmt: skip
        """``shares_input``: another matrix that reads the same activations."""
        group, pad = engine_named(engine).cut_of(k, group_size, grouped, bits)
        if shares_input is not None:
            group, pad = shares_input.group, shares_input.pad
        wide = not grouped if shares_input is None else shares_input.x_bits > 0
        return cls(name, k, bits, group_size, group, pad, engine, wide)

    def per_group(self, values: np.ndarray | None, dtype: type) -> np.ndarray | None:
        """[n, scales] -> [n, groups] by repeating a scale for all stored groups that share it."""
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
    """Quantise float [n, k] to integers of ``bits`` bits.

    ``shares_input`` is another matrix that reads the same input, ``limit`` its cmax or x_bits; ``engine``
    runs it.  Raises QuantizeError when no accumulator bound is possible.
    """
    n, k = weight.shape
    grouped = group is not None or asymmetric
    cut = _Cut.of(name, k, bits, group, grouped, engine, shares_input)
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
    empty = raw == 0  # groups of zeros
    raw = np.maximum(raw, 1e-30)

    def integers(row: np.ndarray) -> _Integers:
        unit = row[:, None]
        d = np.clip(np.ceil(raw / unit - 1e-9), 1, D_MAX if grouped else 1)
        b = np.rint((low + high) / 2 * d - centre / unit) if asymmetric else np.zeros_like(d)
        b[empty] = 0
        q = np.empty((n, k), np.int8)
        for rows in row_slices(n, k):
            steps = w[rows] / unit[rows, :, None]
            steps += b[rows, :, None]
            steps /= d[rows, :, None]
            np.clip(np.rint(steps, out=steps), low, high, out=steps)
            q[rows] = steps.reshape(len(steps), -1)[:, :k]
        return _Integers(q, d if grouped else None, b if asymmetric else None)

    # the integer range of an effective weight limits how fine an 8-bit matrix's grid can be
    levels = min(D_MAX, WEIGHT_MAX // (high - low if asymmetric else high)) if grouped else 1
    return _on_device_grids(cut, raw.max(axis=-1) / levels, integers, np.ceil, out, limit)


def convert_matrix(
    name: str,
    weight: QuantizedWeight,
    out: Output,
    *,
    limit: int = CMAX,
    engine: str = CORES,
) -> QLinear:
    """The same integers q, shifted by a constant to signed ones; columns in stored order.

    Scales and offsets go to the grids, offsets so that the value nearest to zero that a group can
    hold (with the integers of its row) is off by no more than half a unit: a zero stays one.  Zero
    points that are small integers stay what they are, whether a group has a zero or not; of those a group of
    one value other than zero needs its scale.
    A group of one value needs no scale, and what the file says there (importers put 1 where it is
    0) decides nothing.
    """
    k = weight.q.shape[1]
    middle = 1 << (weight.bits - 1)
    form, points = MatrixFormat.of(weight), _zero_points(weight)
    cut = _Cut.of(name, k, form.bits, form.group, form.grouped, engine)
    q = (weight.q.astype(np.int16) - middle).astype(np.int8)
    scale, offset = weight.scale.astype(np.float64), weight.offset.astype(np.float64)
    least, most = weight.q.min(axis=1, keepdims=True), weight.q.max(axis=1, keepdims=True)
    starts = np.arange(0, k, weight.group)
    first = np.minimum.reduceat(weight.q, starts, axis=1)
    flat = first == np.maximum.reduceat(weight.q, starts, axis=1)
    flat &= form.asymmetric or first == middle  # without offsets, only the middle needs no scale
    if zeros := form.offsets is Offsets.ZEROS:
        flat &= first == points + middle  # nor with zero points: only zero does not
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
    # a unit that is rounded down would take d past its range
    rounding = np.ceil if form.grouped else np.rint
    found = _on_device_grids(cut, row, integers, rounding, out, limit)
    return replace(found, zero_points=zeros)


def _zero_points(weight: QuantizedWeight) -> np.ndarray:
    """float64 [n, groups]: what is zero of each group, from the middle of the range of its integers on."""
    found: np.ndarray = -weight.offset.astype(np.float64) / weight.scale - (1 << (weight.bits - 1))
    nearest = np.rint(found)
    return np.where(np.abs(found - nearest) < _SAME, nearest, found)


@dataclass(frozen=True)
class MatrixFormat:
    """How a matrix is stored: its bits, inputs per scale (None: all of a row), its offsets."""

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
        """That of a checkpoint's integers; symmetric if the middle of their range is always zero."""
        points = _zero_points(weight)
        zero = Zero.MIDDLE
        if points.any():
            known = points == np.rint(points)
            known &= (points >= ZERO_MIN) & (points <= ZERO_MAX)
            zero = Zero.POINT if known.all() else Zero.ANY
        return cls.fused([(weight.bits, weight.group, zero)], weight.q.shape[1])

    @classmethod
    def fused(cls, parts: Sequence[tuple[int, int, Zero]], k: int) -> MatrixFormat:
        """Of matrices of k inputs on top of each other, each (bits, inputs per scale, where zero is).

        The widest part decides, the gcd of the groups, and the part whose offsets take most.
        """
        groups = [group for _, group, _ in parts if group < k]
        bits, zero = max(bits for bits, _, _ in parts), max(zero for _, _, zero in parts)
        offsets = Offsets.NONE
        if zero is not Zero.MIDDLE:
            offsets = Offsets.ZEROS if zero is Zero.POINT and bits <= ZERO_BITS else Offsets.WIDE
        return cls(bits=bits, group=math.gcd(*groups) if groups else None, offsets=offsets)


def fuse(parts: dict[str, QuantizedWeight]) -> QuantizedWeight:
    """Matrices of one input on top of each other.  Raises QuantizeError for unlike column orders."""
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
    """The same weights in the middle of a larger range."""
    if bits == weight.bits:
        return weight
    by = (1 << (bits - 1)) - (1 << (weight.bits - 1))
    offset = weight.offset - weight.scale.astype(np.float64) * by
    return replace(weight, bits=bits, q=weight.q + np.uint8(by), offset=offset)


def _on_device_grids(
    cut: _Cut,
    row: np.ndarray,
    integers: Callable[[np.ndarray], _Integers],
    rounding: Callable[[np.ndarray], np.ndarray],
    out: Output,
    limit: int,
) -> QLinear:
    """The matrix on the device's grids.

    ``row`` float64 [n] is the least unit that each row's scales need; it grows until every integer
    has its range.  ``integers`` gives those of any unit.
    """
    for _ in range(20):
        found = integers(row)
        over, bounds = _measured(cut, found)
        if over.max(initial=0.0) <= 1:
            break
        row = row * np.where(over > 1, over * 1.01, 1)
    else:
        raise AssertionError(f"{cut.name}: integers did not converge")
    grouped = found.d is not None
    fold = format_of(cut.bits).fold
    drop = 1 if grouped and not fold else 0
    frac = out.frac
    for _ in range(6):
        x_bits = cmax = 0
        if cut.wide:
            x_bits = limit = min(limit, largest_x_bits(bounds))
        elif grouped:
            cmax = limit
            # room for the largest cmax: what is dropped is far below a group's own error
            while unit_bound(bounds, drop) * cmax > ACC_MAX:
                drop += 1
        else:
            cmax = limit = min(limit, largest_cmax(unit_bound(bounds, 0)))
        if max(x_bits, cmax) < 1:
            raise QuantizeError(
                f"{cut.name}: {cut.k} inputs at {cut.bits} bit do not fit an int32 accumulator of "
                f"{ACC_MAX}.",
                "use fewer bits per weight or a narrower matrix.",
            )
        kappa = out.kappa * QMAX / WIDE_MANTISSA if cut.wide else out.kappa / cmax
        # the exponent that puts the largest row multiplier into 16 bits
        if out.exponent_max is not None:
            # a vector's top is at least half of its range, which is 15 bits of an int8 one and its scale
            exponent_max = out.exponent_max
            if cut.wide:
                exponent_max += WIDE_MANTISSA.bit_length() - x_bits
            room = math.log2(R_MAX / (row.max() * kappa * 2.0**drop))
            frac = min(frac, math.floor(room) - 32 - exponent_max - 1 + RARE_BITS)
        unit = kappa * 2.0 ** (frac + drop)
        shift = math.floor(math.log2(R_MAX / (row.max() * unit))) - 32
        r = np.clip(rounding(row * unit * 2.0 ** (32 + shift) - 1e-6), 1, R_MAX)
        row_scale = r / (unit * 2.0 ** (32 + shift))
        found = integers(row_scale)
        over, bounds = _measured(cut, found)
        if over.max(initial=0.0) > 1:
            row = row * 1.01  # a row's unit was rounded down to the grid
        elif (
            q16_bound(bounds, x_bits) if cut.wide else unit_bound(bounds, drop) * cmax
        ) <= ACC_MAX:
            break
    else:
        raise AssertionError(f"{cut.name}: scales did not converge")
    return QLinear(
        name=cut.name,
        bits=cut.bits,
        group_size=cut.group_size,
        group=cut.group,
        q=found.q,
        d=cut.per_group(found.d, np.uint8),
        b=cut.per_group(found.b, np.int16),
        r=r.astype(np.uint16),
        drop=drop,
        shift=int(shift),
        cmax=cmax,
        frac=frac,
        pad=cut.pad,
        row_scale=row_scale,
        engine=cut.engine,
        x_bits=x_bits,
    )


def _measured(cut: _Cut, found: _Integers) -> tuple[np.ndarray, np.ndarray]:
    """Per row [n], how many times too large its integers are (none is where it is at most 1), and
    the bounds [n, groups] of its groups' sums."""
    # an offset far beyond its range must not wrap; how far it is does not matter here
    b = None if found.b is None else np.clip(found.b, -(1 << 31), 1 << 31)
    largest, bounds = magnitudes(
        found.q, cut.per_group(found.d, np.int64), cut.per_group(b, np.int64), cut.group
    )
    if found.d is None:
        return np.zeros(len(found.q)), bounds
    sums = bounds.max(axis=1) << format_of(cut.bits).fold
    over = np.maximum(largest / WEIGHT_MAX, sums / GROUP_SUM_MAX)
    if found.b is not None:
        over = np.maximum(over, np.abs(found.b).max(axis=1) / B_MAX)
    return over, bounds
