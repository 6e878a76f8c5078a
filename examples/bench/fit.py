"""Quality of the widths that `compile --fit` chooses, against uniform widths of as many bytes, into docs/results/data.

    python examples/bench/fit.py --text FILE --sensitivity-text FILE [--windows N]

For each uniform width, examples/stories is compiled for a board whose flash it fills to the byte, and for the same
board with --fit, without and with measured sensitivities.  `shrinkc eval` compares each program with the float model on
windows of FILE.  Sensitivities are measured on the other text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import figures

UNIFORM = {
    "3 bit, group size 32, asymmetric": ("3", "32", "--asymmetric"),
    "4 bit, group size 32": ("4", "32"),
    "4 bit, group size 32, asymmetric": ("4", "32", "--asymmetric"),
    "5 bit, group size 32": ("5", "32"),
    "6 bit, group size 32": ("6", "32"),
}
STORIES = figures.ROOT / "examples" / "stories"
BOARD = ("--target", "rv32", "--ram", "300KiB", "--flash")
COLUMNS = {
    "uniform": "Uniform format", "flash": "Bytes of flash", "divergence": "Divergence, uniform format",
    "fit": "Divergence, --fit", "measured": "Divergence, --fit with sensitivities",
}  # fmt: skip


def shrinkc(*words: object) -> Any:
    """The JSON that a command prints; SystemExit where it fails."""
    command = [sys.executable, "-m", "shrinkc", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"shrinkc {' '.join(map(str, words))}\n{done.stderr}")
    return json.loads(done.stdout)


def divergence(folder: Path, text: Path, windows: int, *options: object) -> tuple[float, int]:
    """Compile, compare with the float model; the KL divergence in nats per token, and the bytes of flash."""
    plan = shrinkc("compile", STORIES, "-o", folder, "--force", *options)
    found = shrinkc(
        "eval", folder, "--base", STORIES, "--text", text, "--protocol", "wikitext256",
        "--windows", windows, "--engine", "interpreter",
    )  # fmt: skip
    return found["perplexity"]["base"]["divergence"], plan["memory"]["wmem"]["used"]


def rows(text: Path, sensitivity_text: Path, windows: int, work: Path) -> list[figures.Row]:
    measured = work / "sensitivity"
    shrinkc("sensitivity", STORIES, "--text", sensitivity_text, "--samples", 8, "-o", measured)
    found = []
    for name, (bits, group, *more) in UNIFORM.items():
        widths = ("--bits", bits, "--embedding-bits", bits, "--group-size", group, *more)
        alone, size = divergence(work / "out", text, windows, *BOARD, "1MiB", *widths)
        board = (*BOARD, size, "--fit")
        chosen, _ = divergence(work / "out", text, windows, *board)
        better, _ = divergence(work / "out", text, windows, *board, "--sensitivity", measured)
        found.append({
            "id": "_".join(("bits", bits, *more)).replace("--", ""), "uniform": name, "flash": size,
            "divergence": alone, "fit": chosen, "measured": better,
        })  # fmt: skip
        print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Widths that --fit chooses against uniform ones.")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sensitivity-text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = rows(args.text, args.sensitivity_text, args.windows, Path(work))
    figures.write(
        "fit",
        title="Divergence of examples/stories from its float model, in nats per token, with uniform widths and with "
        f"widths that --fit chose for as many bytes of flash. TinyStories validation text, {args.windows} windows of "
        "256 tokens.",
        command="python examples/bench/fit.py --text tinystories_val.txt --sensitivity-text tiny_stories_smallGPT.txt",
        columns=COLUMNS,
        formats={"flash": "{:,}", "divergence": 2, "fit": 2, "measured": 2},
        rows=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
