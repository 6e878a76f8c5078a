"""Refusals and estimates before a run, which write nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.interrupting import InterruptAt
from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.checkpoints import load_tokenizer
from shrinkc.compression import preflight, training
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.preflight import Estimate, seconds_per_token
from shrinkc.compression.recipe import Recipe, parse_recipe
from shrinkc.compression.run import compress
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.core.errors import (
    BadData,
    BadRecipe,
    ShrinkcError,
    UnsupportedModel,
)
from shrinkc.core.progress import Silent

from .conftest import tables
from .quantising import Recorder

pytest.importorskip("peft")
pytest.importorskip("torch")

pytestmark = pytest.mark.slow


def test_all_problems_at_once_and_nothing_is_left(stories: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    recipe = parse_recipe(
        {
            "calibration": {"text": [str(short)], "samples": 4, "length": 64},
            "depth": {"remove": 3, "protect_first": 0, "protect_last": 0},
            "depth-2": {"remove": 2, "protect_first": 0, "protect_last": 0},
            "width": {"kv_groups": 2},
            "lora": {"length": 4096},
        }
    )
    with pytest.raises(BadRecipe) as caught:
        compress(str(stories), tmp_path / "o", recipe, reporter=Silent())
    text = str(caught.value)
    # depth-2 gets the two layers that depth keeps
    for words in (
        "5 problems", "[depth-2] 2 of 2 layers", "[width] kv_groups = 2", "[lora] length = 4096",
        "4 samples of 64 tokens need 256 tokens", "too few for training",
    ):  # fmt: skip
        assert words in text
    assert not (tmp_path / "o").exists()


def refused(model: Path, recipe: dict[str, Any], out: Path) -> ShrinkcError:
    with pytest.raises(ShrinkcError) as caught:
        compress(str(model), out, parse_recipe(recipe), reporter=Silent())
    assert not out.exists()
    return caught.value


def test_a_quantised_model_and_another_architecture(tmp_path: Path, story_file: Path) -> None:
    tiny_gptq(tmp_path / "q", bits=4, group=32)
    error = refused(tmp_path / "q", {"depth": {"layers": [0]}}, tmp_path / "o")
    assert isinstance(error, UnsupportedModel)
    assert "[depth] works on float models, but the model is already quantised" in str(error)
    text = {"text": [str(story_file)], "samples": 16, "length": 32}
    recipe: dict[str, Any] = {"calibration": text, "eora": {"rank": 2}}
    error = refused(tmp_path / "q", recipe, tmp_path / "o")
    assert isinstance(error, UnsupportedModel)
    assert "[eora] needs the float model, but the one given is already quantised" in str(error)
    write_tiny_llama(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gemma"}))
    error = refused(tmp_path / "m", {"depth": {"layers": [0]}}, tmp_path / "o")
    assert isinstance(error, UnsupportedModel) and "gemma" in str(error)


def test_one_sample_and_no_text(stories: Path, story_file: Path, tmp_path: Path) -> None:
    few = tables(story_file)
    few["calibration"]["samples"] = 1
    error = refused(stories, few, tmp_path / "o")
    assert isinstance(error, BadData) and "calibration.samples = 1" in str(error)
    error = refused(stories, {"depth": tables(story_file)["depth"]}, tmp_path / "o")
    assert isinstance(error, BadData) and "calibration.text is not given" in str(error)


def test_groups_that_will_not_divide_are_found_before_the_work(
    stories: Path, story_file: Path, tmp_path: Path
) -> None:
    recipe = tables(story_file)
    recipe["width"] = {"ffn_keep": 200}
    recipe["gptq"] = {"bits": 4, "group_size": 32}
    error = refused(stories, recipe, tmp_path / "o")
    assert error.exit_code == 20
    assert "[gptq]" in str(error) and "200" in str(error) and "down_proj" in str(error)


def test_dry_run_estimates_and_writes_nothing(
    stories: Path, recipe: Recipe, tmp_path: Path
) -> None:
    result = compress(str(stories), tmp_path / "o", recipe, reporter=Silent(), dry_run=True)
    assert result.estimate.startswith("estimate: about")
    # a small model needs small units, not 0.0 GiB
    assert re.search(r"; \d+\.\d MiB of memory, \d\.\d MiB on disk$", result.estimate)
    assert not (tmp_path / "o").exists()


@pytest.mark.libraries("gptqmodel", "torch")
def test_state_of_a_step_is_counted_as_disk_space(
    stories: Path, story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"text": [str(story_file)], "samples": 16, "length": 32}
    few = {"samples": 8, "length": 32}
    recipe = {
        "calibration": text,
        "width": {"ffn": 0.25, "multiple": 32},
        "lora": few,
        "awq": {"group_size": 32},
        "gptq": {"bits": 4, "group_size": 32, "embeddings": {"bits": 4, "group_size": 32}},
        "reconstruct": few,
        "finetune_scales": few,
        "qat": few,
    }
    said, found = dict[str, int](), dict[str, int]()

    def told(kind: str, kept: Callable[..., int]) -> Callable[..., int]:
        return lambda *given: said.setdefault(kind, kept(*given))

    for kind in recipe.keys() - {"calibration"}:
        own = replace(KINDS[kind], kept=told(kind, KINDS[kind].kept))
        monkeypatch.setitem(KINDS, kind, own)
    remove = shutil.rmtree

    def spy(folder: Path, *given: Any, **more: Any) -> None:
        if Path(folder).parent.name == ".scratch":
            files = [f for f in Path(folder).rglob("*") if f.is_file()]
            found[Path(folder).name[3:]] = sum(f.stat().st_size for f in files)
        remove(folder, *given, **more)

    monkeypatch.setattr(shutil, "rmtree", spy)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    whole = compress(str(stories), tmp_path / "o", parse_recipe(recipe), reporter=Silent())
    assert said.keys() == found.keys()
    for kind, most in said.items():
        # two states while one is written; tensors have headers, and few groups have the least size
        twice = 2 if kind in ("lora", "finetune_scales", "qat") else 1
        assert twice * (found[kind] - 60_000) <= most <= 6 * found[kind], kind
    steps = [f for f in (tmp_path / "o").rglob("*") if f.is_file()]
    size = re.search(r"([\d.]+) MiB on disk", whole.estimate)
    assert size is not None
    on_disk = sum(f.stat().st_size for f in steps) + max(found.values())
    assert on_disk <= float(size[1]) * 2**20 <= 3 * on_disk


def test_state_of_an_interrupted_step_is_not_counted_again(
    stories: Path, story_file: Path, tmp_path: Path
) -> None:
    stages = {key: tables(story_file)[key] for key in ("calibration", "width")}
    only, out = parse_recipe(stages), tmp_path / "o"

    def disk() -> float:
        again = compress(str(stories), out, only, reporter=Silent(), dry_run=True)
        size = re.search(r"([\d.]+) MiB on disk", again.estimate)
        assert size is not None
        return float(size[1])

    with pytest.raises(KeyboardInterrupt):
        compress(str(stories), out, only, reporter=InterruptAt("width: structured", 4))
    (kept,) = (out / ".scratch").iterdir()
    with_it = disk()
    shutil.rmtree(kept)
    without = disk()
    assert with_it < without


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((12.0, 12.3), "about 12 s; "),
        ((40.0, 250.0), "about 40 s on this machine alone, 4 min as busy as it is now; "),
    ],
)
def test_an_estimate_says_what_it_assumes(seconds: tuple[float, float], words: str) -> None:
    line = Estimate(seconds, 3 << 29, 5000).line()
    assert line == f"estimate: {words}1.5 GiB of memory, 4.9 KiB on disk"


def test_the_speed_is_measured_for_idle_and_busy_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle: CPU time of this thread.  Busy: wall-clock time, with other processes."""
    clock, passes = 0.0, iter([9.0, 0.2, 0.8, 0.2, 0.8])  # the warm-up is not counted

    class Model:
        config = SimpleNamespace(max_position_embeddings=100, vocab_size=50)
        device = "cpu"

        def __call__(self, ids: Any) -> None:
            nonlocal clock
            assert ids.shape == (1, 100)
            clock += next(passes)

    monkeypatch.setattr("shrinkc.compression.preflight.TIMED_SECONDS", 1.0)
    monkeypatch.setattr("shrinkc.compression.preflight.time.perf_counter", lambda: clock)
    monkeypatch.setattr("shrinkc.compression.preflight.time.thread_time", lambda: clock / 2)
    alone, now = seconds_per_token(Model())
    assert alone == pytest.approx(0.001) and now == pytest.approx(0.005)


