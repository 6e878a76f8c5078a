"""The pictures of the pages, in docs/pictures: of docs/integers.md shrinkc.numerics computes the numbers in them.

``PYTHONPATH=compiler:tests python -m docs.pictures`` writes them; test_pictures.py compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from docs.drawing import WIDTH, arrow, box, document, number, power, row, text
from docs.quality_picture import quality
from shrinkc.abi import kv_block_bytes
from shrinkc.numerics.fixed import EXP2_TABLE_MAX_REL_ERROR, bit_length, exp2_table
from shrinkc.numerics.vectors import (
    SHARES,
    WIDE_BITS,
    places_of_share,
    quantize_q16,
    quantize_vector,
    square_drop,
)

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"

LARGE = np.array([1_212_416, -348_160, 78_848, 5_222_400, -26_624, 9_216, -832, 30_720])
SMALL = LARGE // 256


def scales() -> str:
    """Two tokens, one 256 times as large as the other: 16-bit vectors, and int8 ones in segments."""
    x, cell, seg, cmax = 112, 62, 4, 255
    both = np.stack([LARGE, SMALL])
    wide, narrow = quantize_q16(both, WIDE_BITS), quantize_vector(both, seg, cmax)
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
            left = x + g * seg * cell
            words = f"c = {c}"
            out += [box(left + 2, y + 112, seg * cell - 4, 20, "c", words)]
        scale = f"{narrow.mantissa[token]} · {power(int(narrow.exponent[token]))} / (127 · {cmax})"
        out += [text(x + 8 * cell, y + 150, f"q · c · {scale}", at="end", kind="soft")]
        y += 178
    out += [
        text(
            16,
            y,
            "16 bit: one power of two per token, so rounding is a shift. int8: a segment of small values",
        ),
        text(
            16,
            y + 18,
            "has a small c, rounded up, and its values are rounded with exactly that scale.",
        ),
    ]
    return document(y + 34, "Scales per token and per segment", out)


def low_byte(q: int) -> int:
    return ((q + 128) & 255) - 128


def two_bytes() -> str:
    """Activations as planes of signed bytes, and a product that is exact with them."""
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
            f"Both sums are of bytes, as N-EUREKA and the cores have them: {joined}, exactly.",
        ),
        text(
            16,
            218,
            "Both bytes are signed: a low byte above 127 is that byte less 256, and one more in high.",
        ),
    ]
    return document(234, "A 16-bit activation is two signed bytes", out)


def norm_in_shares() -> str:
    """Eight runs of a residual stream, each with its own shift."""
    k, bits = 576, WIDE_BITS
    places, drop = places_of_share(k), square_drop(k)
    largest = [1_900, 760_000, 24_000, 310, 5_200, 88_000, 12, 43_000]
    length = [int(bit_length(v)) for v in largest]
    x, unit = 232, 11.0
    out = [
        text(16, 28, f"{k} places in {SHARES} shares of {places}", size=14),
        text(x, 28, "bits of the share's largest", kind="soft"),
        text(x + 31 * unit + 18, 28, "shifted up by", kind="soft"),
    ]
    for share, (value, n) in enumerate(zip(largest, length, strict=True)):
        y = 42 + share * 26
        out += [text(16, y + 14, f"share {share}: largest {number(value)}")]
        out += [box(x, y, 31 * unit, 18), box(x, y, n * unit, 18, "a", f"{n}")]
        out += [text(x + 31 * unit + 18, y + 14, f"{31 - n} bits")]
    y = 42 + SHARES * 26 + 20
    steps = [
        ("z", "b", "x shifted up by its share: 31 bits"),
        ("y", "b", "(z · gain) >> 32, gain in Q31: half of z · gain, a high word, rounded down"),
        (
            "Σ",
            "c",
            f"squares of the highest {31 - drop} bits of z: a share's sum fits 32 bits, all of them 64",
        ),
        (
            "q",
            "a",
            f"y rounded to {bits} bits of the token's largest: the shares' shifts are undone here, together",
        ),
        (
            "1/√Σ",
            "d",
            "an integer root and one division: changes mantissa and exponent of the token, no q",
        ),
    ]
    for at, (name, kind, words) in enumerate(steps):
        top = y + at * 28
        out += [box(16, top, 52, 22, kind, name), text(80, top + 15, words)]
    return document(y + len(steps) * 28 + 12, "RMSNorm in shares", out)


def exp2() -> str:
    """The table against the function, whole and near the largest score."""

    def curve(
        left: float, top: float, width: float, height: float, last: int, low: float
    ) -> list[str]:
        """Both lines for differences of 0 to ``last`` in Q9; the lower edge is ``low`` of 1."""

        def at(q9: float, value: float) -> str:
            down = height * (1 - (value / 65536 - low) / (1 - low))
            return f"{left + width * q9 / last:.2f},{top + down:.2f}"

        table = exp2_table(np.arange(last))
        width_of = max(last // 128, 1)
        steps = [
            at(q9, float(table[q9])) + " " + at(q9 + width_of, float(table[q9]))
            for q9 in range(0, last, width_of)
        ]
        exact = [at(q9, 65536 * 2.0 ** (-q9 / 512)) for q9 in np.linspace(0, last, 97)]
        edge = f'<path class="line" d="M{left:g},{top:g} v{height:g} h{width:g}"/>'
        return [
            edge,
            f'<polyline class="curve" points="{" ".join(exact)}"/>',
            f'<polyline class="steps" points="{" ".join(steps)}"/>',
        ]

    out = curve(56, 40, 270, 180, 4 * 512, 0.0) + curve(420, 40, 270, 180, 24, 0.965)
    for octave in range(5):
        out += [text(56 + octave * 270 / 4, 236, str(octave), kind="soft", at="middle")]
        out += [
            text(
                50,
                44 + 180 * (1 - 2.0**-octave),
                power(-octave) if octave else "1",
                size=11,
                kind="soft",
                at="end",
            )
        ]
    for q9 in (0, 8, 16, 24):
        out += [
            text(420 + q9 * 270 / 24, 236, f"{q9}/512" if q9 else "0", kind="soft", at="middle")
        ]
    out += [
        text(414, 44, "1", size=11, kind="soft", at="end"),
        text(414, 224, "0.965", size=11, kind="soft", at="end"),
        text(56, 26, "2 to the minus x: x is how far below the largest", size=13),
        text(420, 26, "its first entries: 2 units of x each"),
        text(16, 262, "orange: the function; blue: T[(x >> 1) & 255] >> (x >> 9), x in Q9, T of 256 entries in Q16."),
        text(16, 280, "An entry is the value in the middle of its step: "
             f"relative error at most {100 * EXP2_TABLE_MAX_REL_ERROR:.3f} % before the shift."),
    ]  # fmt: skip
    return document(296, "The table of exp2", out)


def cached_heads() -> str:
    """Bytes of four cached positions of a layer with two KV heads of 16 channels."""
    kv_heads, dim, positions = 2, 16, 4
    k_block, v_block = kv_block_bytes(kv_heads, dim)
    record = k_block // positions // kv_heads
    x, out = 96.0, [text(16, 28, "keys: a record per position and KV head", size=14)]
    assert record == 4 + dim
    for position in range(positions):
        y = 42 + position * 30
        out += [text(16, y + 16, f"position {position}", kind="soft")]
        for head in range(kv_heads):
            at = x + head * 306
            out += [box(at, y, 52, 24, "c", "k scale"), box(at + 52, y, 52, 24, "d", "v scale")]
            out += [box(at + 104, y, 190, 24, "a", f"int8 key of head {head}: {dim} bytes")]
    out += [
        text(16, 178, f"scales: 16 bit, units of 2^unit; a record is {record} bytes, "
             f"four positions of {kv_heads} heads {k_block}", kind="soft"),
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
        text(16, 312, f"four positions are {v_block} bytes; one SIMD product weighs four positions of a channel.",
             kind="soft"),
        text(16, 338, "value = q · scale · 2^unit / 127. The scale is rounded up, and the bytes are rounded with it."),
    ]  # fmt: skip
    return document(356, "Heads in the cache", out)


EXACT, NEAREST, DOWN, TABLE = ("c", "exact"), ("a", "nearest"), ("b", "down"), ("d", "table")
STAGES: tuple[tuple[str, tuple[tuple[tuple[str, str], str], ...]], ...] = (
    ("embed", ((EXACT, "q · d − b, times r"), (DOWN, "high word"), (NEAREST, "shift"))),
    ("norm, 16 bit", ((DOWN, "z · gain"), (DOWN, "squares' sum, root, 1/√"), (NEAREST, "q"))),
    ("qkv", ((EXACT, "Σ q · x"), (NEAREST, "high word"), (NEAREST, "shift; saturates"))),
    ("RoPE", ((DOWN, "to 15 bits"), (EXACT, "x · cos ± x · sin"), (DOWN, "to 16 bits"))),
    ("int8 heads", ((NEAREST, "q"), (DOWN, "the reciprocal; scales of the cache up"))),
    ("scores", ((EXACT, "q · k"), (NEAREST, "to 16 bits"), (EXACT, "· k scale"), (DOWN, "x in Q9"))),
    ("softmax", ((TABLE, "exp2"), (DOWN, "octaves"), (NEAREST, "weight"), (EXACT, "Σ weight · v"))),
    ("mean", ((DOWN, "1 / Σ, high word"), (NEAREST, "shift"))),
    ("o + residual", ((NEAREST, "16-bit q"), (EXACT, "Σ q · x"), (NEAREST, "high word"), (NEAREST, "shift; clips"))),
    ("norm, 16 bit", ((DOWN, "as above"), (NEAREST, "q"))),
    ("gate, up", ((EXACT, "Σ q · x"), (NEAREST, "high word"), (NEAREST, "shift; saturates"))),
    ("SiLU · up", ((NEAREST, "gate to Q16"), (TABLE, "sigmoid + slope"), (DOWN, "two high words"))),
    ("down + residual", ((NEAREST, "16-bit q"), (EXACT, "Σ q · x"), (NEAREST, "high word"), (NEAREST, "shift; clips"))),
    (
        "norm, head",
        ((DOWN, "as above"), (NEAREST, "q"), (EXACT, "Σ q · x"), (NEAREST, "high word"), (NEAREST, "shift")),
    ),
    ("greedy token", ((EXACT, "largest logit, lowest index"),)),
)  # fmt: skip


def rounding() -> str:
    """Each stage of a token's way through a model with one scale per row, and what it does to a number."""
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
    left, last = 4, 48 + 12 * 30 + 20
    out += [f'<path class="line" stroke-dasharray="3 3" d="M{left},75 V{last}"/>']
    out += [text(WIDTH - 12, 28, "dotted: once per layer", size=11, kind="soft", at="end")]
    return document(48 + len(STAGES) * 30 + 6, "Where a number is rounded", out)


PICTURES: dict[str, Callable[[], str]] = {
    "scales": scales, "bytes": two_bytes, "norm": norm_in_shares, "exp2": exp2, "cache": cached_heads,
    "rounding": rounding, "quality": quality,
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
