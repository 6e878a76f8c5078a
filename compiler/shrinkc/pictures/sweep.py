"""Picture of a sweep: a row per plan, with bars of memories and cycles per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shrinkc.core.words import show_size
from shrinkc.pictures.svg import COLOURS, EMPTY, LETTER, box, document, words

_MARGIN = 20
_TOP = 84
_ROW = 24
_BAR = 16
_GAP = 14
_LEVEL = 110
_CYCLES = 200
_SAID = 52  # letters after the cycles' bar
_FILLED, _TIME = COLOURS[0], COLOURS[2]


@dataclass(frozen=True)
class Row:
    """Row of a plan: values of its options, (used, available) bytes per memory (empty if it does not fit),
    cycles per token (None: not known), and a remark."""

    labels: Sequence[str]
    bars: Sequence[tuple[int, int]]
    cycles: float | None
    said: str


def sweep_picture(
    title: str, heads: Sequence[str], levels: Sequence[str], rows: Sequence[Row]
) -> str:
    """Return an SVG; ``heads`` are titles of the option columns, ``levels`` of the bars."""
    columns = [
        max(len(text) for text in (head, *(row.labels[i] for row in rows))) * LETTER + _GAP
        for i, head in enumerate(heads)
    ]
    bars_at = _MARGIN + sum(columns)
    cycles_at = bars_at + len(levels) * (_LEVEL + _GAP)
    width = int(cycles_at + _CYCLES + _GAP + _SAID * LETTER + _MARGIN)
    most = max((row.cycles or 0.0 for row in rows), default=0.0)
    body = [words(_MARGIN, 24, title, size=15)]
    body.append(words(_MARGIN, 42, "bars: how full each memory is; cycles of a decode step"))
    x = float(_MARGIN)
    for head, column in zip(heads, columns, strict=True):
        body.append(words(x, _TOP - 10, head, size=12))
        x += column
    for i, level in enumerate(levels):
        body.append(words(bars_at + i * (_LEVEL + _GAP), _TOP - 10, level, size=12))
    body.append(words(cycles_at, _TOP - 10, "cycles per token", size=12))
    for index, row in enumerate(rows):
        y = _TOP + index * _ROW
        x = float(_MARGIN)
        for label, column in zip(row.labels, columns, strict=True):
            body.append(words(x, y + 12, label))
            x += column
        for i, bar in enumerate(row.bars):
            body += _level(bars_at + i * (_LEVEL + _GAP), y, *bar, levels[i])
        behind = cycles_at if row.bars else bars_at
        if row.cycles is not None:
            long = _CYCLES * row.cycles / max(most, 1.0)
            body.append(box(cycles_at, y, long, _BAR, _TIME, row.said))
            behind = cycles_at + _CYCLES + _GAP
        body.append(words(behind, y + 12, row.said))
    return document(width, _TOP + len(rows) * _ROW + _MARGIN, body)


def _level(x: float, y: float, used: int, have: int, name: str) -> list[str]:
    note = f"{name}: {used} of {have} bytes"
    filled = _LEVEL * min(1.0, used / max(have, 1))
    return [
        box(x, y, _LEVEL, _BAR, EMPTY, note),
        box(x, y, filled, _BAR, _FILLED, note, edge=False),
        words(x + 4, y + 12, show_size(used)),
    ]
