"""Timelines are well-formed and to scale, and show the measurements."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from shrinkc.pictures.timeline import PARTS, Chart, Span, timeline

SVG = "{http://www.w3.org/2000/svg}"

SPANS = (
    Span("embed", None, 100, {"working": 60, "stalls": 20, "barrier": 20}),
    Span("qkv", 0, 300, {"working": 150, "transfers": 150}, {"DMA": 150, "HyperBus": 0}),
    Span("<&>", 1, 600, {"working": 600}, {"DMA": 900}),
)


def boxes(text: str) -> list[tuple[str, dict[str, float], str]]:
    """(note, numbers, colour) of every box."""
    out = []
    for box in ET.fromstring(text).iter(f"{SVG}rect"):
        note = box.find(f"{SVG}title")
        if note is not None:
            sizes = {k: float(box.get(k, "0")) for k in ("x", "y", "width", "height")}
            out.append((note.text or "", sizes, box.get("fill", "")))
    return out


def test_widths_are_cycles() -> None:
    found = boxes(timeline("t", [Chart("decode", SPANS)]))
    whole = {note: size for note, size, fill in found if fill == "none"}
    widths = [size["width"] for size in whole.values()]
    assert widths == pytest.approx([w / 100 * widths[0] for w in (100, 300, 600)], rel=1e-3)
    assert [note.split(":")[0] for note in whole] == ["embed", "layer 0 qkv", "layer 1 <&>"]
    assert "layer 0 qkv: 300 cycles; working 150, stalls 0, barrier 0, transfers 150" in whole
    # each begins where the one before it ends
    ends = [size["x"] + size["width"] for size in whole.values()]
    assert ends[:-1] == pytest.approx([s["x"] for s in list(whole.values())[1:]], abs=0.02)


def test_what_cores_did_fills_the_step() -> None:
    found = boxes(timeline("t", [Chart("decode", SPANS)]))
    parts = [
        (s, fill) for note, s, fill in found if note.startswith("embed: 100") and fill != "none"
    ]
    colours = [PARTS[name][0] for name in ("working", "stalls", "barrier")]
    assert [fill for _, fill in parts] == colours
    widths = [s["width"] for s, _ in parts]
    assert widths == pytest.approx([3 * widths[1], widths[1], widths[1]], rel=1e-2)


def test_lanes_of_the_model() -> None:
    """Only those that are ever busy; never more than full."""
    found = boxes(timeline("t", [Chart("decode", SPANS)]))
    idle = [(note, s) for note, s, _ in found if note.endswith(": idle")]
    assert [note for note, _ in idle] == ["DMA: idle"]
    busy = {note: s for note, s, _ in found if "DMA busy" in note}
    assert list(busy) == ["layer 0 qkv: DMA busy 50 %", "layer 1 <&>: DMA busy 100 %"]
    half, full = busy.values()
    lane = idle[0][1]
    assert half["height"] == pytest.approx(lane["height"] / 2) and full["height"] == lane["height"]
    assert full["y"] == lane["y"]
    assert "by the cost model" in timeline("t", [Chart("d", SPANS)])
    assert "by the cost model" not in timeline("t", [Chart("d", SPANS[:1])])


def test_charts_are_below_each_other_and_inside() -> None:
    text = timeline("a & b", [Chart("prefill", SPANS), Chart("decode", SPANS[:2])])
    root = ET.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for note, s, _ in boxes(text):
        assert s["x"] >= 0 and s["x"] + s["width"] <= width, note
        assert s["y"] >= 0 and s["y"] + s["height"] <= height, note
    tops = {note: s["y"] for note, s, fill in boxes(text) if fill == "none"}
    assert len(set(tops.values())) == 2
    assert timeline("a & b", [Chart("prefill", SPANS), Chart("decode", SPANS[:2])]) == text


def test_a_run_without_a_length() -> None:
    ET.fromstring(timeline("t", [Chart("decode", [Span("x", None, 0, {})])]))
