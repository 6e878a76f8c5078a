"""Memory map of a plan: addresses downwards, steps of a forward pass across."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shrinkc.memory.parts import stored_in
from shrinkc.memory.plan import Plan
from shrinkc.pictures.svg import COLOURS, EMPTY, LETTER, TEXT, box, document, words
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import L1, L2

_WIDTH = 1100
_LEFT = 96
_TOP = 64  # y of the regions, below the title and the names of the steps
_BELOW = 34
_HIGHEST, _EACH = 400, 60  # largest height of a picture; height per region if there are few
_UNREAD = 0.45  # opacity of weights in the steps that do not read them
_SLOTS = 6  # colours of weights, one per slot


@dataclass(frozen=True)
class Region:
    """Region of a memory: ``bytes`` from ``offset`` on, in use from step ``first`` to ``last``.

    ``read``: the step that reads weights.  ``kind``: "system", "buffer", "table" or "weights"."""

    kind: str
    name: str
    offset: int
    bytes: int
    first: int
    last: int
    read: int | None = None


@dataclass(frozen=True)
class Memory:
    """Memory ``level`` of a target and its regions; sizes in bytes."""

    level: str
    label: str
    used: int
    available: int
    regions: Sequence[Region]

    @property
    def share(self) -> float:
        return self.used / max(self.available, 1)


def memories_of(plan: Plan, shape: ModelShape) -> list[Memory]:
    """Return L1, L2 and every other memory that is in use."""
    reader = {step.matrix: at for at, step in enumerate(shape.steps) if step.matrix}
    return [
        Memory(level, plan.label(level), plan.used[level], have, [*_regions(plan, level, reader)])
        for level, have in plan.capacity.items()
        if have and (plan.used[level] or level in (L1, L2))
    ]


def _regions(plan: Plan, level: str, reader: Mapping[str, int]) -> Iterable[Region]:
    last = len(plan.steps) - 1
    if level == L1:
        fixed = plan.used[L1] - plan.arena_bytes
        name = "stack, variables, tokens" if plan.board else "stacks, tables"
        yield Region("system", name, 0, fixed, 0, last)
        for b in plan.l1:
            for first, to in b.spans:
                yield Region("buffer", b.name, fixed + b.offset, b.bytes, first, to)
        return
    end = 0
    for x in (t for t in plan.tables if t.level == level):
        yield Region("table", x.name, x.offset, x.bytes, 0, last)
        end = max(end, x.offset + x.bytes)
    for name, offset, size in stored_in(plan.placements, level):
        step = reader.get(_slot(name), 0 if name == "embedding" else None)
        yield Region("weights", name, offset, size, 0, last, step)
        end = max(end, offset + size)
    # the linker places these buffers; the picture shows them after the weights
    for b in (b for b in plan.lower_buffers if b.level == level and b.bytes):
        yield Region("buffer", b.name, end, b.bytes, 0, last)
        end += b.bytes


def _slot(name: str) -> str:
    """Return the slot of a matrix: ``qkv`` for ``layer3.qkv`` and for the adapter half ``layer3.qkv.a``."""
    return name.split(".", 1)[-1].removesuffix(".a")


def memory_map(title: str, plan: Plan, shape: ModelShape) -> str:
    """Return an SVG of all memories; hovering over a region shows its name, offset and size."""
    top, body = 40, [words(12, 24, f"{title}: memory plan for {plan.target}", size=15)]
    for memory in memories_of(plan, shape):
        body += _drawn(memory, plan.steps, top)
        top += _TOP + _height(memory) + _BELOW
    return document(_WIDTH, top, body)


def memory_picture(memory: Memory, steps: Sequence[str]) -> str:
    """Return an SVG of one memory."""
    return document(_WIDTH, _TOP + _height(memory) + _BELOW, _drawn(memory, steps, 0))


def _height(memory: Memory) -> int:
    return min(_HIGHEST, _EACH * len(memory.regions))


def _drawn(memory: Memory, steps: Sequence[str], above: int) -> list[str]:
    regions, high, top = memory.regions, _height(memory), above + _TOP
    end = max([1, *(r.offset + r.bytes for r in regions)])
    column = (_WIDTH - _LEFT - 12) / len(steps)
    title = (
        f"{memory.label}: {memory.used:,} of {memory.available:,} bytes, {100 * memory.share:.1f} %"
    )
    out = [
        words(12, above + 22, title, size=14),
        box(_LEFT, top, column * len(steps), high, EMPTY, f"{memory.label}: free"),
    ]
    out += [words(_LEFT + i * column + 3, top - 6, name, size=9) for i, name in enumerate(steps)]
    colours: dict[str, str] = {}
    numbers: dict[str, int] = {}  # name -> number of its colour; a name may be drawn more than once
    for r in regions:
        if r.kind == "weights":
            slot = r.name.split(".", 1)[-1]
            colour = colours.setdefault(slot, COLOURS[len(colours) % _SLOTS])
        else:
            colour = COLOURS[numbers.setdefault(r.name, len(numbers)) % len(COLOURS)]
        out += _region(r, colour, steps, column, high / end, top)
    for part in range(5):
        out.append(
            words(_LEFT - 6, top + high * part / 4 + 4, f"{round(end * part / 4):,}", size=9, end=True)
        )  # fmt: skip
    return [*out, words(_LEFT, top + high + 20, "address downwards, steps of a pass across")]


def _region(
    r: Region, colour: str, steps: Sequence[str], column: float, scale: float, top: int
) -> list[str]:
    x, y = _LEFT + r.first * column, top + r.offset * scale
    width, height = (r.last - r.first + 1) * column, r.bytes * scale
    note = f"{r.name}: {r.bytes:,} bytes at {r.offset:,}, "
    if r.kind == "weights":
        note += "always there" + ("" if r.read is None else f", read in {steps[r.read]}")
    else:
        note += f"{r.kind}, {steps[r.first]} to {steps[r.last]}"
    out = [box(x, y, width, height, colour, note, opacity=1.0 if r.read is None else _UNREAD)]
    if r.read is not None:
        out.append(box(_LEFT + r.read * column, y, column, height, colour, note))
    label = f"{r.name} {r.bytes:,}"
    if height >= TEXT + 1 and len(label) * LETTER < width - 4:
        out.append(words(x + 3, y + height / 2 + 4, label))
    return out
