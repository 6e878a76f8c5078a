"""A whole run: its output, continuation after interrupts, and refusals."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from helpers.interrupting import InterruptAt
from helpers.runs import contents
from helpers.tiny_gguf import tiny_gguf
from shrinkc.cli.main import run_cli
from shrinkc.compression.card import About, card
from shrinkc.compression.recipe import Recipe, load_recipe, parse_recipe
from shrinkc.compression.run import compress
from shrinkc.compression.run_directory import foreign_files, link_final
from shrinkc.compression.steps import read_step
from shrinkc.compression.summary import CompressionResult
from shrinkc.compression.training import Training
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import (
    BadStep,
    Interrupted,
    ModelNotFound,
    OutputError,
    QuantizeError,
    RunChanged,
)
from shrinkc.core.output import new_file
from shrinkc.core.progress import Silent

from .conftest import story_text, tables

pytest.importorskip("peft")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

STEPS = ["00-source", "01-depth", "02-width", "03-lora"]


@pytest.fixture(scope="module")
def whole(
    stories: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CompressionResult]:
    """An uninterrupted run; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, compress(str(stories), out, recipe, reporter=Silent())


def copy_of(whole: tuple[Path, CompressionResult], tmp_path: Path) -> Path:
    return shutil.copytree(whole[0], tmp_path / "run", symlinks=True)


def test_every_step_is_a_model_with_its_record(whole: tuple[Path, CompressionResult]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, result = whole
    assert [row.name for row in result.rows] == STEPS
    assert result.final == out / "final" and result.final.resolve() == out.resolve() / "03-lora"
    for name in STEPS[1:]:
        model = AutoModelForCausalLM.from_pretrained(out / name)
        assert "AutoModelForCausalLM.from_pretrained('.')" in (out / name / "README.md").read_text()
        assert AutoTokenizer.from_pretrained(out / name)("Once")["input_ids"]
        record = json.loads((out / name / "step.json").read_text())
        assert record["figures"]["parameters"] == sum(p.numel() for p in model.parameters())
        assert (record["seed"], record["threads"], record["stage"]) == (0, 1, name[3:])
        assert record["versions"]["torch"] == torch.__version__
        own = {"step.json", "README.md"}
        assert set(record["files"]) == {p.name for p in (out / name).iterdir()} - own
        assert record["metrics"]["perplexity"]["protocol"] == "wikitext512"
        size = sum(p.stat().st_size for p in (out / name).iterdir() if p.name not in own)
        assert record["figures"]["bytes_on_disk"] == size
        assert record["figures"]["packed_bytes"] == 2 * record["figures"]["parameters"]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*STEPS, "final", "logs", "recipe.toml", "run.json", "run.svg", "table.md"]
    )
    table = (out / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:6]] == STEPS
    assert json.loads((out / "run.json").read_text())["steps"][3]["perplexity"] > 1
    assert result.rows[0].share == 1.0 and result.rows[2].share < 0.75


