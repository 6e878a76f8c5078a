"""A real tiny model, and text for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.child import run_child
from shrinkc.compression.recipe import Recipe, parse_recipe
from shrinkc.compression.stages.context import StepContext
from shrinkc.core.progress import Silent, Update

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ |= {
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "GPTQMODEL_CPU_WORKERS": "2",
    "TORCHDYNAMO_DISABLE": "1",
}

_STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


@pytest.fixture(scope="package", autouse=True)
def quick_estimate() -> Iterator[None]:
    """Shorten the timing of the model before a run, which takes 2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shrinkc.compression.preflight.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="package", autouse=True)
def children_in_this_process() -> Iterator[None]:
    """Run child processes of stages in this process, so that GPTQModel (10 s) is imported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shrinkc.compression.stages.gptq.run_child", in_this_process)
        yield


@pytest.fixture
def real_children(monkeypatch: pytest.MonkeyPatch, children_in_this_process: None) -> None:
    """Make stages start child processes, as for users."""
    monkeypatch.setattr("shrinkc.compression.stages.gptq.run_child", run_child)


def in_this_process(
    module: str, request: Mapping[str, Any], *, log: Path, threads: int, update: Update
) -> None:
    """Replace :func:`shrinkc.compression.child.run_child` by a call in this process; its log stays empty."""
    log.touch()
    update(0, 1)
    with contextlib.chdir(log.parent):
        importlib.import_module(module).perform(dict(request) | {"threads": threads})
    update(1, 1)


@pytest.fixture(scope="session")
def stories() -> Path:
    """5 layers, hidden 96, FFN 256, 6 heads, 2 KV heads, trained on simple stories."""
    return _STORIES


@pytest.fixture(scope="session")
def story_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20,000 tokens of text like the model's training data."""
    file = tmp_path_factory.mktemp("text") / "stories.txt"
    file.write_text(story_text(0, 150), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def other_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Different stories, for evaluation."""
    file = tmp_path_factory.mktemp("text") / "others.txt"
    file.write_text(story_text(1, 60), encoding="utf-8")
    return file


def story_text(seed: int, count: int) -> str:
    """Return ``count`` different stories."""
    rng = random.Random(seed)
    names = ["Lily", "Tom", "Mia", "Ben", "Anna", "Max", "Sue", "Tim", "Sara", "Jack"]
    things = ["ball", "cat", "dog", "tree", "cake", "boat", "hat", "bird", "car", "flower", "box"]
    looks = ["big", "red", "small", "shiny", "blue", "old", "funny", "pretty", "soft", "green"]
    places = ["park", "house", "garden", "forest", "school", "kitchen", "beach", "zoo"]

    def story() -> str:
        name, friend = rng.sample(names, 2)
        thing, other = rng.sample(things, 2)
        look, place = rng.choice(looks), rng.choice(places)
        sentences = [
            f"Once upon a time, there was a little child named {name}.",
            f"{name} had a {look} {thing} and loved to play with it in the {place}.",
            f"One day, {name} saw a {rng.choice(looks)} {other} near the {thing}.",
            f'"Can I play too?" said {friend}. "Yes," said {name} with a smile.',
            f"They played with the {other} all day and they were very happy.",
            f"Then {friend} went home and {name} put the {thing} in a {rng.choice(looks)} box.",
        ]
        return " ".join(sentences)

    return "\n\n".join(story() for _ in range(count)) + "\n"


@pytest.fixture
def step(tmp_path: Path, stories: Path, story_file: Path) -> Callable[..., StepContext]:
    """step(source=…, reporter=…): a context that writes to tmp_path/out."""

    def make(source: Path = stories, **changes: Any) -> StepContext:
        for name in ("scratch", "logs"):
            (tmp_path / name).mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "source": source,
            "out": tmp_path / "out",
            "calibration": Calibration((str(story_file),), 8, 64),
            "seed": 0,
            "threads": 1,
            "dtype": "float32",
            "device": "cpu",
            "reporter": Silent(),
            "log_dir": tmp_path / "logs",
            "scratch": tmp_path / "scratch",
            "teacher": source,
            "unquantized": source,
        }
        return StepContext(**(values | changes))

    return make


def tables(text: Path, other: Path | None = None) -> dict[str, Any]:
    """A recipe with several stages that have little work."""
    found: dict[str, Any] = {
        "calibration": {"text": [str(text)], "samples": 32, "length": 64},
        "depth": {"remove": 1, "protect_first": 1, "protect_last": 1},
        "width": {"ffn": 0.25, "multiple": 32},
        "lora": {"samples": 24, "batch": 4, "length": 64, "rank": 4, "learning_rate": 2e-3},
    }
    if other is not None:
        found["evaluate"] = {"text": str(other), "windows": 1}
    return found


@pytest.fixture(scope="module")
def recipe(story_file: Path, other_file: Path) -> Recipe:
    return parse_recipe(tables(story_file, other_file))
