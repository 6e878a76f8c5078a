"""The picture of docs/results/compression.md: bits per byte against stored bytes, drawn from the page's own table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from docs.drawing import WIDTH, document, text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "compression.md"
BEGIN, END = "<!-- quality -->", "<!-- end of quality -->"
LEFT, TOP, RIGHT, BOTTOM = 60.0, 34.0, WIDTH - 20.0, 330.0
HIGHEST = 120.0  # MB: the model as it is lies far to the right, as a line
RIGHTWARDS, LEFTWARDS = 7.0, -20.0  # from a mark to the box of its number, 13 wide and 11 high


@dataclass(frozen=True)
class Row:
    """A way to fewer bytes.  ``before``: bits per byte before ``qat``; None: the model as it is."""

    name: str
    mb: float
    bits_per_byte: float
    before: float | None


def _free(taken: list[tuple[float, float]], x: float, y: float) -> tuple[float, float]:
    """The first place from ``y`` downwards that no other number has."""
    while any(abs(x - a) < 13 and abs(y - b) < 11 for a, b in taken):
        y += 1
    return x, y


def rows() -> list[Row]:
    """Those of the table, the model as it is first."""
    page = PAGE.read_text(encoding="utf-8")
    table = page.split(BEGIN)[1].split(END)[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("| ").split("|")]
        if len(cells) > 4 and re.fullmatch(r"[\d.]+", cells[1]):
            before = float(cells[4]) if re.fullmatch(r"[\d.]+", cells[4]) else None
            found.append(Row(cells[0].replace("`", ""), float(cells[1]), float(cells[3]), before))
    return found


def quality() -> str:
    """Two marks per way: before and after training through the rounding, joined by a line."""
    base, *others = rows()
    top = max(r.before or r.bits_per_byte for r in others) * 1.06
    least = base.bits_per_byte * 0.95

    def x(mb: float) -> float:
        return LEFT + (RIGHT - LEFT) * mb / HIGHEST

    def y(bits: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * math.log(bits / least) / math.log(top / least)

    out = [f'<path class="line" d="M{LEFT:g},{TOP:g} V{BOTTOM:g} H{RIGHT:g}"/>']
    for mb in range(0, 121, 20):
        out += [text(x(mb), BOTTOM + 18, f"{mb}", size=11, kind="soft", at="middle")]
    for bits in (1.2, 1.4, 1.6, 2, 3, 4):
        out += [text(LEFT - 8, y(bits) + 4, f"{bits:g}", size=11, kind="soft", at="end")]
    out += [
        text((LEFT + RIGHT) / 2, BOTTOM + 38, "packed, MB", size=12, kind="soft", at="middle"),
        text(
            LEFT,
            TOP - 14,
            "bits per byte of WikiText-2, 32 windows (logarithmic)",
            size=12,
            kind="soft",
        ),
        f'<path class="line" stroke-dasharray="4 4" d="M{LEFT:g},{y(base.bits_per_byte):.1f} H{RIGHT:g}"/>',
        text(
            LEFT + 8,
            y(base.bits_per_byte) - 6,
            f"as it is, {base.mb:g} MB",
            size=11,
            kind="soft",
        ),
    ]
    numbers: list[tuple[float, float]] = []
    for i, r in enumerate(others):
        at, ours = x(r.mb), y(r.bits_per_byte)
        if r.before is not None:
            before = y(r.before)
            out += [
                f'<path class="line" d="M{at:.1f},{before:.1f} V{ours:.1f}"/>',
                f'<circle class="b" cx="{at:.1f}" cy="{before:.1f}" r="5"/>',
            ]
        sides = [_free(numbers, at + shift, ours + 4) for shift in (RIGHTWARDS, LEFTWARDS)]
        place = min(sides, key=lambda p: p[1])  # the side where it stays nearest to its mark
        numbers.append(place)
        out += [
            f'<circle class="a" cx="{at:.1f}" cy="{ours:.1f}" r="5"/>',
            text(place[0] + 6.5, place[1], str(i + 1), size=11, at="middle"),
        ]
    out += [
        f'<circle class="b" cx="{RIGHT - 220:g}" cy="{TOP:g}" r="5"/>',
        text(RIGHT - 208, TOP + 4, "rounded", size=12),
        f'<circle class="a" cx="{RIGHT - 220:g}" cy="{TOP + 20:g}" r="5"/>',
        text(RIGHT - 208, TOP + 24, "and trained through the rounding", size=12),
    ]
    y0 = BOTTOM + 62
    for i, r in enumerate(others):
        out += [text(LEFT, y0 + 17 * i, f"{i + 1}   {r.name}", size=12)]
    return document(y0 + 17 * len(others), "Quality against bytes", out)
