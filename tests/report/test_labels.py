"""Words in pictures: none lies on another or on a dot, and ticks are plain numbers."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree as ET

import pytest

from shrinkc.pictures.quality import Measured, quality
from shrinkc.pictures.roofline import Ceiling, Point, roofline
from shrinkc.pictures.svg import LETTER, TEXT, ticks

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]

# ops of the story model's decode step and prompt: many in one place, some in exactly the same
OPS = {
    "qkv": (0.44, 20.1), "mid": (0.43, 17.9), "h": (0.43, 17.6), "out": (0.45, 21.5), "logits": (0.434, 23.2),
    "attn_in.q": (0.3, 0.27), "mlp_in.q": (0.3, 0.27), "final.q": (0.3, 0.27), "next": (0.25, 0.57),
}  # fmt: skip
CEILINGS = (
    Ceiling("cores, activations of 8 bit", "products", 32, ""), Ceiling("cores, of 16 bit", "products", 16, ""),
    Ceiling("N-EUREKA both", "products", 58.9, ""), Ceiling("L1", "bytes", 32, "", "l1"),
    Ceiling("DMA", "bytes", 6.6, "", "dma"), Ceiling("flash", "bytes", 0.996, "", "flash"),
)  # fmt: skip


def words(svg: str) -> dict[str, Box]:
    """Left, top, right and bottom of every text, by its words and place."""
    found = {}
    for text in ET.fromstring(svg).iter(f"{SVG}text"):
        x, y = float(text.get("x", "")), float(text.get("y", ""))
        wide = len(text.text or "") * LETTER * int(text.get("font-size", "")) / TEXT
        left = x - wide if text.get("text-anchor") == "end" else x
        found[f"{text.text} at {x}, {y}"] = (left, y - 8, left + wide, y)
    return found


def dots(svg: str) -> list[Box]:
    """The squares within the circles."""
    circles = ET.fromstring(svg).iter(f"{SVG}circle")
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in circles]
    return [(x - 4, y - 4, x + 4, y + 4) for x, y in places]


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check_words_are_apart(svg: str) -> None:
    found, width = words(svg), float(ET.fromstring(svg).get("viewBox", "").split()[2])
    assert len(found) > 12
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        assert not overlap(a, b), (one, other)
    for text, box in found.items():
        assert not any(overlap(box, dot) for dot in dots(svg)), text
        assert box[0] >= 0 and box[2] <= width, text


@pytest.mark.parametrize("factor", [0.7, 1.0])
def test_names_on_a_roofline(factor: float) -> None:
    points = [
        Point(op, "linear", source, 5, x * shift, y, factor * y)
        for source, shift in (("N-EUREKA both", 1), ("l1", 2.8))
        for op, (x, y) in OPS.items()
    ]
    svg = roofline("decode: a decode step", points, CEILINGS)
    assert svg is not None
    check_words_are_apart(svg)
    assert sum(" (l1) at " in text for text in words(svg)) == len(OPS)


def test_names_of_the_steps_of_a_run() -> None:
    values = (8.1, 8.6, 8.55, 8.56, 8.54, 9.0, 8.55)
    sizes = (2400, 700, 700, 702, 701, 698, 700)
    names = ("source", "gptq", "reconstruct", "awq", "qat", "eora", "finetune_scales")
    steps = [
        Measured(f"0{i}-{name}", megabytes << 20, value, "")
        for i, (name, megabytes, value) in enumerate(zip(names, sizes, values, strict=True))
    ]
    svg = quality(steps, "perplexity")
    assert svg is not None
    check_words_are_apart(svg)
    numbers = [t.partition(" at ")[0] for t in words(svg) if re.match(r"[\d.]+( GiB)? at ", t)]
    assert numbers[:5] == ["0 GiB", "0.5 GiB", "1 GiB", "1.5 GiB", "2 GiB"]
    assert numbers[5:] == ["8", "8.2", "8.4", "8.6", "8.8", "9"]


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (7.9, 9.1, [8, 8.2, 8.4, 8.6, 8.8, 9]),
        (0, 2.46, [0, 0.5, 1, 1.5, 2]),
        (30, 31, [30, 30.2, 30.4, 30.6, 30.8, 31]),
        (1234, 9876, [2000, 4000, 6000, 8000]),
    ],
)
def test_ticks_are_round(low: float, high: float, want: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(want)
