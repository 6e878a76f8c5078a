"""What the pictures of the pages are drawn with: SVG in one style, which follows a page's colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

WIDTH = 720
# On a ground of its own, so that it can be read in a page of either colour.
STYLE = """
text { fill: #1f2328; } .soft { fill: #57606a; } .ground { fill: #ffffff; }
.line { stroke: #6e7781; fill: none; } .box { fill: #f3f5f7; stroke: #8c959f; }
.a { fill: #cfe3ff; stroke: #2f6fde; } .b { fill: #ffe0bf; stroke: #c2600a; }
.c { fill: #d3f0d8; stroke: #1a7f37; } .d { fill: #eadcff; stroke: #7a3ed1; }
.curve { fill: none; stroke: #c2600a; stroke-width: 1.5; } .steps { fill: none; stroke: #2f6fde; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .soft { fill: #a3adba; } .ground { fill: #1b1f27; }
.line { stroke: #8b95a3; } .box { fill: #272d38; stroke: #6b7480; }
.a { fill: #1d3a66; stroke: #79b0ff; } .b { fill: #5a3413; stroke: #ffb066; }
.c { fill: #173f23; stroke: #62d17e; } .d { fill: #3d2763; stroke: #c4a1ff; }
.curve { stroke: #ffb066; } .steps { stroke: #79b0ff; }
}
"""


def document(height: float, title: str, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">'
    )
    ground = f'<rect class="ground" width="{WIDTH}" height="{height:g}" rx="6"/>'
    body = [head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", ground, *parts]
    return "\n".join([*body, "</svg>"]) + "\n"


def text(
    x: float, y: float, words: str, *, size: int = 13, kind: str = "", at: str = "start"
) -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{at}"{css}>{escape(words)}</text>'


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    kind: str = "box",
    words: str = "",
    size: int = 12,
) -> str:
    """A rectangle with ``words`` in its middle."""
    shape = (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2"/>'
    )
    if not words:
        return shape
    middle = (x + width / 2, y + height / 2 + size * 0.36)
    return shape + text(*middle, words, size=size, at="middle")


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    angle = math.atan2(to_y - y, to_x - x)
    wings = [
        f"{to_x - 7 * math.cos(angle + turn):.1f},{to_y - 7 * math.sin(angle + turn):.1f}"
        for turn in (0.45, -0.45)
    ]
    path = f"M{x:g},{y:g} L{to_x:g},{to_y:g} M{wings[0]} L{to_x:g},{to_y:g} L{wings[1]}"
    return f'<path class="line" d="{path}"/>'


def row(x: float, y: float, cells: Sequence[object], width: float, kind: str = "box") -> list[str]:
    return [box(x + i * width, y, width, 24, kind, str(cell)) for i, cell in enumerate(cells)]


def number(value: int) -> str:
    return f"{value:,}".replace("-", "−")


def power(exponent: int) -> str:
    return "2" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