def test_the_shipped_recipe_quarter_works_on_the_example(
    stories: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    quick = [
        "calibration.samples=16", "calibration.length=64", "reconstruct.samples=8", "reconstruct.length=64",
        "qat.samples=8", "qat.length=64", "budget.share=0.3",
    ]  # fmt: skip
    given = ["--fast", "--text", str(story_file)]
    given += [word for text in quick for word in ("--set", text)]
    assert run_cli(["compress", str(stories), "--recipe", "quarter", *given, "-o", str(out)]) == 0
    told = capsys.readouterr().err
    said = " ".join(told.split())
    assert "recipe quarter: A quarter of the bf16 size" in said
    # matrices of two widths: the line that loads them is printed, and works
    line = told.partition("04-qat: ")[2].partition("this does: ")[2]
    names: dict[str, Any] = {}
    exec(line.splitlines()[0], names)
    assert names["model"].config.num_hidden_layers > 0
    # the choice, its bytes as they are compiled, and the group size that divides 96 and 256
    budget = json.loads((out / "budget.json").read_text())["report"]
    assert budget["compiled_bytes"] <= budget["budget_bytes"] < 1.02 * budget["compiled_bytes"]
    assert len(budget["matrices_at_bits"]) > 1 and budget["estimated_costs"]["tokens"] > 0
    assert budget["removed_layers"] == [] and budget["ffn_channels"] == [256, 256]
    recipe = load_recipe(str(out / "recipe.toml"))
    settings = {stage.kind: stage.settings for stage in recipe.stages}
    assert settings["gptq"].group_size == settings["awq"].group_size == 32
    assert recipe.calibration.text == (str(story_file),)
    # the same command has nothing left to do
    assert run_cli(["compress", str(stories), "--recipe", "quarter", *given, "-o", str(out)]) == 0
    program = tmp_path / "program"
    assert run_cli(["compile", str(out / "final"), "-o", str(program)]) == 0
    assert run_cli(["run", str(program), "--prompt", "Once", "--tokens", "4"]) == 0


def test_the_model_card(whole: tuple[Path, CompressionResult], stories: Path) -> None:
    out, result = whole
    name = STEPS[-1]
    text = (out / name / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    about = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(about["tags"]) == ["shrinkc", "compressed"]
    assert json.loads(about["library_name"]) == "transformers" and "base_model" not in about
    first, last = result.rows[0], result.rows[-1]
    cells = dict(line[2:].split(" | ", 1) for line in body.splitlines() if line.startswith("| "))
    assert cells["parameters"] == f"{first.parameters:,} | {last.parameters:,} |"
    measured = cells["perplexity (wikitext512; per token)"]
    assert measured == f"{first.perplexity:.2f} | {last.perplexity:.2f} |"
    divergence = float(cells["KL divergence to the original, nats per token"].split()[-2])
    assert divergence > 0.01 and float(cells["perplexity ÷ the original's"].split()[-2]) > 0
    digest = file_record(out / name / "model.safetensors").sha256
    assert cells["SHA-256 of model.safetensors"].startswith(f"– | {digest[:16]}…")
    assert f"# {stories.name}, {last.share:.1%} of its bf16 size" in body
    assert str(out) not in text and "shrinkc compile . --target siracusa" in text


def test_figures_of_the_model_card_have_standard_errors(
    whole: tuple[Path, CompressionResult],
) -> None:
    """If there are any: one window has none, and some metrics of tasks."""
    out, _ = whole
    records = [read_step(out / step) for step in STEPS]
    perplexity = {
        **records[-1].metrics["perplexity"],
        "perplexity": 32.081, "perplexity_standard_error": 2.391,
        "base": {
            "ratio": 1.1401, "ratio_standard_error": 0.0069,
            "divergence": 0.18702, "divergence_standard_error": 0.00413,
        },
    }  # fmt: skip
    metric = {"value": 0.3125, "standard_error": 0.0123}
    metrics = {"acc_norm": metric, "steps": {**metric, "standard_error": None}}
    last = replace(
        records[-1],
        metrics={"perplexity": perplexity, "tasks": {"hellaswag": {"metrics": metrics}}},
    )
    about = About("stories", "", "", "reference", [])
    text = card(out / STEPS[-1], about, [*records[:-1], last])
    assert " | 32.08 ± 2.39 |" in text
    assert "| perplexity ÷ the original's | – | 1.140 ± 0.007 |" in text
    assert "| KL divergence to the original, nats per token | – | 0.1870 ± 0.0041 |" in text
    assert "| hellaswag acc_norm | – | 31.25 ± 1.23 % |" in text
    assert "| hellaswag steps | – | 0.3125 |" in text


def test_a_model_card_may_be_edited(whole: tuple[Path, CompressionResult], tmp_path: Path) -> None:
    out = copy_of(whole, tmp_path)
    (out / STEPS[1] / "README.md").write_text("mine")
    assert read_step(out / STEPS[1]).name == STEPS[1]
    assert foreign_files(out) == []


def test_final_is_the_last_step(whole: tuple[Path, CompressionResult], tmp_path: Path) -> None:
    out = copy_of(whole, tmp_path)
    link = out / "final"
    assert os.readlink(link) == "03-lora"
    link.unlink()
    link.symlink_to("01-depth")
    assert link_final(out, "03-lora") == link and os.readlink(link) == "03-lora"
    assert foreign_files(out) == []
    link.unlink()
    link.mkdir()
    (link / "own.txt").write_text("the user's")
    assert link_final(out, "03-lora") == out / "03-lora"
    assert foreign_files(out) == ["final/own.txt"]


def test_a_run_is_reproducible(
    stories: Path, recipe: Recipe, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    compress(str(stories), tmp_path / "run", recipe, reporter=Silent())
    assert contents(tmp_path / "run") == contents(whole[0])


def test_a_run_that_is_over_does_nothing(
    stories: Path, recipe: Recipe, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*/*") if p.is_file()}
    result = compress(str(stories), out, recipe, reporter=InterruptAt("", 1))
    assert result.rows == whole[1].rows
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*/*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("title", "count"),
    [("depth: perplexity", 2), ("width", 3), ("lora", 4), ("perplexity, wikitext512", 3)],
)
def test_an_interrupted_run_ends_as_if_nothing_had_been(
    title: str, count: int, stories: Path, recipe: Recipe, whole: tuple[Path, CompressionResult],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("shrinkc.compression.training.SAVE_SECONDS", 0.0)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        compress(str(stories), out, recipe, reporter=InterruptAt(title, count))
    assert not list(out.glob("*.partial")) and not list(out.glob(".*.partial"))
    compress(str(stories), out, recipe, reporter=Silent())
    assert contents(out) == contents(whole[0])


def test_ctrl_c_during_training_loses_no_step(
    stories: Path, story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """SIGINT in the 5th of 12 steps gives exit code 130 and a hint; the same command runs the other 7 steps, and the
    files equal those of an uninterrupted run."""
    file, out, made = tmp_path / "recipe.toml", tmp_path / "run", []
    file.write_text(
        f'[calibration]\ntext = ["{story_file}"]\nsamples = 16\nlength = 64\n'
        "[depth]\nlayers = [2]\n[lora]\nsamples = 48\nbatch = 4\nlength = 64\n"
    )
    one_step = Training._one_step

    def interrupted(self: Training, windows: Any, number: int, steps: int) -> float:
        made.append(number)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return one_step(self, windows, number, steps)

    monkeypatch.setattr(Training, "_one_step", interrupted)
    command = ["compress", str(stories), "--recipe", str(file), "-o"]
    assert run_cli([*command, str(out)]) == 130
    words = " ".join(capsys.readouterr().err.split())
    assert "stopping as soon as this step is saved" in words
    assert "keeps the completed steps" in words and "run the same command again" in words
    names = {p.name for p in out.iterdir()}
    assert {"00-source", "01-depth", "run.json"} <= names
    assert "02-lora" not in names and not any(n.endswith(".partial") for n in names)
    assert run_cli([*command, str(out)]) == 0
    assert made == list(range(12))
    assert run_cli([*command, str(tmp_path / "fresh")]) == 0
    assert contents(out) == contents(tmp_path / "fresh")


Change = Callable[[dict[str, Any], Path], None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t["lora"].update(rank=8), "step 03-lora was made from something else: lora.rank: 4 → 8"),
        (lambda t, _: t["depth"].update(remove=2), "01-depth was made from something else: depth.remove: 1 → 2"),
        (lambda t, _: t["calibration"].update(samples=16), "calibration.samples: 32 → 16"),
        (lambda t, _: t.update(run={"threads": 2}), "run.threads: 1 → 2"),
        (lambda t, _: t.update(run={"seed": 3}), "run.seed: 0 → 3"),
        (lambda t, d: t["calibration"].update(text=[str(d / "new.txt")]), "new.txt is new"),
        (lambda t, _: t.pop("width"), "02-width, 03-lora is no step of this recipe"),
    ],
)  # fmt: skip
def test_a_changed_run_stops_and_names_what_changed(
    change: Change, words: str, stories: Path, story_file: Path, whole: tuple[Path, CompressionResult],
    tmp_path: Path,
) -> None:  # fmt: skip
    out = copy_of(whole, tmp_path)
    before = contents(out)
    (tmp_path / "new.txt").write_text(story_text(9, 150))
    changed = tables(story_file)
    change(changed, tmp_path)
    for dry_run in (True, False):
        with pytest.raises(RunChanged) as caught:
            compress(str(stories), out, parse_recipe(changed), reporter=Silent(), dry_run=dry_run)
        assert words in str(caught.value) and caught.value.exit_code == 63
        assert contents(out) == before
    torch.set_num_threads(1)


def test_a_changed_text_and_a_changed_model(
    stories: Path, story_file: Path, tmp_path: Path
) -> None:
    text = Path(shutil.copy(story_file, tmp_path / "t.txt"))
    model = shutil.copytree(stories, tmp_path / "model")
    short = {k: v for k, v in tables(text).items() if k in ("calibration", "depth")}
    run = lambda: compress(str(model), tmp_path / "o", parse_recipe(short), reporter=Silent())  # noqa: E731
    run()
    text.write_text(story_text(5, 150))
    with pytest.raises(RunChanged, match=r"calibration text 1: t.txt has other content\."):
        run()
    shutil.copy(story_file, text)
    run()
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(RunChanged, match=r"00-source .*: model.safetensors has other content\."):
        run()


def test_state_of_an_interrupted_stage_is_not_used_for_another(
    stories: Path, story_file: Path, tmp_path: Path
) -> None:
    recipe = tables(story_file)
    with pytest.raises(KeyboardInterrupt):
        compress(
            str(stories), tmp_path / "o", parse_recipe(recipe), reporter=InterruptAt("width", 2)
        )
    recipe["width"]["ffn"] = 0.5
    for dry_run in (True, False):
        with pytest.raises(RunChanged, match="02-width was interrupted.*width.ffn: 0.25 → 0.5"):
            compress(
                str(stories), tmp_path / "o", parse_recipe(recipe), reporter=Silent(),
                dry_run=dry_run,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), "model.safetensors is not as it was written"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "step.json").write_text("{"), "step.json is damaged"),
        (lambda d: (d / "step.json").unlink(), "step.json is missing"),
        (lambda d: (d / "step.json").write_text("[]"), "step.json is damaged: no JSON object"),
        (lambda d: shutil.rmtree(d), "02-width is missing, though 03-lora is there"),
    ],
)  # fmt: skip
def test_a_damaged_step_is_named(
    damage: Callable[[Path], object], words: str, stories: Path, recipe: Recipe,
    whole: tuple[Path, CompressionResult], tmp_path: Path,
) -> None:  # fmt: skip
    out = copy_of(whole, tmp_path)
    damage(out / "02-width")
    for dry_run in (True, False):
        with pytest.raises(BadStep) as caught:
            compress(str(stories), out, recipe, reporter=Silent(), dry_run=dry_run)
        assert words in str(caught.value) and caught.value.exit_code == 62