def test_threads_of_a_busy_machine_are_calculated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting threads use CPU time, so measured times of two threads would be three times too long."""
    import torch

    model = SimpleNamespace(device="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    measured = {"busy": [(1.0, 5.0), (3.0, 12.0)], "idle": [(1.0, 1.0), (0.6, 0.62)]}
    for state, alone in (("busy", 0.6), ("idle", 0.6)):
        answers = iter(measured[state])
        monkeypatch.setattr(preflight, "seconds_per_token", lambda model, a=answers: next(a))
        speed = preflight.measured_speed(model)
        assert speed.token == pytest.approx(alone)
        assert speed.busy == pytest.approx(20.0 if state == "busy" else 0.62 / 0.6)


def test_characters_of_a_token_are_counted(stories: Path, story_file: Path) -> None:
    calibration = Calibration((str(story_file),), 16, 32)
    calibration.check(load_tokenizer(stories))
    assert 1.5 < calibration.characters_per_token < 3.5  # a vocabulary of 512: fewer than four


@pytest.mark.parametrize("stage", ["finetune_scales", "eora"])
def test_a_budget_puts_gptq_before_stages_on_integers(
    stage: str, stories: Path, story_file: Path, tmp_path: Path
) -> None:
    tables = {
        "calibration": {"text": [str(story_file)], "samples": 16, "length": 32},
        "budget": {"target_bytes": "200KiB"},
        stage: {"rank": 2} if stage == "eora" else {"samples": 32, "batch": 4, "length": 32},
    }
    hints = Recorder()
    result = compress(
        str(stories), tmp_path / "o", parse_recipe(tables), reporter=hints, dry_run=True
    )
    assert result.estimate.startswith("estimate: about") and result.estimate in hints.notes
    assert not (tmp_path / "o").exists()


def test_awq_for_another_grid_is_noted(stories: Path, story_file: Path, tmp_path: Path) -> None:
    recipe = {
        "calibration": {"text": [str(story_file)], "samples": 32, "length": 64},
        "awq": {"bits": 4, "group_size": -1},
        "gptq": {"bits": 4, "group_size": 32},
    }
    said = (
        "[awq] is for bits = 4, group_size = -1, sym = true, "
        "but [gptq] rounds to bits = 4, group_size = 32, sym = true"
    )
    for group, noted in ((-1, True), (32, False)):
        recipe["awq"]["group_size"] = group
        hints = Recorder()
        compress(
            str(stories), tmp_path / str(group), parse_recipe(recipe), reporter=hints, dry_run=True
        )
        assert any(said in note for note in hints.notes) == noted


@pytest.mark.parametrize(
    ("stage", "noted"),
    [({"rotate": {}}, True), ({"rotate": {"keep_above": 5}}, False), ({}, False)],
)
def test_reconstruct_after_a_rotation_of_all_channels_is_noted(
    stage: dict[str, Any], noted: bool, stories: Path, story_file: Path, tmp_path: Path
) -> None:
    recipe = {
        "calibration": {"text": [str(story_file)], "samples": 32, "length": 64},
        **stage,
        "gptq": {"bits": 4, "group_size": 32},
        "reconstruct": {"samples": 16, "length": 64},
    }
    hints = Recorder()
    compress(str(stories), tmp_path / "o", parse_recipe(recipe), reporter=hints, dry_run=True)
    said = "[reconstruct] made SmolLM2 worse after a rotation"
    assert any(said in note and "[rotate] keep_above = 5" in note for note in hints.notes) == noted


@pytest.mark.parametrize(("ratio", "noted"), [(7.3, True), (1.4, False)])
def test_a_cpu_without_bfloat16_is_noted(
    ratio: float,
    noted: bool,
    stories: Path,
    story_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The note names only tables that compute in bfloat16."""
    monkeypatch.setattr(preflight, "bfloat16_ratios", lambda: (1.0, ratio))
    recipe = {
        "calibration": {"text": [str(story_file)], "samples": 16, "length": 32},
        "lora": {"samples": 32, "batch": 4, "length": 32, "dtype": "bfloat16"},
        "gptq": {"bits": 4, "group_size": 32},
        "finetune_scales": {"samples": 32, "batch": 4, "length": 32, "dtype": "float32"},
    }
    hints = Recorder()
    compress(str(stories), tmp_path / "o", parse_recipe(recipe), reporter=hints, dry_run=True)
    said = 'takes 7.3 times as long in bfloat16 as in float32: dtype = "float32" in [lora] would'
    assert any(said in note for note in hints.notes) == noted


