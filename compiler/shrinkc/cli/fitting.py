"""What to say when a model does not fit: every level that lacks, and changes that were tried."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from shrinkc.core.errors import DoesNotFit
from shrinkc.memory.plan import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import Target

ShapeFor = Callable[[QuantOptions, int], ModelShape]

CONTEXT_STEP = 8
L1_STEP = 4096
_CEILING = 1 << 40  # more memory than any level is ever given


def fits(shape: ModelShape, target: Target, l1: int | None) -> bool:
    """Whether there is a plan."""
    try:
        make_plan(shape, target, l1)
    except DoesNotFit:
        return False
    return True


def shortfalls(shape: ModelShape, target: Target, l1: int | None) -> list[str]:
    """The planner's sentence on every level that lacks something.

    The planner stops at the first one; that level is then given just enough to see the next.
    """
    out: list[str] = []
    given = target if l1 is None else replace(target, l1=min(l1, target.l1))
    while True:
        try:
            make_plan(shape, given)
        except DoesNotFit as error:
            out.append(error.message)
            level = error.message.split(":")[0].lower()
            if level not in ("l1", "l2") or len(out) > 2:
                return out
            given = _enough(shape, given, level, error.message)
        else:
            return out


def _enough(shape: ModelShape, target: Target, level: str, message: str) -> Target:
    """``target`` with the least of ``level`` at which another sentence, or none, comes."""
    prefix = message.split(":")[0]

    def given(size: int) -> Target:
        return replace(target, l1=size) if level == "l1" else replace(target, l2=size)

    def lacks(size: int) -> bool:
        try:
            make_plan(shape, given(size))
        except DoesNotFit as error:
            return error.message.startswith(prefix)
        return False

    low, high = getattr(target, level), 2 * getattr(target, level)
    while lacks(high) and high < _CEILING:
        low, high = high, 2 * high
    while high - low > 16:
        middle = (low + high) // 2
        low, high = (middle, high) if lacks(middle) else (low, middle)
    return given(high)


def alternatives(
    shape_for: ShapeFor,
    quant: QuantOptions,
    context: int,
    target: Target,
    l1: int | None,
    fixed: Collection[str] = (),
) -> list[str]:
    """Changes of the command line that make it fit, each one planned before it is offered.

    ``fixed`` are options that a quantised checkpoint leaves nothing to decide for.
    Single changes first; where none is enough, narrower weights and a shorter context together.
    """
    narrower: list[tuple[str, QuantOptions]] = []
    if quant.bits == 8 and "--bits" not in fixed:
        narrower.append(("--bits 4", replace(quant, bits=4)))
    if quant.head_bits == 8 and "--head-bits" not in fixed:
        narrower.append(("--head-bits 4", replace(quant, head_bits=4)))
    if len(narrower) == 2:
        narrower.append(("--bits 4 --head-bits 4", replace(quant, bits=4, head_bits=4)))

    found: list[str] = []
    shorter = _longest_context(shape_for, quant, context, target, l1)
    if shorter:
        found.append(f"--context {shorter}")
    for text, changed in narrower:
        # both together are of interest only where neither is enough
        enough = any(text.startswith(f) or text.endswith(f) for f in found)
        if not enough and fits(shape_for(changed, context), target, l1):
            found.append(text)
    larger = _smallest_l1(shape_for(quant, context), target, l1)
    if larger:
        found.append(f"--l1 {larger // 1024}KiB")
    if found:
        return found
    for text, changed in narrower:
        shorter = _longest_context(shape_for, changed, context, target, l1)
        if shorter:
            found.append(f"{text} --context {shorter}")
    return found


def _longest_context(
    shape_for: ShapeFor, quant: QuantOptions, context: int, target: Target, l1: int | None
) -> int | None:
    """The longest shorter context, in steps of 8, that fits."""
    low, high = 0, (context - 1) // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(shape_for(quant, middle * CONTEXT_STEP), target, l1):
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP or None


def _smallest_l1(shape: ModelShape, target: Target, l1: int | None) -> int | None:
    """The smallest larger L1, in steps of 4 KiB, that fits; None where all of it was allowed."""
    if l1 is None or l1 >= target.l1 or not fits(shape, target, target.l1):
        return None
    low, high = l1 // L1_STEP, target.l1 // L1_STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(shape, target, middle * L1_STEP) else (middle, high)
    return high * L1_STEP
