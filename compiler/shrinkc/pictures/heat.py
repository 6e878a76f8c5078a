"""Pictures of sensitivities: the cost of changing layers and matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shrinkc.pictures.svg import COLOURS, EMPTY, box, document, words

_WIDTH, _LEFT, _TOP = 1100, 110, 44
_ROW = 22
_BARS = 170
_DECADES = 4  # powers of ten between the strongest and the weakest colour


def heat(costs: Mapping[str, Sequence[float]], title: str) -> str:
    """Return an SVG heat map, colours on a log scale: a row per matrix, a column per layer (``costs[row][layer]``)."""
    layers = max(map(len, costs.values()), default=0)
    every = [v for values in costs.values() for v in values if v > 0]
    most = max(every, default=1.0)
    least = max(min(every, default=1.0), most / 10**_DECADES)
    column = (_WIDTH - _LEFT - 12) / max(layers, 1)
    out = [words(12, 20, title, size=14)]
    out += [words(_LEFT + i * column + 2, _TOP - 5, str(i), size=9) for i in range(layers)]
    for at, (row, values) in enumerate(costs.items()):
        y = _TOP + at * _ROW
        out.append(words(12, y + 15, row))
        for layer, cost in enumerate(values):
            note = f"layer {layer} {row}: {cost:.5f}"
            x = _LEFT + layer * column
            out.append(box(x, y, column, _ROW, EMPTY, note, edge=False))
            out.append(
                box(x, y, column, _ROW, COLOURS[3], note, opacity=_strength(cost, least, most))
            )
    return document(_WIDTH, _TOP + len(costs) * _ROW + 12, out)


def _strength(cost: float, least: float, most: float) -> float:
    """Return 0.05 to 1, on a log scale from ``least`` (and below) to ``most``."""
    if cost <= least:
        return 0.05
    return 0.05 + 0.95 * math.log(cost / least) / math.log(most / least)


def costs_of_layers(costs: Sequence[float], title: str) -> str:
    """Return an SVG bar chart with a bar per layer."""
    most = max([*costs, 1e-9])
    column = (_WIDTH - _LEFT - 12) / max(len(costs), 1)
    out = [
        words(12, 20, title, size=14),
        words(12, _TOP + 12, f"{most:.4g}"),
        words(12, _TOP + _BARS, "0"),
    ]
    for layer, cost in enumerate(costs):
        high = _BARS * max(cost, 0.0) / most
        note = f"layer {layer}: {cost:.5f}"
        x = _LEFT + layer * column
        out.append(box(x, _TOP + _BARS - high, column * 0.85, high, COLOURS[0], note))
        out.append(words(x + 2, _TOP + _BARS + 14, str(layer), size=9))
    return document(_WIDTH, _TOP + _BARS + 26, out)
