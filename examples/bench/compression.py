"""The table and the picture of docs/results/compression.md from finished compression runs.

    python examples/bench/compression.py RUN... [--ours RUN]... -o docs/results

Every RUN is an output of ``shrinkc compress``; all have to come from one model and to be evaluated in
one way.  Each step becomes a row; ``--ours`` marks runs that are not the reference work's.  The text
of compression.md around its table is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from shrinkc.compress.pictures import COLOURS, MARKERS, save_picture, style

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
HEAD = (
    "| configuration | packed MB | of bf16 | perplexity | TriviaQA closed | HellaSwag acc / norm |\n"
    "|---|---:|---:|---:|---:|---:|\n"
)


def described(step: dict[str, Any]) -> str:
    """What a step did, in a word or two."""
    s, did = step["settings"], step["parameters"]
    match step["stage"]:
        case "source":
            return "as it is"
        case "depth":
            return f"{len(did['removed'])} layers out"
        case "width":
            if s["method"] == "n:m":
                return f"{s['n']}:{s['m']} zeros"
            return f"FFN {step['figures']['intermediate']}"
        case "lora":
            return f"LoRA r{s['rank']}" + (" all" if "all" in s["targets"] else "")
        case "gptq":
            table = s["embeddings"].get("bits", 16)
            kind = "" if s["sym"] else " asymmetric"
            return f"{s['bits']} bit{kind} g{s['group']}, embedding {table}"
        case "scales":
            return "scales trained"
        case "eora":
            return f"EoRA r{s['rank']}"
    raise ValueError(step["stage"])


def rows_of(run: Path) -> list[dict[str, Any]]:
    """One row per step: its name so far, bytes and metrics."""
    rows: list[dict[str, Any]] = []
    name: list[str] = []
    records = sorted(run.glob("[0-9][0-9]-*/step.json"))
    for row, record in zip(
        json.loads((run / "run.json").read_text())["steps"], records, strict=True
    ):
        step = json.loads(record.read_text())
        if step["stage"] != "source":
            name.append(described(step))
        rows.append(
            row | {"label": " + ".join(name) or "baseline", "evaluation": step["evaluation"]}
        )
    return rows


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for r in rows:
        mark = "**" if r["ours"] else ""
        lines.append(
            f"| {mark}{r['label']}{mark} | {r['packed_bytes'] / 1e6:.1f} | {100 * r['share']:.1f} % | "
            f"{mark}{r['perplexity']:,.2f}{mark} | {percent(r['trivia_closed'])} | "
            f"{percent(r['hellaswag'])} / {percent(r['hellaswag_norm'])} |\n"
        )
    return HEAD + "".join(lines)


def draw(rows: list[dict[str, Any]], baseline: dict[str, Any], file: Path) -> None:
    """Perplexity against packed bytes; a line follows the steps of a run."""
    with style():
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(dict.fromkeys(r["run"] for r in rows)):
            own = [r for r in rows if r["run"] == run]
            ours = own[0]["ours"]
            axes.plot(
                [r["packed_bytes"] / 1e6 for r in own], [r["perplexity"] for r in own],
                marker=MARKERS[index % len(MARKERS)], color=COLOURS[index % len(COLOURS)],
                linewidth=2.2 if ours else 1, linestyle="-" if ours else "--",
                label=("ours: " if ours else "reference: ") + own[-1]["label"],
            )  # fmt: skip
        axes.axhline(baseline["perplexity"], color="#555555", linewidth=0.8)
        axes.axvline(baseline["packed_bytes"] / 4e6, color="#555555", linewidth=0.8)
        axes.annotate(
            "a quarter of bf16", (baseline["packed_bytes"] / 4e6, 1), xycoords=("data", "axes fraction"),
            xytext=(4, -10), textcoords="offset points", fontsize=8,
        )  # fmt: skip
        axes.annotate(
            "perplexity of the baseline", (1, baseline["perplexity"]),
            xycoords=("axes fraction", "data"), xytext=(-4, -10), textcoords="offset points",
            ha="right", fontsize=8,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(baseline["perplexity"] * 0.6, 400)
        axes.set_xlim(left=0)
        axes.set_xlabel("stored weights, MB (embedding included)")
        axes.set_ylabel("WikiText-2 perplexity (512 protocol)")
        axes.legend(fontsize=7, loc="upper right")
        save_picture(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--ours", action="append", type=Path, default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for run in [*arguments.runs, *arguments.ours]:
        for row in rows_of(run):
            row |= {"run": str(run), "ours": run in arguments.ours}
            if rows and row["evaluation"] != rows[0]["evaluation"]:
                sys.exit(
                    f"{run}: {row['label']} was evaluated in another way than {rows[0]['label']}"
                )
            if row["label"] not in {r["label"] for r in rows}:  # runs share their first steps
                rows.append(row)
    arguments.output.mkdir(parents=True, exist_ok=True)
    page = arguments.output / "compression.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}{END}\n"
    before, _, rest = text.partition(BEGIN)
    page.write_text(before + BEGIN + table(rows) + END + rest.partition(END)[2], encoding="utf-8")
    draw(rows, rows[0], arguments.output / "compression.svg")


if __name__ == "__main__":
    main()