def test_the_remaining_steps_are_printed(
    stories: Path, recipe: Recipe, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    """A dry run, which changes nothing, and the continued run print the remaining steps."""
    out = copy_of(whole, tmp_path)
    dry = compress(str(stories), out, recipe, reporter=Silent(), dry_run=True)
    assert dry.estimate == "all 3 steps are over; nothing is left to do"
    for name in ("02-width", "03-lora"):
        shutil.rmtree(out / name)
    before = contents(out)
    dry = compress(str(stories), out, recipe, reporter=Silent(), dry_run=True)
    assert contents(out) == before
    fresh = compress(str(stories), out, recipe, reporter=Silent(), dry_run=True, force=True)
    assert " left, for 2 of 3 steps" in dry.estimate and " left" not in fresh.estimate
    again = compress(str(stories), out, recipe, reporter=Silent())
    assert " left, for 2 of 3 steps" in again.estimate


def test_another_version_of_a_record(
    stories: Path, recipe: Recipe, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    file = copy_of(whole, tmp_path) / "01-depth" / "step.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 9}))
    with pytest.raises(BadStep, match="is of version 9, this shrinkc reads version 1"):
        compress(str(stories), tmp_path / "run", recipe, reporter=Silent())


def test_another_evaluation_measures_again_and_keeps_the_models(
    stories: Path,
    story_file: Path,
    other_file: Path,
    whole: tuple[Path, CompressionResult],
    tmp_path: Path,
) -> None:
    out = copy_of(whole, tmp_path)
    weights = {n: (out / n / "model.safetensors").stat().st_mtime_ns for n in STEPS[1:]}
    changed = tables(story_file, other_file)
    changed["evaluate"]["windows"] = 2
    result = compress(str(stories), out, parse_recipe(changed), reporter=Silent())
    assert {n: (out / n / "model.safetensors").stat().st_mtime_ns for n in STEPS[1:]} == weights
    assert result.rows[1].perplexity != whole[1].rows[1].perplexity
    record = json.loads((out / "03-lora" / "step.json").read_text())
    assert record["metrics"]["perplexity"]["windows"] == 2


def test_force_starts_over_and_only_on_a_run(
    stories: Path, story_file: Path, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path)
    short = parse_recipe({"depth": {"layers": [2]}})
    compress(str(stories), out, short, reporter=Silent(), force=True)
    assert sorted(p.name for p in out.iterdir() if p.name[:1].isdigit()) == [
        "00-source",
        "01-depth",
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="not created by shrinkc"):
        compress(str(stories), tmp_path / "mine", short, reporter=Silent(), force=True)


def test_force_keeps_foreign_files(
    stories: Path, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path)
    short = parse_recipe({"depth": {"layers": [2]}})
    others = ["02-width/notes.md", "04-mine/a.txt", "letter.txt", "notes/b.txt"]
    for name in others:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("dear")
    # a damaged run can be replaced with --force
    (out / "01-depth" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=f"did not create.*: {', '.join(others)}") as caught:
        compress(str(stories), out, short, reporter=Silent(), force=True)
    assert "move them away" in str(caught.value)
    assert all((out / name).is_file() for name in [*others, "03-lora/step.json", "run.json"])
    for name in others:
        (out / name).unlink()
    (out / "02-width" / "step.json").write_text("{")
    compress(str(stories), out, short, reporter=Silent(), force=True)
    assert not (out / "02-width").exists()


def test_the_output_directory_is_tried_before_the_work(
    stories: Path, recipe: Recipe, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(4)
    (disk / "much").write_bytes(bytes(4096))
    (tmp_path / "file").write_text("mine")
    for out, said in (
        (disk / "deep" / "run", "No space left"),
        (tmp_path / "file" / "run", "a part of the path is a file"),
        (tmp_path / ("n" * 300), "choose a shorter name"),
        (Path("/proc/shrinkc"), "/proc/shrinkc cannot be written"),
    ):
        reporter = InterruptAt("reading the model", 1)
        with pytest.raises(OutputError, match=said):
            compress(str(stories), out, recipe, reporter=reporter)
    assert [p.name for p in disk.iterdir()] == ["much"]


def test_torch_on_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    """torch raises its own error instead of the file's."""
    file = small_disk(64) / "state.pt"
    file.write_bytes(b"earlier")
    with (
        pytest.raises(OutputError, match=r"state\.pt cannot be written: No space left"),
        new_file(file) as state,
    ):
        torch.save({"a": torch.zeros(100_000)}, state)
    assert file.read_bytes() == b"earlier" and len(list(file.parent.iterdir())) == 1
    with new_file(file) as state:
        torch.save({"a": torch.arange(100)}, state)
    assert torch.equal(torch.load(file, weights_only=True)["a"], torch.arange(100))


def test_a_gguf_file_becomes_a_directory_first(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    tiny_gguf(tmp_path / "g" / "model.gguf", layers=3)
    recipe = parse_recipe({"depth": {"layers": [1]}})
    out = tmp_path / "o"
    dry = compress(str(tmp_path / "g"), out, recipe, reporter=Silent(), dry_run=True)
    assert dry.estimate and not out.exists()
    result = compress(str(tmp_path / "g"), out, recipe, reporter=Silent())
    assert (out / "00-source" / "model" / "config.json").is_file()
    assert [row.layers for row in result.rows] == [3, 2]
    again = compress(str(tmp_path / "g"), out, recipe, reporter=InterruptAt("depth", 1))
    assert again.rows == result.rows


def test_the_command(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[depth]\nlayers = [1]\n")
    command = ["compress", str(stories), "-o", str(tmp_path / "o"), "--recipe", str(file)]
    assert run_cli([*command, "--set", "depth.layers=[2]", "--json"]) == 0
    streams = capsys.readouterr()
    content = json.loads(streams.out)
    assert [row["layers"] for row in content["steps"]] == [5, 4]
    assert content["final"] == str(tmp_path / "o" / "final")
    record = json.loads((tmp_path / "o" / "01-depth" / "step.json").read_text())
    assert record["parameters"]["removed"] == [2]
    for arguments, code in (
        ([*command, "--set", "depth.layer=2"], 16),
        (command, 63),
        (["compress", str(tmp_path / "none"), *command[2:]], 10),
    ):
        assert run_cli(arguments) == code
        streams = capsys.readouterr()
        assert streams.out == "" and streams.err.startswith("shrinkc: ")
    (tmp_path / "o" / "01-depth" / "config.json").write_text("{}")
    assert run_cli([*command, "--set", "depth.layers=[2]"]) == 62


def test_force_keeps_the_run_when_the_recipe_is_refused(
    stories: Path, story_file: Path, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path)
    before = sorted(p.relative_to(out) for p in out.rglob("*"))
    wrong = parse_recipe({"gptq": {"group_size": 128}})
    with pytest.raises(QuantizeError, match="128"):
        compress(str(stories), out, wrong, reporter=Silent(), force=True)
    assert sorted(p.relative_to(out) for p in out.rglob("*")) == before


def test_force_waits_for_no_lock(
    stories: Path, whole: tuple[Path, CompressionResult], tmp_path: Path
) -> None:
    out = copy_of(whole, tmp_path)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        short = parse_recipe({"depth": {"layers": [2]}})
        with pytest.raises(OutputError, match="another shrinkc is working"):
            compress(str(stories), out, short, reporter=Silent(), force=True)
    assert all((out / name / "step.json").is_file() for name in STEPS)


def test_another_budget_reuses_the_measurements(
    stories: Path, story_file: Path, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {
        "calibration": {"text": [str(story_file)], "samples": 16, "length": 32},
        "budget": {"target_bytes": "200KiB"},
    }
    out = tmp_path / "o"
    with pytest.raises(KeyboardInterrupt):
        compress(str(stories), out, parse_recipe(tables), reporter=InterruptAt("sensitivity", 20))
    scratch = out / ".scratch" / "budget" / "sensitivity.jsonl"
    measured = scratch.read_text()
    assert measured
    tables["budget"]["target_bytes"] = "210KiB"
    with pytest.raises(KeyboardInterrupt):
        compress(str(stories), out, parse_recipe(tables), reporter=InterruptAt("sensitivity", 2))
    assert scratch.read_text().startswith(measured)
    made = {"made_from": {"budget.target_bytes": "200KiB"}, "recipe": ""}
    (out / "budget.json").write_text(json.dumps(made))
    for dry_run in (True, False):
        with pytest.raises(RunChanged, match=r"budget.json was made with other settings: .*210KiB"):
            compress(str(stories), out, parse_recipe(tables), reporter=Silent(), dry_run=dry_run)


def test_a_run_is_no_model(
    whole: tuple[Path, CompressionResult], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["eval", str(whole[0]), "--sample", "Once"]) == ModelNotFound.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert "is a run of 'shrinkc compress'" in said and f"such as {whole[0] / STEPS[-1]}." in said


def test_stopped_before_anything_was_written(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*arguments: Any, **options: Any) -> CompressionResult:
        raise KeyboardInterrupt

    monkeypatch.setattr("shrinkc.compression.run.compress", stop)
    (tmp_path / "r.toml").write_text("[depth]\nlayers = [2]\n")
    command = ["compress", str(stories), "--recipe", str(tmp_path / "r.toml")]
    assert run_cli([*command, "-o", str(tmp_path / "o")]) == Interrupted.exit_code
    assert "nothing was written" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_in_memory(stories: Path, story_file: Path, tmp_path: Path) -> None:
    """The steps equal those for the model's directory; the same call again continues them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories)
    options = {
        "recipe": {"calibration": {"text": [story_file], "samples": 2, "length": 64}, "depth": {"layers": [1]}},
        "tokenizer": AutoTokenizer.from_pretrained(stories),
    }  # fmt: skip
    made = shrinkc.compress(model, tmp_path / "run", **options)
    assert repr(made).startswith(f"<CompressionResult {tmp_path / 'run' / 'final'}: 1 steps, ")
    tables: Any = options["recipe"]
    again = compress(str(stories), tmp_path / "other", load_recipe(tables), reporter=Silent())
    for name in ("config.json", "model.safetensors"):
        assert (made.final / name).read_bytes() == (again.final / name).read_bytes()
    assert json.loads((tmp_path / "run/run.json").read_text())["model"] == "stories"
    when = (made.final / "step.json").stat().st_mtime_ns
    assert shrinkc.compress(model, tmp_path / "run", **options).final == made.final
    assert (made.final / "step.json").stat().st_mtime_ns == when