def test_estimates_use_the_ratio_of_dtypes(
    stories: Path, story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio applies to stages in bfloat16, and to none if the model was timed in bfloat16."""
    monkeypatch.setattr(preflight, "seconds_per_token", lambda model: (1.0, 1.0))

    def seconds(ratio: float, dtype: str, timed_in: str = "float32") -> float:
        monkeypatch.setattr(preflight, "bfloat16_ratios", lambda: (1.0, ratio))
        found: list[preflight.Estimate] = []
        make = preflight._estimate
        monkeypatch.setattr(preflight, "_estimate", lambda *a: found.append(make(*a)) or found[-1])
        lora = {"samples": 32, "batch": 4, "length": 32, "dtype": dtype}
        recipe = parse_recipe({
            "run": {"dtype": timed_in},
            "calibration": {"text": [str(story_file)], "samples": 16, "length": 32},
            "lora": lora,
        })  # fmt: skip
        out = tmp_path / f"{ratio}-{dtype}-{timed_in}"
        compress(str(stories), out, recipe, reporter=Recorder(), dry_run=True)
        monkeypatch.setattr(preflight, "_estimate", make)
        return found[0].seconds[0]

    assert seconds(8.0, "bfloat16") > 6 * seconds(1.0, "bfloat16")
    assert seconds(0.5, "bfloat16") < 0.65 * seconds(1.0, "bfloat16")
    assert seconds(8.0, "float32") < 2 * seconds(1.0, "bfloat16")
    assert seconds(8.0, "bfloat16", "bfloat16") < 2 * seconds(1.0, "bfloat16")


def test_self_generation_is_not_faster_than_its_cost_with_fast_bfloat16(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of generating a token is for fast bfloat16, so only a ratio above 1 applies."""
    monkeypatch.setattr(preflight, "seconds_per_token", lambda model: (1.0, 1.0))
    lora = {"samples": 1, "batch": 1, "length": 8, "dtype": "float32"}
    tables = {"calibration": {"text": ["self:10k"], "samples": 16, "length": 32}, "lora": lora}
    found: list[float] = []
    make = preflight._estimate
    monkeypatch.setattr(
        preflight, "_estimate", lambda *a: (found.append(make(*a).seconds[0]), make(*a))[1]
    )
    for ratio in (0.5, 1.0, 3.0):
        monkeypatch.setattr(preflight, "bfloat16_ratios", lambda r=ratio: (r, r))
        recipe, out = parse_recipe(tables), tmp_path / str(ratio)
        compress(str(stories), out, recipe, reporter=Recorder(), dry_run=True)
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[2] > 2 * found[1]


def test_the_ratio_of_dtypes_is_measured() -> None:
    """The measurement uses one thread, and restores the number of threads."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(0.01 < ratio < 1000 for ratio in preflight.bfloat16_ratios())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
