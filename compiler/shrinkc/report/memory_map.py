"""The memory plan as a picture: one bar per level, and L1 over the steps of a pass.

The same plan gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from shrinkc.memory.parts import stored_in
from shrinkc.memory.plan import Plan
from shrinkc.report.svg import COLOURS, EMPTY, LETTER, TEXT, box, document, words
from shrinkc.targets import MEMORIES

_WIDTH = 1040
_MARGIN = 20
_LABEL = 110
_BAR = 34
_ROW = 78
_ARENA_HEIGHT = 420


@dataclass(frozen=True)
class _Region:
    name: str
    offset: int
    bytes: int


def memory_map(plan: Plan, title: str) -> str:
    """An SVG document of ``plan``; hovering over a region shows its name, place and size."""
    levels = [
        v for v, have in plan.capacity.items() if have and (plan.used[v] or v in ("l1", "l2"))
    ]
    arena_top = 50 + _ROW * len(levels) + 40
    height = arena_top + _ARENA_HEIGHT + 70
    out = [words(_MARGIN, 24, f"{title}: memory plan for {plan.target}", size=15)]
    for row, level in enumerate(levels):
        out += _level_bar(plan, level, 50 + _ROW * row)
    out += _arena(plan, arena_top)
    return document(_WIDTH, height, out)


def _level_bar(plan: Plan, level: str, y: int) -> list[str]:
    """A bar as long as the level where it is half full or more, else as long as twice its use."""
    used, capacity, name = plan.used[level], plan.capacity[level], MEMORIES[level].short
    span = max(1, min(capacity, 2 * used))
    width = _WIDTH - 2 * _MARGIN - _LABEL
    scale = width / span
    percent = 100 * used / capacity
    shown = "" if span == capacity else f" (the bar shows the first {span} bytes)"
    out = [
        words(_MARGIN, y + 21, name, size=13),
        box(_MARGIN + _LABEL, y, width, _BAR, EMPTY, f"{name}: {capacity} bytes"),
    ]
    for index, region in enumerate(_regions(plan, level)):
        left = _MARGIN + _LABEL + region.offset * scale
        size = region.bytes * scale
        note = f"{region.name}: {region.bytes} bytes at {region.offset}"
        out.append(box(left, y, size, _BAR, COLOURS[index % len(COLOURS)], note))
        if len(region.name) * LETTER < size - 4:
            out.append(words(left + 3, y + 21, region.name))
    out.append(
        words(
            _MARGIN + _LABEL, y + _BAR + 15, f"{used} of {capacity} bytes, {percent:.1f} %{shown}"
        )
    )
    return out


def _regions(plan: Plan, level: str) -> list[_Region]:
    weights = [_Region(x.name, x.offset, x.bytes) for x in plan.tables if x.level == level]
    weights += [_Region(*piece) for piece in stored_in(plan.placements, level)]
    if level == "l1":
        fixed = plan.used["l1"] - plan.arena_bytes
        return [_Region("stacks, tables", 0, fixed), _Region("arena", fixed, plan.arena_bytes)]
    # the linker places what is not weights; here it is drawn behind them
    at = max((w.offset + w.bytes for w in weights), default=0)
    out = list(weights)
    for b in (b for b in plan.beside if b.level == level):
        out.append(_Region(b.name, at, b.bytes))
        at += b.bytes
    return out


def _arena(plan: Plan, y: int) -> list[str]:
    """Each L1 buffer as a rectangle: its steps across, its bytes down."""
    left = _MARGIN + _LABEL
    column = (_WIDTH - 2 * _MARGIN - _LABEL) / len(plan.steps)
    scale = _ARENA_HEIGHT / max(1, plan.arena_bytes)
    out = [
        words(_MARGIN, y - 22, f"L1 arena over one pass: {plan.arena_bytes} bytes", size=13),
        box(left, y, column * len(plan.steps), _ARENA_HEIGHT, EMPTY, "free"),
    ]
    out += [words(left + i * column + 2, y - 4, name, size=9) for i, name in enumerate(plan.steps)]
    for index, b in enumerate(plan.l1):
        top, height = y + b.offset * scale, b.bytes * scale
        label = f"{b.name} {b.bytes}"
        for first, last in b.spans:
            x, width = left + first * column, (last - first + 1) * column
            note = f"{b.name}: {b.bytes} bytes at {b.offset}, {plan.steps[first]} to {plan.steps[last]}"
            out.append(box(x, top, width, height, COLOURS[index % len(COLOURS)], note))
            if height >= TEXT + 1 and len(label) * LETTER < width - 4:
                out.append(words(x + 3, top + height / 2 + 4, label))
    out.append(words(_MARGIN, y + 8, "0"))
    out.append(words(_MARGIN, y + _ARENA_HEIGHT, str(plan.arena_bytes)))
    out.append(words(left, y + _ARENA_HEIGHT + 22, "offset in the arena downwards, steps across"))
    return out
