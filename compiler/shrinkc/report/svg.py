"""Parts of pictures: an SVG document, boxes and words.  The same values give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

TEXT = 11
LETTER = 6.2  # width of a letter at that size, for what fits into a box


def document(width: int, height: int, body: Iterable[str]) -> str:
    """On white."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="{TEXT}">'
    )
    paper = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, paper, *body, "</svg>"]) + "\n"


def box(
    x: float, y: float, width: float, height: float, fill: str, note: str, edge: bool = True
) -> str:
    """A rectangle that shows ``note`` while the pointer is on it."""
    line = ' stroke="#555" stroke-width="0.4"' if edge else ""
    hit = ' pointer-events="none"' if fill == "none" else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.2):.2f}" height="{max(height, 0.2):.2f}" '
        f'fill="{fill}"{line}{hit}><title>{escape(note)}</title></rect>'
    )


def words(x: float, y: float, text: str, size: int = TEXT) -> str:
    """Text whose first letter's foot is at (x, y); the pointer goes through it."""
    return f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" pointer-events="none">{escape(text)}</text>'
