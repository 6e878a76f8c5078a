"""The pictures of the results pages, drawn by matplotlib from docs/results/data; render.py writes them."""

from __future__ import annotations

import io
from collections.abc import Callable

import figures
import render
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from shrinkc.compression.pictures import COLOURS, style

HIGHEST = 2  # ratio; 13 % of the bytes lie far above


def _drawn(width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """An SVG file; its text stays text and its bytes depend on nothing but the figures."""
    out = io.StringIO()
    with style(), rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def speed() -> str:
    """Cycles of shrinkc and of the peer, as bars."""
    names = {
        "micro_decode_64": "decode, position 64",
        "micro_decode_248": "decode, position 248",
        "micro_prefill_64": "prefill of 64 tokens",
    }
    rows = {row["id"]: row for row in figures.read("speed")["rows"]}
    series = (
        ("shrinkc", "measured"),
        ("Deeploy, run again", "peer_rerun"),
        ("Deeploy, published", "peer_published"),
    )

    def draw(axes: Axes) -> None:
        for at, (label, key) in enumerate(series):
            found = [(i, rows[name][key]) for i, name in enumerate(names) if rows[name][key]]
            places = [i + 0.27 * (at - 1) for i, _ in found]
            values = [value for _, value in found]
            bars = axes.barh(places, values, height=0.25, color=COLOURS[at], label=label)
            axes.bar_label(
                bars, [render.shown(value, 3) for value in values], padding=3, fontsize=8
            )
        axes.set_yticks(range(len(names)), list(names.values()))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xscale("log")
        axes.set_xlim(5e4, 1e8)
        axes.set_xlabel(
            "cycles on GVSoC, microLlama shape at 8 bit (logarithmic; shorter is faster)"
        )
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.68))

    return _drawn(7.5, 3.2, draw)


def compression() -> str:
    """Perplexity, relative to the original, against bytes."""
    ours = figures.read("compression")["rows"]
    formats = figures.read("compression_formats")["rows"]
    base = formats[0]["perplexity_32"]
    reference = figures.read("compression_reference")["rows"]
    small = [row for row in reference if row["id"] == "small"]
    others = [row for row in reference[1:] if row not in small]
    series = (
        ("recipes of this page, not trained on WikiText-2", "o", ours, 1.0),
        ("4 bit without other compression", "s", formats[1:], base),
        ("reference work's recipe, trained on WikiText-2", "D", others, 1.0),
        ("pruned and trained on WikiText-2", "^", small, 1.0),
    )

    def draw(axes: Axes) -> None:
        for (label, marker, rows, of), colour in zip(series, COLOURS, strict=False):
            for row in rows:
                ratio = row["ratio"] if of == 1 else row["perplexity_32"] / of
                if ratio > HIGHEST:
                    continue
                place = row["megabytes"], ratio
                axes.scatter(*place, marker=marker, color=colour, zorder=3)
                axes.annotate(
                    row["label"], place, xytext=(5, 4), textcoords="offset points", fontsize=7
                )
            axes.scatter([], [], marker=marker, color=colour, label=label)
        axes.axhline(1, color="#555555", linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.6, 1.8]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlim(0, 300)
        axes.set_xlabel("stored weights of SmolLM2-135M-Instruct, MB (embedding included)")
        axes.set_ylabel("WikiText-2 perplexity ÷ original's (logarithmic)")
        axes.legend(loc="upper right")

    return _drawn(7.5, 4.5, draw)


PICTURES: dict[str, Callable[[], str]] = {"speed.svg": speed, "compression.svg": compression}
