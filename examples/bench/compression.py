"""Compress a model the reference work's way and ours, into docs/results/compression.md and .svg.

    python examples/bench/compression.py MODEL --data DATA --runs RUNS [--only NAME]... -o docs/results

DATA holds wikitext2/, triviaqa/ and hellaswag/.  Every configuration below becomes a run of ``shrinkc
compress`` in RUNS/NAME; runs that are over are only checked, interrupted ones go on.  Each step of a
run becomes a row of the table.  The text of compression.md around its table is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from shrinkc.compression.pictures import COLOURS, MARKERS, save_picture, style

COMMON = """\
[run]
seed = 0
threads = 1

[calibration]
text = ["{data}/wikitext2/wiki.valid.tokens"]
samples = {samples}
length = 512

[evaluate]
text = "{data}/wikitext2/wiki.test.raw"
windows = 64
tasks = [
    "triviaqa={data}/triviaqa/triviaqa_1000.jsonl", "hellaswag={data}/hellaswag/hellaswag_val_full.txt.bz2",
]
items = 100
dtype = "bfloat16"

"""
# The reference work's stages.  Its groups of 128 do not divide the 576 inputs of SmolLM2, and its
# 8,192 samples of LoRA take days on a CPU.
DEPTH = """\
[depth]
method = "perplexity"
remove = {}
protect_first = 4
protect_last = 2

"""
ZEROS = """\
[width]
method = "n:m"
n = {}
m = {}

"""
LORA = """\
[lora]
rank = 8
alpha = 16.0
dropout = 0.1
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
samples = 128
batch = 4
learning_rate = 5e-4

"""
# as much text as ours, so that what is left is the methods' difference
LORA_LONG = LORA.replace("samples = 128", "epochs = 1")
GPTQ = """\
[gptq]
bits = 4
group = 64
sym = true
mse = 0
gptaq = 0

"""
EORA = """\
[eora]
rank = 32

"""
# Depth is scaled from the reference work's 16 layers to 30: -2, -4, -6, -8.
REFERENCE = {
    "depth4": DEPTH.format(4) + LORA + GPTQ + EORA,
    "depth8": DEPTH.format(8) + LORA + GPTQ,
    "depth11": DEPTH.format(11),
    "depth15": DEPTH.format(15) + LORA + GPTQ,
    "zeros-1-8": ZEROS.format(1, 8) + LORA + GPTQ + EORA,
    "zeros-1-8-long": ZEROS.format(1, 8) + LORA_LONG + GPTQ + EORA,
    "zeros-2-4": ZEROS.format(2, 4),
    "zeros-1-2": ZEROS.format(1, 2),
}
# The stages of the shipped recipe ``small`` as they were without ``equalize`` and with GPTQ as first published,
# trained on the tokens of WikiText.
SMALL = """\
[width]
method = "structured"
ffn_keep = 1280

[lora]
rank = 32
alpha = 32.0
dropout = 0.0
targets = ["all"]
epochs = 1
batch = 4
learning_rate = 8e-4
train_norms = true

[gptq]
bits = 4
group = 64
sym = false
mse = 0
gptaq = 0
embeddings = { bits = 4, group = 64 }

[scales]
samples = 256
batch = 4
learning_rate = 2e-3
"""
OURS = {"small": SMALL}
CONFIGURATIONS = REFERENCE | OURS

OWN = "#000000"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
HEAD = (
    "| configuration | packed MB | of bf16 | perplexity | TriviaQA | HellaSwag acc / norm |\n"
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
            targets = " all" if "all" in s["targets"] else ""
            text = f"{s['samples']} windows" if s["samples"] else "whole text"
            return f"LoRA r{s['rank']}{targets} ({text})"
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
        rows.append(row | {"label": " + ".join(name) or "baseline"})
    return rows


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for r in rows:
        mark = "**" if r["ours"] else ""
        lines.append(
            f"| {mark}{r['label']}{mark} | {r['packed_bytes'] / 1e6:.1f} | {100 * r['share']:.1f} % | "
            f"{mark}{r['perplexity']:,.2f}{mark} | {percent(r['tasks'].get('triviaqa contains'))} | "
            f"{percent(r['tasks'].get('hellaswag acc'))} / {percent(r['tasks'].get('hellaswag acc_norm'))} |\n"
        )
    return HEAD + "".join(lines)


def draw(rows: list[dict[str, Any]], baseline: dict[str, Any], file: Path) -> None:
    """Perplexity against packed bytes; a line follows the steps of a run."""
    with style():
        figure = Figure(figsize=(8, 6.5), layout="constrained")
        axes = figure.add_subplot()
        for index, run in enumerate(dict.fromkeys(r["run"] for r in rows)):
            own = [r for r in rows if r["run"] == run]
            ours = own[0]["ours"]
            palette = [c for c in COLOURS if c != OWN]
            colour = OWN if ours else palette[index % len(palette)]
            axes.plot(
                [r["packed_bytes"] / 1e6 for r in own], [r["perplexity"] for r in own],
                marker=MARKERS[index % len(MARKERS)], color=colour,
                linewidth=2.2 if ours else 1, linestyle="-" if ours else "--",
                label=("ours: " if ours else "reference: ") + own[-1]["label"],
            )  # fmt: skip
        axes.axhline(baseline["perplexity"], color="#555555", linewidth=0.8)
        axes.axvline(baseline["packed_bytes"] / 4e6, color="#555555", linewidth=0.8)
        axes.annotate(
            "a quarter of bf16", (baseline["packed_bytes"] / 4e6, 1), xycoords=("data", "axes fraction"),
            xytext=(4, -12), textcoords="offset points", fontsize=8,
        )  # fmt: skip
        axes.annotate(
            "perplexity of the baseline", (0, baseline["perplexity"]),
            xycoords=("axes fraction", "data"), xytext=(4, 4), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(baseline["perplexity"] * 0.6, 4000)
        axes.yaxis.set_major_locator(FixedLocator([20, 50, 100, 200, 500, 1000, 2000]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlim(left=0)
        axes.set_xlabel("stored weights, MB (embedding included)")
        axes.set_ylabel("WikiText-2 perplexity (512 protocol)")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        save_picture(figure, file)


def compress(model: str, data: Path, runs: Path, name: str) -> None:
    """One configuration, in RUNS/NAME; what is there already is checked and continued."""
    common = COMMON.format(data=data.resolve(), samples=32 if name in OURS else 16)
    recipe = runs / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(common + CONFIGURATIONS[name], encoding="utf-8")
    print(f"---- {name} ----", flush=True)
    # the program of this environment, whose libraries decide the figures
    program = Path(sys.executable).with_name("shrinkc")
    subprocess.run(
        [program, "compress", model, "-o", runs / name, "--recipe", recipe],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are kept")
    parser.add_argument(
        "--only", action="append", choices=list(CONFIGURATIONS), help="run no others"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    names = [n for n in CONFIGURATIONS if not arguments.only or n in arguments.only]
    rows: list[dict[str, Any]] = []
    for name in names:
        compress(arguments.model, arguments.data, arguments.runs, name)
        for row in rows_of(arguments.runs / name):
            row |= {"run": name, "ours": name in OURS}
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
