"""Draws docs/pictures: ``python docs/draw.py``.  shrinkc.numerics computes the numbers in the pictures of
docs/background/arithmetic.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from shrinkc.abi import kv_block_bytes
from shrinkc.numerics.vectors import WIDE_BITS, quantize_q16, quantize_vector

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


FOLDER = Path(__file__).with_name("pictures")

LARGE = np.array([1_212_416, -348_160, 78_848, 5_222_400, -26_624, 9_216, -1_024, 30_720])
SMALL = LARGE // 256


def scales() -> str:
    """Two tokens, one 256 times as large as the other, as 16-bit vectors and as int8 vectors in groups."""
    x, cell, group, cmax = 112, 62, 4, 255
    both = np.stack([LARGE, SMALL])
    wide, narrow = quantize_q16(both, WIDE_BITS), quantize_vector(both, group, cmax)
    out, y = [], 30.0
    for token, name in enumerate(("token 1", "token 2, 256 times smaller")):
        values = both[token]
        out += [text(16, y, name, size=14), text(16, y + 30, "x, int32", kind="soft")]
        out += row(x, y + 14, [number(v) for v in values], cell)
        e = int(wide.exponent[token])
        out += [text(16, y + 66, "16 bit: q", kind="soft")]
        out += row(x, y + 50, [number(v) for v in wide.q[token]], cell, "a")
        out += [text(x + 8 * cell + 8, y + 66, f"· {power(e)}")]
        out += [text(16, y + 102, "int8: q", kind="soft")]
        out += row(x, y + 86, [number(v) for v in narrow.q[token]], cell, "b")
        for g, c in enumerate(narrow.c[token]):
            left = x + g * group * cell
            words = f"c = {c}"
            out += [box(left + 2, y + 112, group * cell - 4, 20, "c", words)]
        scale = f"{narrow.mantissa[token]} · {power(int(narrow.exponent[token]))} / (127 · {cmax})"
        out += [text(x + 8 * cell, y + 150, f"q · c · {scale}", at="end", kind="soft")]
        y += 178
    out += [
        text(
            16,
            y,
            "16 bits: one power of two per token, so rounding is a shift. int8: a group of small values",
        ),
        text(
            16,
            y + 18,
            "has a small c, rounded up. Its values are rounded with exactly that scale.",
        ),
    ]
    return document(y + 34, "Scales per token and per group", out)


def low_byte(q: int) -> int:
    return ((q + 128) & 255) - 128


def two_bytes() -> str:
    """Activations as two signed bytes each, and a product that stays exact."""
    q, w = [300, -300, 200, 8191], [3, -5, 7, 2]
    low = [low_byte(v) for v in q]
    high = [(v - b) // 256 for v, b in zip(q, low, strict=True)]
    assert all(v == 256 * h + b for v, h, b in zip(q, high, low, strict=True))

    def product(values: Sequence[int]) -> int:
        return sum(a * b for a, b in zip(w, values, strict=True))

    x, cell = 150, 74
    out = [text(16, 32, "weights w", kind="soft"), *row(x, 16, [number(v) for v in w], cell)]
    out += [text(16, 80, "q, 16 bit", kind="soft"), *row(x, 64, [number(v) for v in q], cell, "a")]
    out += [arrow(x + (i + 0.5) * cell, 90, x + (i + 0.5) * cell, 110) for i in range(4)]
    for at, name, values in ((114, "high, a byte", high), (144, "low, a byte", low)):
        out += [text(16, at + 16, name, kind="soft")]
        out += row(x, at, [number(v) for v in values], cell, "b" if name[0] == "h" else "c")
    right = x + 4 * cell + 20
    sums = [product(q), product(high), product(low)]
    for at, value, words in zip((80, 130, 160), sums, ("q", "high", "low"), strict=True):
        out += [text(right, at, f"Σ w · {words} = {number(value)}")]
    assert sums[0] == 256 * sums[1] + sums[2]
    joined = f"256 · {number(sums[1])} + {number(sums[2])} = {number(sums[0])}"
    out += [
        text(
            16,
            200,
            f"N-EUREKA and the cores sum products of bytes. The result is exact: {joined}.",
        ),
        text(
            16,
            218,
            "Both bytes are signed. A low byte above 127 is reduced by 256, and the high byte is increased by 1.",
        ),
    ]
    return document(234, "A 16-bit activation is two signed bytes", out)


def cached_heads() -> str:
    """Bytes of four cached positions of a layer with two KV heads of 16 channels."""
    kv_heads, dim, positions = 2, 16, 4
    k_block, v_block = kv_block_bytes(kv_heads, dim)
    record = k_block // positions // kv_heads
    x, out = 96.0, [text(16, 28, "keys: one record per position and KV head", size=14)]
    assert record == 4 + dim
    for position in range(positions):
        y = 42 + position * 30
        out += [text(16, y + 16, f"position {position}", kind="soft")]
        for head in range(kv_heads):
            at = x + head * 306
            out += [box(at, y, 52, 24, "c", "k scale"), box(at + 52, y, 52, 24, "d", "v scale")]
            out += [box(at + 104, y, 190, 24, "a", f"int8 key of head {head}: {dim} bytes")]
    out += [
        text(16, 178, f"scales have 16 bits and the unit 2^unit; a record has {record} bytes, "
             f"four positions of {kv_heads} heads have {k_block}", kind="soft"),
        text(16, 214, "values: a word holds one channel of four positions", size=14),
    ]  # fmt: skip
    for head in range(kv_heads):
        y = 228 + head * 34
        out += [text(16, y + 16, f"KV head {head}", kind="soft")]
        for channel in range(4):
            at = x + channel * 142
            cells = [f"{p}" for p in range(positions)]
            out += [box(at + i * 24, y, 24, 24, "b", cell) for i, cell in enumerate(cells)]
            out += [text(at + 100, y + 16, f"ch. {channel}", size=11, kind="soft")]
        out += [text(x + 4 * 142 - 4, y + 16, "…")]
    out += [
        text(16, 312, f"four positions have {v_block} bytes; one SIMD instruction multiplies four positions "
             "of a channel.",
             kind="soft"),
        text(16, 338, "value = q · scale · 2^unit / 127. The scale is rounded up first, then the bytes are rounded "
             "with that scale."),
    ]  # fmt: skip
    return document(356, "Keys and values in the KV cache", out)


EXACT, NEAREST, DOWN, TABLE = ("c", "exact"), ("a", "nearest"), ("b", "down"), ("d", "table")
_NORM = ((DOWN, "x · norm weight"), (DOWN, "1 / √(mean square)"), (NEAREST, "to 16 bits"))
_PRODUCT = ((EXACT, "Σ q · x"), (NEAREST, "· scale"), (NEAREST, "shift"))
STAGES: tuple[tuple[str, tuple[tuple[tuple[str, str], str], ...]], ...] = (
    ("embedding", ((EXACT, "(q · d − b) · r"), (DOWN, "· scale"), (NEAREST, "shift"))),
    ("RMSNorm", _NORM),
    ("q, k, v", _PRODUCT),
    ("RoPE", ((DOWN, "to 15 bits"), (EXACT, "x · cos ± x · sin"), (DOWN, "to 16 bits"))),
    ("KV cache", ((DOWN, "1 / scale"), (NEAREST, "q, k, v to int8"))),
    ("scores", ((EXACT, "q · k"), (NEAREST, "to 16 bits"), (EXACT, "· scale of k"), (DOWN, "log2 units"))),
    ("softmax", (
        (TABLE, "2^x"), (NEAREST, "weight to 15 bits"), (EXACT, "Σ weight · v"), (DOWN, "1 / Σ"), (NEAREST, "shift"),
    )),
    ("o + residual", ((NEAREST, "to 16 bits"), *_PRODUCT)),
    ("RMSNorm", _NORM),
    ("gate, up", _PRODUCT),
    ("SiLU · up", ((NEAREST, "gate to Q16"), (TABLE, "sigmoid"), (NEAREST, "gate · sigmoid"), (DOWN, "· up"))),
    ("down + residual", ((NEAREST, "to 16 bits"), *_PRODUCT)),
    ("RMSNorm", _NORM),
    ("LM head", _PRODUCT),
    ("greedy token", ((EXACT, "largest logit, lowest token id"),)),
)  # fmt: skip


def rounding() -> str:
    """The steps of a token in a per-channel model, and how each rounds."""
    out, x = [], 128.0
    for kind, name in (EXACT, NEAREST, DOWN, TABLE):
        out += [box(x, 14, 70, 20, kind, name, 11)]
        x += 82
    for at, (name, steps) in enumerate(STAGES):
        y, x = 48 + at * 30, 128.0
        if at:
            out += [arrow(60, y - 10, 60, y - 1)]
        out += [box(10, y, 106, 20, "box", name, 12)]
        for (kind, _), words in steps:
            width = 16 + 6.3 * len(words)
            out += [box(x, y, width, 20, kind, words, 11)]
            x += width + 6
        assert x < WIDTH, name
    left, last = 4, 48 + 11 * 30 + 20
    out += [f'<path class="line" stroke-dasharray="3 3" d="M{left},75 V{last}"/>']
    out += [text(WIDTH - 12, 28, "dotted: once per layer", size=11, kind="soft", at="end")]
    return document(48 + len(STAGES) * 30 + 6, "Where a number is rounded", out)


PICTURES: dict[str, Callable[[], str]] = {
    "scales": scales, "bytes": two_bytes, "cache": cached_heads, "rounding": rounding,
}  # fmt: skip


def write() -> None:
    """Writes those that are not as they are drawn now."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        path, drawn = FOLDER / f"{name}.svg", draw()
        if not path.exists() or path.read_text(encoding="utf-8") != drawn:
            path.write_text(drawn, encoding="utf-8")
            print(f"{path.name}: written")


if __name__ == "__main__":
    write()
