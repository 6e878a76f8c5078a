"""Elements of SVG pictures.  Equal values give equal bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from xml.sax.saxutils import escape

TEXT = 11
LETTER = 6.2  # width of a letter at that size, to decide whether text fits a box

_PALETTE = {
    "#8fb8de": "#2f6396",
    "#a7d3a6": "#38703d",
    "#f2c879": "#7d5a10",
    "#e8a598": "#97493a",
    "#c3b1e1": "#655091",
    "#9fd8d0": "#2c7067",
    "#d9cf9c": "#6d6433",
    "#c9c9c9": "#5c5c5c",
}
COLOURS = tuple(_PALETTE)
EMPTY = "#f4f4f4"
EDGE = "#555"

ON_DARK = {
    **_PALETTE,
    "#d9d9d9": "#4b4d50",
    EMPTY: "#26292d",
    "#f6f6f6": "#26292d",
    "white": "#17191c",
    EDGE: "#9a9a9a",
}
"""Colour -> its replacement on pages in dark mode."""


def document(width: int, height: int, body: Iterable[str]) -> str:
    """Return an SVG document on white."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="{TEXT}">'
    )
    paper = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, paper, *body, "</svg>"]) + "\n"


def box(
    x: float, y: float, width: float, height: float, fill: str, note: str, edge: bool = True, opacity: float = 1.0
) -> str:  # fmt: skip
    """Return a rectangle; hovering shows ``note``."""
    line = f' stroke="{EDGE}" stroke-width="0.4"' if edge else ""
    hit = ' pointer-events="none"' if fill == "none" else ""
    pale = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.2):.2f}" height="{max(height, 0.2):.2f}" '
        f'fill="{fill}"{pale}{line}{hit}><title>{escape(note)}</title></rect>'
    )


def dot(x: float, y: float, fill: str, note: str, hollow: bool = False) -> str:
    """Return a circle; hovering shows ``note``.  ``hollow``: a ring."""
    look = (
        f'fill="none" stroke="{fill}" stroke-width="3"'
        if hollow
        else f'fill="{fill}" stroke="{EDGE}"'
    )
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="6" {look}><title>{escape(note)}</title></circle>'


def line(
    points: Iterable[tuple[float, float]], note: str = "", dashed: bool = False, thin: bool = False
) -> str:
    """Return a line through ``points``.  ``thin``: for lines from labels to marks."""
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    dash += ' stroke-width="0.4"' if thin else ""
    title = f"<title>{escape(note)}</title>" if note else ""
    return f'<polyline points="{path}" fill="none" stroke="{EDGE}"{dash}>{title}</polyline>'


def words(x: float, y: float, text: str, size: int = TEXT, end: bool = False) -> str:
    """Return text with its left (or with ``end`` its right) baseline end at (x, y); it ignores the pointer."""
    anchor = ' text-anchor="end"' if end else ""
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}"{anchor} pointer-events="none">'
        f"{escape(text)}</text>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return tick values above ``low`` and up to ``high``: at most ``most`` multiples of 1, 2 or 5 times a power of
    ten."""
    power = math.floor(math.log10((high - low) / most))
    for step in (factor * 10.0**e for e in (power, power + 1) for factor in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [i * step for i in range(first, last + 1)]
