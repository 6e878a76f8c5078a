"""Bytes against quality: the steps of a run as a path."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shrinkc.core.words import show_size
from shrinkc.report.parts import Data, number, percent
from shrinkc.report.svg import COLOURS, LETTER, document, dot, line, words

_WIDTH, _HEIGHT = 1100, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 150, 46, 52
_TICKS = 5
_LINE = 13


def quality(steps: Sequence[Data], key: str, name: str) -> str | None:
    """An SVG document, ``steps[key]`` as logarithms; None where no step has it."""
    measured = [s for s in steps if s[key] is not None and s[key] > 0]
    if not measured:
        return None
    most = 1.05 * max(s["packed_bytes"] for s in measured)
    logs = [math.log(s[key]) for s in measured]
    low, high = min(logs), max(logs)
    pad = max(0.15 * (high - low), 0.02)
    low, high = low - pad, high + pad

    def at(size: float, log: float) -> tuple[float, float]:
        return (
            _LEFT + size / most * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (high - log) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    out = [words(12, 22, f"{name} against packed bytes", size=14)]
    corner, right, top = at(0, low), at(most, low), at(0, high)
    out.append(line([top, corner, right]))
    for i in range(_TICKS):
        x, y = at(most * i / (_TICKS - 1), low)
        out += [
            line([(x, y), (x, y + 5)]),
            words(x - 14, y + 18, show_size(round(most * i / (_TICKS - 1)))),
        ]
        log = low + (high - low) * i / (_TICKS - 1)
        x, y = at(0, log)
        out += [line([(x - 5, y), (x, y)]), words(x - 8, y + 4, f"{math.exp(log):.4g}", end=True)]
    places = [at(s["packed_bytes"], log) for s, log in zip(measured, logs, strict=True)]
    if len(places) > 1:
        out.append(line(places, dashed=True))
    taken: list[tuple[float, float]] = []
    for (x, y), s in zip(places, measured, strict=True):
        note = (
            f"{s['name']}: {show_size(s['packed_bytes'])}, {percent(s['share'])} of bf16; perplexity "
            f"{number(s['perplexity'], 2)}, {number(s['bits_per_byte'], 4)} bits per byte"
        )
        out.append(dot(x, y, COLOURS[0], note))
        low_y = y - 9
        while any(abs(low_y - t) < _LINE and abs(x - u) < LETTER * 20 for u, t in taken):
            low_y += 2
        taken.append((x, low_y))
        out.append(words(x + 8, low_y, s["name"]))
    return document(_WIDTH, _HEIGHT, out)
