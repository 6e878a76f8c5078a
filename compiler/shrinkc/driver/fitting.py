"""Diagnosis of models that do not fit: memories that are too small, and changes that make it fit."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.memory.planner import check_fits
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import WIDTHS
from shrinkc.targets import MAPPED, Target

Fits = Callable[[QuantOptions, int, int], bool]

CONTEXT_LEAST = 2
LEAST_BITS = min(WIDTHS)
CONTEXT_STEP = 8
L1_STEP = 4096
MOST_OFFERED = 4
_CEILING = 1 << 40  # bytes; more than any memory needs


def shortfalls(shape: ModelShape, target: Target, l1: int | None) -> tuple[Lack, ...]:
    """Return the memories that are too small; empty if the model fits.

    The planner stops at the first one, so that memory is enlarged just enough to find the next.
    """
    out: list[Lack] = []
    given = target if l1 is None else target.with_room(l1=min(l1, target.l1))
    while (lack := _lack(shape, given)) is not None:
        out.append(lack)
        if lack.level == "weights" or len(out) > 3:
            break
        given = _enough(shape, given, lack.level)
    return tuple(out)


def lacks_weights(lack: Lack) -> bool:
    """Return whether a memory is too small for the weights: all memories together, or the flash of a board."""
    return lack.level in ("weights", MAPPED)


def _lack(shape: ModelShape, target: Target) -> Lack | None:
    """Return the first memory that is too small, or None."""
    try:
        check_fits(shape, target)
    except DoesNotFit as error:
        return error.lacks[0]
    return None


def _enough(shape: ModelShape, target: Target, level: str) -> Target:
    """Return ``target`` with ``level`` enlarged to the least size at which it is no longer the first too small."""

    def enough(size: int) -> bool:
        lack = _lack(shape, target.with_room(**{level: size}))
        return lack is None or lack.level != level

    low = high = max(16, target.room(level))
    while not enough(high) and high < _CEILING:
        low, high = high, 2 * high
    sizes = range(low, high, 16)
    place = bisect_left(sizes, True, key=enough)
    return target.with_room(**{level: sizes[place] if place < len(sizes) else high})


def alternatives(
    fits: Fits,
    quant: QuantOptions,
    context: int,
    l1: int,
    l1_most: int,
    fixed: Collection[str] = (),
) -> list[str]:
    """Return changes of options that make the model fit; each was checked by planning.

    ``fits(quant, context, l1)`` returns whether there is a plan; ``l1`` in bytes.  Single changes come first;
    if none is enough, pairs, then three and four together.  The result is empty only if the shortest context, the
    fewest bits and ``l1_most`` together are not enough.  ``fixed``: options that a quantised checkpoint
    determines.
    """
    possible = {
        "--context": context > CONTEXT_LEAST,
        "--bits": quant.bits > LEAST_BITS and "--bits" not in fixed,
        "--embedding-bits": quant.embedding_bits > LEAST_BITS and "--embedding-bits" not in fixed,
        "--l1": l1 < l1_most,
    }
    names = [name for name, open_ in possible.items() if open_]
    for count in range(1, len(names) + 1):
        changes = (
            _changed(fits, some, quant, context, l1, l1_most)
            for some in itertools.combinations(names, count)
        )
        found = list(itertools.islice(filter(None, changes), MOST_OFFERED))
        if found:
            return found
    return []


def _changed(
    fits: Fits, names: Collection[str], quant: QuantOptions, context: int, l1: int, l1_most: int
) -> str | None:
    """Return options that change all ``names`` as little as possible, bits least of all because they cost quality;
    None if that is not enough."""
    widths = [w for w in WIDTHS if w < quant.bits] if "--bits" in names else [quant.bits]
    tables = [w for w in WIDTHS if w < quant.embedding_bits]
    tables = tables if "--embedding-bits" in names else [quant.embedding_bits]
    size = l1_most if "--l1" in names else l1
    least = CONTEXT_LEAST if "--context" in names else context

    def with_bits(bits: int, embedding_bits: int) -> QuantOptions:
        return replace(quant, bits=bits, embedding_bits=embedding_bits)

    if not fits(with_bits(widths[-1], tables[-1]), least, size):
        return None
    # narrowest first, so that the widths that fit come first
    bits = _last(widths[::-1], lambda w: fits(with_bits(w, tables[-1]), least, size))
    embedding_bits = _last(tables[::-1], lambda w: fits(with_bits(bits, w), least, size))
    narrow = with_bits(bits, embedding_bits)
    if "--context" in names:
        steps = range(CONTEXT_STEP, context, CONTEXT_STEP)
        shorter = [*range(CONTEXT_LEAST, min(CONTEXT_STEP, context)), *steps]
        context = _last(shorter, lambda at: fits(narrow, at, size))
    if "--l1" in names:
        larger = range(-(-l1_most // L1_STEP) * L1_STEP, l1, -L1_STEP)
        size = _last(larger, lambda at: fits(narrow, context, min(at, l1_most)))
    values = {
        "--context": context,
        "--bits": bits,
        "--embedding-bits": embedding_bits,
        "--l1": _written(size, l1_most),
    }
    return " ".join(f"{name} {values[name]}" for name in names)


def _last(values: Sequence[int], good: Callable[[int], bool]) -> int:
    """Return the last of ``values`` that is good, by bisection: good values come first, and there is one."""
    return values[bisect_left(values, True, lo=1, key=lambda value: not good(value)) - 1]


def _written(size: int, most: int) -> str:
    size = min(size, most)
    return f"{size // 1024}KiB" if size % 1024 == 0 else str(size)
