"""Picture of quality against size: the steps of a compression run as a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shrinkc.pictures.labels import Labels
from shrinkc.pictures.svg import COLOURS, document, dot, line, ticks, words

_WIDTH, _HEIGHT = 1100, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 150, 46, 52
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_WIDE = 10.0  # ratio of most to least above which ticks are 1, 2 and 5 times powers of ten


@dataclass(frozen=True)
class Measured:
    """Measured step: ``bytes`` packed, ``value`` above 0 (less is better)."""

    name: str
    bytes: int
    value: float
    note: str


def quality(steps: Sequence[Measured], measure: str) -> str | None:
    """Return an SVG with a log scale of values; None if there are no steps."""
    if not steps:
        return None
    most = 1.05 * max(1, *(s.bytes for s in steps))
    logs = [math.log(s.value) for s in steps]
    low, high = min(logs), max(logs)
    pad = max(0.15 * (high - low), 0.02)
    low, high = low - pad, high + pad

    def at(size: float, log: float) -> tuple[float, float]:
        return (
            _LEFT + size / most * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - log) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    out = [words(12, 22, f"{measure} against packed bytes", size=14)]
    out.append(line([at(0, high), at(0, low), at(most, low)]))
    unit = min(int(math.log(most, 1024)), len(_UNITS) - 1)
    for tick in ticks(0, most / 1024**unit):
        x, y = at(tick * 1024**unit, low)
        out.append(line([(x, y), (x, y + 5)]))
        out.append(words(x - 8, y + 18, f"{tick:.6g} {_UNITS[unit]}"))
    for tick in _value_ticks(math.exp(low), math.exp(high)):
        x, y = at(0, math.log(tick))
        out.append(line([(x - 5, y), (x, y)]))
        out.append(words(x - 8, y + 4, f"{tick:.6g}", end=True))
    places = [at(s.bytes, log) for s, log in zip(steps, logs, strict=True)]
    labels = Labels((_LEFT, _TOP - 16, _WIDTH - 8, _HEIGHT - _BOTTOM))
    labels.keep_line(places)
    if len(places) > 1:
        out.append(line(places, dashed=True))
    for (x, y), s in zip(places, steps, strict=True):
        labels.keep_dot(x, y)
        out.append(dot(x, y, COLOURS[0], s.note))
    for (x, y), s in zip(places, steps, strict=True):
        out += labels.put(x, y, s.name)
    return document(_WIDTH, _HEIGHT, out)


def _value_ticks(low: float, high: float) -> list[float]:
    if high < _WIDE * low:
        return ticks(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**e for e in decades for factor in (1, 2, 5)]
    return [value for value in every if low <= value <= high]
