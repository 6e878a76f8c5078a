"""Ops between the ceilings of their target: products per cycle over products per byte, both as logarithms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from shrinkc.report.parts import Data
from shrinkc.report.svg import COLOURS, LETTER, box, document, dot, line, words

_WIDTH, _HEIGHT = 1100, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 270, 58, 52
_SOURCES = ("l1", "dma", "flash")
_LINE = 13  # between two labels


class _Axes:
    """Decades to places."""

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


def roofline(title: str, ops: Sequence[Data], ceilings: Sequence[Data]) -> str | None:
    """An SVG document; None where no op has cycles.  A full dot is estimated, a ring is measured."""
    points = [
        (op, kind, op["products_per_byte"], op[f"{kind}_products_per_cycle"])
        for op in ops
        for kind in ("estimated", "measured")
        if op[f"{kind}_products_per_cycle"] and op["products_per_byte"] > 0
    ]
    if not points:
        return None
    flat = [c for c in ceilings if c["of"] == "products"]
    axes = _Axes(
        [x for *_, x, _ in points], [*(y for *_, y in points), *(c["per_cycle"] for c in flat)]
    )
    out = [words(12, 22, title, size=14), *_grid(axes), *_lines(axes, ceilings)]
    colours = {name: COLOURS[i] for i, name in enumerate(_SOURCES)}
    labels = []
    several = {p["op"] for p in ops if sum(other["op"] == p["op"] for other in ops) > 1}
    for op, kind, x, y in points:
        colour = colours.setdefault(op["source"], COLOURS[len(colours) % len(COLOURS)])
        at = axes.at(x, y)
        note = (
            f"{op['op']} ({op['kind']}), {kind}: {y:.3g} products per cycle, {x:.3g} per byte; "
            f"{op['layers']} times, bytes from {op['source']}"
        )
        out.append(dot(*at, colour, note, hollow=kind == "measured"))
        if kind == "estimated" or not op["estimated"]:
            where = f" ({op['source']})" if op["op"] in several else ""
            labels.append((*at, op["op"] + where))
    out += _labels(labels)
    out += _legend(
        colours, {op["source"] for op, *_ in points}, any(k == "measured" for _, k, *_ in points)
    )
    return document(_WIDTH, _HEIGHT, out)


def _grid(axes: _Axes) -> list[str]:
    (x0, x1), (y0, y1) = axes.x, axes.y
    out = []
    for e in range(x0, x1 + 1):
        x, bottom = axes.at(10.0**e, 10.0**y0)
        out += [
            line([(x, bottom), (x, bottom + 5)]),
            words(x - 8, bottom + 18, f"{10.0**e:g}", size=10),
        ]
    for e in range(y0, y1 + 1):
        left, y = axes.at(10.0**x0, 10.0**e)
        out += [
            line([(left - 5, y), (left, y)]),
            words(left - 8, y + 4, f"{10.0**e:g}", size=10, end=True),
        ]
    left, bottom = axes.at(10.0**x0, 10.0**y0)
    right, top = axes.at(10.0**x1, 10.0**y1)
    out.append(line([(left, top), (left, bottom), (right, bottom)]))
    out.append(words(left, _HEIGHT - 12, "products (multiply and add) per byte of operands"))
    out.append(
        words(12, top - 10, "products per cycle; lines: ceilings, of products or bytes per cycle")
    )
    return out


def _lines(axes: _Axes, ceilings: Sequence[Data]) -> list[str]:
    """Flat ones for what computes, rising ones for what brings bytes."""
    (x0, x1), (y0, _) = axes.x, axes.y
    out, taken = [], list[float]()
    flat = [c for c in ceilings if c["of"] == "products"]
    top = max(c["per_cycle"] for c in flat)
    for c in sorted(flat, key=lambda c: -c["per_cycle"]):
        per = c["per_cycle"]
        note = f"{c['name']}: {per:g} products per cycle; {c['said_by']}"
        ends = [axes.at(10.0**x0, per), axes.at(10.0**x1, per)]
        out.append(line(ends, note, dashed=True))
        y = _free(ends[1][1] + 4, taken)
        out.append(words(ends[1][0] + 6, y, f"{c['name']}: {per:.3g}"))
    for c in (c for c in ceilings if c["of"] == "bytes"):
        per = c["per_cycle"]
        note = f"{c['name']}: {per:g} bytes per cycle; {c['said_by']}"
        # from the picture's lower or left edge to the highest flat one, or the right edge
        first = max(10.0**x0, 10.0**y0 / per)
        last = min(10.0**x1, top / per)
        if first >= last:
            continue
        ends = [axes.at(first, first * per), axes.at(last, last * per)]
        out.append(line(ends, note))
        (x, y), text = ends[1], f"{c['name']}: {per:.3g} bytes"
        if last < top / per:  # it leaves by the right edge
            out.append(words(x + 6, _free(y + 4, taken), text))
        else:
            out.append(words(x - 30, y - 6, text))
    return out


def _free(y: float, taken: list[float]) -> float:
    """The first place from ``y`` on for a line of words where none of the others is."""
    while any(abs(y - other) < _LINE for other in taken):
        y += 1
    taken.append(y)
    return y


def _labels(found: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names beside their dots, moved down where another one is."""
    out, taken = [], list[tuple[float, float, float]]()
    for x, y, name in sorted(found, key=lambda f: (f[1], f[0])):
        left, right, top = x + 9, x + 9 + len(name) * LETTER, y + 4
        while any(abs(top - t) < _LINE and left < r and l < right for l, r, t in taken):  # noqa: E741
            top += 2
        taken.append((left, right, top))
        out.append(words(left, top, name))
    return out


def _legend(colours: dict[str, str], used: set[str], measured: bool) -> list[str]:
    x, y = _WIDTH - _RIGHT + 40, _HEIGHT - _BOTTOM - 18 * (len(used) + 2)
    names = {"l1": "all in L1", "dma": "weights or cache by DMA", "flash": "weights from flash"}
    out = [words(x, y, "dots: estimated" + "; rings: measured" * measured)]
    for name in (n for n in colours if n in used):
        y += 18
        text = names.get(name, f"weights read in place by {name}")
        out += [box(x, y - 10, 12, 12, colours[name], text), words(x + 18, y, text)]
    return out
