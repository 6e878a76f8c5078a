"""Roofline plot: products per cycle over products per byte, both on log scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shrinkc.memory.cycles import DMA, FLASH
from shrinkc.pictures.labels import Labels
from shrinkc.pictures.svg import COLOURS, LETTER, box, document, dot, line, words
from shrinkc.targets import L1

_WIDTH, _HEIGHT = 1100, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 270, 58, 52
_SOURCES = {L1: "all in L1", DMA: "weights or cache by DMA", FLASH: "weights from flash"}


@dataclass(frozen=True)
class Ceiling:
    """Limit of a target: at most ``per_cycle`` products or bytes (``of``).  ``said_by``: origin of the figure.

    ``source``: origin of the bytes."""

    name: str
    of: str
    per_cycle: float
    said_by: str
    source: str | None = None


@dataclass(frozen=True)
class Point:
    """Op of ``layers`` layers whose bytes come from ``source``: products per byte, and estimated and measured
    products per cycle (None: not known)."""

    op: str
    kind: str
    source: str
    layers: int
    per_byte: float
    estimated: float | None
    measured: float | None


class _Axes:
    """Scales from decades to coordinates."""

    def __init__(self, xs: Iterable[float], ys: Iterable[float]) -> None:
        self.x = _decades(xs)
        self.y = _decades(ys)

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x, self.y
        across = (math.log10(x) - x0) / (x1 - x0)
        up = (math.log10(y) - y0) / (y1 - y0)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [math.log10(v) for v in values]
    return math.floor(min(logs) - 0.1), math.ceil(max(logs) + 0.1)


def roofline(title: str, points: Sequence[Point], ceilings: Sequence[Ceiling]) -> str | None:
    """Return an SVG; None if no op has cycles.  Filled dots are estimates, rings are measurements."""
    dots = [
        (p, kind, p.per_byte, y)
        for p in points
        for kind, y in (("estimated", p.estimated), ("measured", p.measured))
        if y and p.per_byte > 0
    ]
    if not dots:
        return None
    flat = [c.per_cycle for c in ceilings if c.of == "products"]
    axes = _Axes([x for *_, x, _ in dots], [*(y for *_, y in dots), *flat])
    labels = Labels((_LEFT + 2, _TOP - 10, _WIDTH - 4, _HEIGHT - _BOTTOM - 2))
    out = [words(12, 22, title, size=14), *_grid(axes), *_lines(axes, ceilings, labels)]
    colours = {name: COLOURS[i] for i, name in enumerate(_SOURCES)}
    named = []
    ops = [p.op for p in points]
    for p, kind, x, y in dots:
        colour = colours.setdefault(p.source, COLOURS[len(colours) % len(COLOURS)])
        at = axes.at(x, y)
        note = (
            f"{p.op} ({p.kind}), {kind}: {y:.3g} products per cycle, {x:.3g} per byte; "
            f"{p.layers} times, bytes from {p.source}"
        )
        out.append(dot(*at, colour, note, hollow=kind == "measured"))
        labels.keep_dot(*at)
        if kind == "estimated" or not p.estimated:
            named.append((at, p.op + (f" ({p.source})" if ops.count(p.op) > 1 else "")))
    used = {s: c for s, c in colours.items() if s in {p.source for p, *_ in dots}}
    out += _legend(used, any(kind == "measured" for _, kind, *_ in dots), labels)
    for at, name in sorted(named, key=lambda found: found[0][::-1]):
        out += labels.put(*at, name)
    return document(_WIDTH, _HEIGHT, out)


def _grid(axes: _Axes) -> list[str]:
    (x0, x1), (y0, y1) = axes.x, axes.y
    out = []
    for e in range(x0, x1 + 1):
        x, bottom = axes.at(10.0**e, 10.0**y0)
        out.append(line([(x, bottom), (x, bottom + 5)]))
        out.append(words(x - 8, bottom + 18, f"{10.0**e:g}", size=10))
    for e in range(y0, y1 + 1):
        left, y = axes.at(10.0**x0, 10.0**e)
        out.append(line([(left - 5, y), (left, y)]))
        out.append(words(left - 8, y + 4, f"{10.0**e:g}", size=10, end=True))
    left, bottom = axes.at(10.0**x0, 10.0**y0)
    right, top = axes.at(10.0**x1, 10.0**y1)
    out.append(line([(left, top), (left, bottom), (right, bottom)]))
    out.append(words(left, _HEIGHT - 12, "products (multiply and add) per byte of operands"))
    said = "products per cycle; lines: ceilings, of products or bytes per cycle"
    return [*out, words(12, 40, said)]


def _lines(axes: _Axes, ceilings: Sequence[Ceiling], labels: Labels) -> list[str]:
    """Return the ceilings: flat for products, rising for bytes, with names at the right ends."""
    (x0, x1), (y0, _) = axes.x, axes.y
    out, named = [], []
    top = max(c.per_cycle for c in ceilings if c.of == "products")
    for c in ceilings:
        per, flat = c.per_cycle, c.of == "products"
        # rising: from the lower or left edge to the highest flat ceiling or the right edge
        first = 10.0**x0 if flat else max(10.0**x0, 10.0**y0 / per)
        last = 10.0**x1 if flat else min(10.0**x1, top / per)
        if first >= last:
            continue
        ends = [axes.at(x, per if flat else x * per) for x in (first, last)]
        note = f"{c.name}: {per:g} {c.of} per cycle; {c.said_by}"
        out.append(line(ends, note, dashed=flat))
        labels.keep_line(ends)
        named.append((ends[1], f"{c.name}: {per:.3g}" + " bytes" * (not flat)))
    for end, text in sorted(named, key=lambda found: found[0][::-1]):
        out += labels.put(*end, text)
    return out


def _legend(colours: dict[str, str], measured: bool, labels: Labels) -> list[str]:
    names = [_SOURCES.get(name, f"weights read in place by {name}") for name in colours]
    said = "dots: estimated" + "; rings: measured" * measured
    x = _WIDTH - 30 - LETTER * max(map(len, (*names, said)))
    y = _HEIGHT - _BOTTOM - 18 * (len(names) + 1)
    labels.keep((x, y - 14, _WIDTH, _HEIGHT))
    out = [words(x, y, said)]
    for name, colour in zip(names, colours.values(), strict=True):
        y += 18
        out += [box(x, y - 10, 12, 12, colour, name), words(x + 18, y, name)]
    return out
