"""Timeline of a profiled run: lanes of the cores and of units that work at the same time.

The cores' lane is measured by the counters of a profile build.  The lanes below show how much of
each step the DMA, the HyperBus and other engines are busy, estimated by the cost model.  Equal runs
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shrinkc.pictures.svg import LETTER, box, document, words

_WIDTH = 1240
_MARGIN = 20
_LABEL = 90
_CORES = 64  # height of the measured lane
_LANE = 22
_GAP = 8
_TITLE = 44
_AXIS = 34

PARTS = {
    "working": ("#8fb8de", "the mean core working"),
    "stalls": ("#f2c879", "standing for loads or instructions"),
    "barrier": ("#d9d9d9", "asleep until others are done"),
    "transfers": ("#e8a598", "waiting for DMA or flash"),
}
"""Activity of a core -> its colour and its legend.  A core stalls for a value just loaded or for
instructions, and sleeps until another core is done."""
_BUSY = "#a7d3a6"


@dataclass(frozen=True)
class Span:
    """Step of ``cycles``.  ``parts``: cycles of the mean core by activity.  ``busy``: cycles of the DMA and
    other units by lane, None without a cost model."""

    name: str
    layer: int | None
    cycles: float
    parts: Mapping[str, float]
    busy: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name if self.layer is None else f"layer {self.layer} {self.name}"


@dataclass(frozen=True)
class Chart:
    """Chart of steps in order of execution."""

    title: str
    spans: Sequence[Span]

    @property
    def cycles(self) -> float:
        return sum(s.cycles for s in self.spans)

    @property
    def lanes(self) -> list[str]:
        """Return the lanes, except the cores', that are ever busy, in the order of their first span."""
        seen: dict[str, float] = {}
        for span in self.spans:
            for lane, cycles in span.busy.items():
                seen[lane] = seen.get(lane, 0.0) + cycles
        return [lane for lane, cycles in seen.items() if cycles > 0]

    @property
    def height(self) -> int:
        return _TITLE + _CORES + len(self.lanes) * (_LANE + _GAP) + _AXIS


def timeline(title: str, charts: Sequence[Chart]) -> str:
    """Return an SVG; hovering over a step shows its figures."""
    top, body = 62, list[str]()
    for chart in charts:
        body += _chart(chart, top)
        top += chart.height + 18
    head = words(_MARGIN, 24, title, size=15)
    legend = _legend(44, any(chart.lanes for chart in charts))
    return document(_WIDTH, top, [head, *legend, *body])


def _legend(y: float, modelled: bool) -> list[str]:
    x, out = float(_MARGIN), []
    shown = {said: colour for colour, said in PARTS.values()}
    if modelled:
        shown["busy, by the cost model"] = _BUSY
    for name, colour in shown.items():
        out += [box(x, y - 10, 12, 12, colour, name), words(x + 17, y, name)]
        x += 17 + len(name) * LETTER + 22
    return out


def _chart(chart: Chart, top: float) -> list[str]:
    left, width = _MARGIN + _LABEL, _WIDTH - 2 * _MARGIN - _LABEL
    scale = width / max(chart.cycles, 1.0)
    out = [words(_MARGIN, top + 12, f"{chart.title}: {chart.cycles:,.0f} cycles", size=13)]
    y = top + _TITLE - 8
    out.append(words(_MARGIN, y + _CORES / 2 + 4, "cores"))
    lanes = {lane: y + _CORES + _GAP + i * (_LANE + _GAP) for i, lane in enumerate(chart.lanes)}
    for lane, at in lanes.items():
        out += [
            words(_MARGIN, at + _LANE / 2 + 4, lane),
            box(left, at, width, _LANE, "#f6f6f6", f"{lane}: idle"),
        ]
    x, layer, free = float(left), None, float(left)
    for span in chart.spans:
        if span.layer is not None and span.layer != layer and x >= free:
            label = f"layer {span.layer}"
            out.append(words(x + 2, y - 4, label, size=9))
            free = x + len(label) * LETTER
        layer = span.layer
        out += _span(span, x, y, scale, lanes)
        x += span.cycles * scale
    bottom = max([y + _CORES, *(at + _LANE for at in lanes.values())])
    return out + _axis(chart, left, bottom + 4, scale)


def _span(span: Span, x: float, y: float, scale: float, lanes: Mapping[str, float]) -> list[str]:
    """Return a step's box, the cores' activities from left to right, and the shares of the other lanes."""
    width = span.cycles * scale
    figures = ", ".join(f"{name} {span.parts.get(name, 0):.0f}" for name in PARTS)
    note = f"{span.label}: {span.cycles:.0f} cycles; {figures}"
    whole = max(sum(span.parts.values()), 1e-9)
    out, at = [], x
    for name, (colour, _) in PARTS.items():
        part = width * span.parts.get(name, 0.0) / whole
        if part > 0.05:
            out.append(box(at, y, part, _CORES, colour, note, edge=False))
        at += part
    out.append(box(x, y, width, _CORES, "none", note))
    if len(span.name) * LETTER < width - 4:
        out.append(words(x + 3, y + _CORES / 2 + 4, span.name))
    for lane, top in lanes.items():
        part = min(1.0, span.busy.get(lane, 0.0) / max(span.cycles, 1e-9))
        if part > 0:
            high = part * _LANE
            note = f"{span.label}: {lane} busy {100 * part:.0f} %"
            out.append(box(x, top + _LANE - high, width, high, _BUSY, note, edge=False))
    return out


def _axis(chart: Chart, left: float, y: float, scale: float) -> list[str]:
    step = 10 ** max(0, len(str(int(chart.cycles))) - 1)
    if chart.cycles / step < 4:
        step = max(1, step // 4)
    out = []
    for at in range(0, int(chart.cycles) + 1, step):
        x = left + at * scale
        out += [
            f'<path d="M{x:.2f} {y:.2f} v5" stroke="#555" stroke-width="0.6"/>',
            words(min(x - 2, _WIDTH - _MARGIN - 42), y + 17, f"{at:,}", size=9),
        ]
    return out
