"""Kills compression runs at random moments, resumes them, and compares their files with those of an undisturbed run.

    PYTHONPATH=compiler:tests python -m compress.kills -n 20 --seed 1

A run of the example has self-generated text, all stages but scale fine-tuning and EoRA, and evaluation.  The command
gets SIGKILL at a random moment within the time that a whole run takes.  The same command resumes it and is killed,
until the run ends and the next one begins.  Ends with 1 if a file differs or a command fails.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures

from helpers.campaign import ROOT
from helpers.runs import contents
from shrinkc.cli.console import Console

from .conftest import story_text

OWN_TEXT = "self-generated text"
STORIES = ROOT / "examples" / "stories"
STAGES = (
    "vocabulary",
    "depth",
    "width",
    "lora",
    "rotate",
    "awq",
    "gptq",
    "reconstruct",
    "qat",
)
ORDER = ("source", OWN_TEXT, *STAGES, "evaluate")
RECIPE = """
[calibration]
text = ["self:6k"]
samples = 16
length = 64
[vocabulary]
keep = 400
[depth]
remove = 1
protect_first = 1
protect_last = 1
[width]
ffn = 0.25
multiple = 32
[lora]
samples = 600
batch = 4
micro_batch = 4
length = 64
[rotate]
[awq]
group_size = 32
sym = false
[gptq]
bits = 4
group_size = 32
sym = false
embeddings = { bits = 8, group_size = 32 }
[reconstruct]
samples = 160
batch = 4
length = 64
[qat]
samples = 600
batch = 4
micro_batch = 4
length = 64
[evaluate]
text = "others.txt"
windows = 4
"""
# training saves its state after every step, so that continuing from a state is tested
PROGRAM = (
    "import shrinkc.compression.training as training, sys; training.SAVE_SECONDS = 0.0; "
    "from shrinkc.cli.main import run_cli; sys.exit(run_cli(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Kill:
    """A kill: seconds after the start of the command, and the step that was running."""

    seconds: float
    during: str


def command(out: Path, recipe: Path) -> list[str]:
    return [
        sys.executable, "-c", PROGRAM, "compress", str(STORIES), "-o", str(out), "--recipe", str(recipe),
    ]  # fmt: skip


def start(out: Path, recipe: Path) -> subprocess.Popen[str]:
    log = out.with_suffix(".log").open("w")
    return subprocess.Popen(
        command(out, recipe), stdout=log, stderr=log, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"},
    )  # fmt: skip


def under_way(out: Path) -> str:
    """Return the running step: the first one that is not complete."""
    if not (out / "00-source").is_dir():
        return "source"
    done = sum(
        (out / f"{n:02d}-{kind}" / "step.json").is_file() for n, kind in enumerate(STAGES, 1)
    )
    if not (out / "logs" / f"01-{STAGES[0]}").is_dir():  # made when the step begins
        return OWN_TEXT
    return STAGES[done] if done < len(STAGES) else "evaluate"


def killed(out: Path, recipe: Path, after: float) -> Kill | None:
    """Start or resume a run and kill it ``after`` some seconds; return None if it ended before.

    Raises RuntimeError if it failed."""
    process = start(out, recipe)
    try:
        code = process.wait(after)
    except subprocess.TimeoutExpired:
        during = under_way(out)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return Kill(after, during)
    if code:
        raise RuntimeError(out.with_suffix(".log").read_text())
    return None


def differing(out: Path, whole: Path) -> tuple[int, list[str]]:
    """Return the number of compared files, and the names of files that differ or that only one run has."""
    one, other = contents(out), contents(whole)
    names = sorted(one.keys() | other.keys())
    return len(names), [name for name in names if one.get(name) != other.get(name)]


def row(kills: Sequence[Kill], runs: int, compared: int, wrong: Sequence[str]) -> dict[str, Any]:
    """Return a row for docs/results/data/robustness_kills.json.  ``compared``: files of all runs together."""
    during = Counter(kill.during for kill in kills)
    return {
        "id": "stories", "model": "examples/stories", "kills": len(kills), "runs": runs, "files": compared,
        "differ": len(wrong), "during": {n: during[n] for n in ORDER if during[n]}, "wrong": list(wrong),
    }  # fmt: skip


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=20, help="Kills.")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kills: list[Kill] = []
    wrong: list[str] = []
    runs = compared = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        whole = folder / "whole"
        with Console().stage("an undisturbed run"):
            began = time.monotonic()
            if killed(whole, recipe, 3600.0) is not None:
                sys.exit("an undisturbed run takes more than an hour")
            lasts = time.monotonic() - began
        with Console().stage(f"{options.n} kills") as update:
            while len(kills) < options.n:
                out, runs = folder / f"run{runs}", runs + 1
                while (
                    kill := killed(out, recipe, _moment(rng, lasts, len(kills) < options.n))
                ) is not None:
                    kills.append(kill)
                    update(len(kills), options.n, f"{kill.during} after {kill.seconds:.0f} s")
                count, names = differing(out, whole)
                compared += count
                wrong += [f"{out.name}/{name}" for name in names]
                shutil.rmtree(out)
    figures.write(
        "robustness_kills", title="Compression runs that were killed at random moments and resumed.",
        command=f"make kills N={options.n} SEED={options.seed}", rows=[row(kills, runs, compared, wrong)],
        columns={
            "model": "Model", "kills": "Kills (SIGKILL)", "runs": "Runs", "files": "Files compared",
            "differ": "Files that differ", "during": "Killed during",
        },
    )  # fmt: skip
    sys.exit(bool(wrong))


def _moment(rng: random.Random, lasts: float, more: bool) -> float:
    """Return the seconds until the next kill; after enough kills, more than a run takes."""
    return rng.uniform(0.0, lasts) if more else 3600.0


def write_recipe(folder: Path) -> Path:
    """Write the recipe and the text of its evaluation."""
    (folder / "others.txt").write_text(story_text(1, 60), encoding="utf-8")
    file = folder / "recipe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


if __name__ == "__main__":
    main()
