"""Helpers of the tests of quantisation: text, a context for a stage, models quantised once."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import Recorder
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.stages.context import StepContext, StepReport
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.importer.model import QuantizedWeight

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"

_NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
_THINGS = ("ball", "dog", "tree", "boat", "cake", "bird", "hat", "kite", "book", "car")
_PLACES = ("park", "garden", "house", "forest", "school")
_MOODS = ("happy", "sad", "very tired", "so proud", "a little scared", "full of joy")


def write_text(folder: Path) -> str:
    """Write a file with about 5,000 tokens of different paragraphs in the style of examples/stories."""
    paragraphs = []
    for number in range(80):
        name, thing = _NAMES[number % 8], _THINGS[number * 7 % 10]
        place, mood = _PLACES[number * 3 % 5], _MOODS[(number + number // 6) % 6]
        friend = _NAMES[(number * 5 + 1 + number // 8) % 8]
        paragraphs.append(
            f"Once upon a time, there was a child named {name}. {name} went to the {place} with "
            f'{friend}. They saw a big {thing} and {name} was {mood}. "Look, {friend}!" said '
            f"{name}. {friend} took the {thing} home, and mom told them story number {number}."
        )
    file = folder / "text.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return str(file)


def context(folder: Path, source: Path, **changes: Any) -> StepContext:
    """Return a context with output and logs in ``folder``, which is made."""
    for name in ("out", "scratch", "logs"):
        (folder / name).mkdir(parents=True)
    fields: dict[str, Any] = {
        "source": source,
        "out": folder / "out",
        "calibration": Calibration((write_text(folder),), 16, 64),
        "seed": 0,
        "threads": 1,
        "dtype": "float32",
        "device": "cpu",
        "reporter": Recorder(),
        "log_dir": folder / "logs",
        "scratch": folder / "scratch",
        "unquantized": source,
    }
    return StepContext(**(fields | changes))


def run_stage(
    folder: Path, kind: str, source: Path, settings: dict[str, Any], **changes: Any
) -> tuple[StepContext, StepReport]:
    """Run a stage and write to ``folder``/out."""
    found = KINDS[kind]
    step = context(folder, source, **changes)
    return step, found.run(found.settings(**settings), step)


COARSE = {"bits": 2, "group_size": 32, "sym": False}
MIXED = {
    "bits": 4,
    "group_size": 32,
    "sym": False,
    "modules": {
        "down_proj": {"bits": 8, "group_size": 64},
        r"layers\.(0|3)\.self_attn\.v_proj": {"bits": 3, "desc_act": True},
        "k_proj": {"group_size": -1, "sym": True},
    },
    "embeddings": {"bits": 3, "group_size": 32},
}


def quantised(factory: pytest.TempPathFactory, name: str, settings: dict[str, Any]) -> Path:
    """Return examples/stories after a stage gptq, made once per session and name by the first test process that needs
    it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / f"quantised-{name}"
    with (base / f"quantised-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            run_stage(folder, "gptq", STORIES, settings)
    return folder / "out"


RECIPE = """
[calibration]
text = ["self:2k"]
samples = 16
length = 64
[self_generated]
length = 64
batch = 16
[gptq]
bits = 2
group_size = 32
sym = false
"""


def same_formats(before: dict[str, QuantizedWeight], after: dict[str, QuantizedWeight]) -> None:
    """Assert that only integers and scales differ, and that scales are positive."""
    assert before.keys() == after.keys() and before
    for module, new in after.items():
        old = before[module]
        assert (new.bits, new.group) == (old.bits, old.group) and (new.scale > 0).all()
        np.testing.assert_allclose(new.offset / new.scale, old.offset / old.scale, rtol=1e-3)
        assert (new.order is None) == (old.order is None)
        if new.order is not None:
            np.testing.assert_array_equal(new.order, old.order)


def loss(directory: Path, text: str, *, first: int = 0) -> float:
    """Return the mean loss of 8 windows of 64 tokens, in nats."""
    import torch

    from shrinkc.checkpoints import load

    loaded = load(directory)
    ids = loaded.tokenizer(Path(text).read_text(), add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[first : first + 512]).view(8, 64)
    with torch.no_grad():
        return float(loaded.model(windows, labels=windows).loss)
