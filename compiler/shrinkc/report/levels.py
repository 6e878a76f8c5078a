"""A memory as a picture: addresses downwards, the steps of a pass across."""

from __future__ import annotations

from collections.abc import Sequence

from shrinkc.report.parts import Data
from shrinkc.report.svg import COLOURS, EMPTY, LETTER, TEXT, box, document, words

_WIDTH = 1100
_LEFT = 96
_TOP = 64
_HIGHEST, _EACH = 400, 60  # of a picture, and of each region where there are few
_UNREAD = 0.45  # opacity of weights in the steps that do not read them
_SLOTS = 6  # colours of weights, one per slot; others are the last two's


def level_picture(level: Data, steps: Sequence[str]) -> str:
    """An SVG document of one memory of a report."""
    regions = level["regions"]
    end = max([1, *(r["offset"] + r["bytes"] for r in regions)])
    high = min(_HIGHEST, _EACH * len(regions))
    scale, column = high / end, (_WIDTH - _LEFT - 12) / len(steps)
    percent = 100 * level["used"] / max(level["available"], 1)
    title = f"{level['label']}: {level['used']:,} of {level['available']:,} bytes, {percent:.1f} %"
    out = [
        words(12, 22, title, size=14),
        box(_LEFT, _TOP, column * len(steps), high, EMPTY, f"{level['label']}: free"),
    ]
    out += [words(_LEFT + i * column + 3, _TOP - 6, name, size=9) for i, name in enumerate(steps)]
    colours: dict[str, str] = {}
    numbers: dict[str, int] = {}  # of names, of which one may be drawn more than once
    for r in regions:
        index = numbers.setdefault(r["name"], len(numbers))
        out += _region(r, index, colours, steps, column, scale)
    for part in range(5):
        y = _TOP + high * part / 4
        out.append(words(_LEFT - 6, y + 4, f"{round(end * part / 4):,}", size=9, end=True))
    out.append(words(_LEFT, _TOP + high + 20, "address downwards, steps of a pass across"))
    return document(_WIDTH, _TOP + high + 34, out)


def _region(
    r: Data, index: int, colours: dict[str, str], steps: Sequence[str], column: float, scale: float
) -> list[str]:
    x, y = _LEFT + r["first"] * column, _TOP + r["offset"] * scale
    width, height = (r["last"] - r["first"] + 1) * column, r["bytes"] * scale
    note = f"{r['name']}: {r['bytes']:,} bytes at {r['offset']:,}, "
    read = r["read"]
    if r["kind"] == "weights":
        slot = r["name"].split(".", 1)[-1]
        colour = colours.setdefault(slot, COLOURS[len(colours) % _SLOTS])
        note += "always there"
        note += "" if read is None else f", read in {steps[read]}"
    else:
        colour = COLOURS[index % len(COLOURS)]
        note += f"{r['kind']}, {steps[r['first']]} to {steps[r['last']]}"
    out = [box(x, y, width, height, colour, note, opacity=1.0 if read is None else _UNREAD)]
    if read is not None:
        out.append(box(_LEFT + read * column, y, column, height, colour, note))
    label = f"{r['name']} {r['bytes']:,}"
    if height >= TEXT + 1 and len(label) * LETTER < width - 4:
        out.append(words(x + 3, y + height / 2 + 4, label))
    return out
