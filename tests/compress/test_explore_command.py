"""``shrinkc explore`` on a small model: trials are runs, share steps, and are continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("optuna")

from shrinkc.cli.main import run_cli
from shrinkc.compression.explore import Outcome, Result
from shrinkc.compression.trials import Trials
from shrinkc.core.errors import (
    BadData,
    BadRecipe,
    OutputError,
    RunChanged,
    ShrinkcError,
    StageFailed,
    UsageError,
)

pytestmark = pytest.mark.slow

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
RECIPE = """
[calibration]
text = "text.txt"
samples = 2
length = 32
[evaluate]
text = "text.txt"
windows = 1
[depth]
method = "magnitude"
remove = 2
protect_first = 1
protect_last = 1
[width]
ffn_keep = 128
[explore]
width.ffn_keep = [64, 128, 192, 999]
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    names = ["Lily", "Tom", "Ben", "Mia", "a dog", "a cat", "the sun", "her mom"]
    story = [f"Once upon a time {a} saw {b}. {a} and {b} were happy." for a in names for b in names]
    (tmp_path / "text.txt").write_text("\n".join(story) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def explore(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function: explore("--trials", "1") gives exit code, stdout, and stderr in one line."""

    def run(*options: str) -> tuple[int, str, str]:
        out = str(tmp_path / "out")
        command = ["explore", str(STORIES), "--recipe", str(recipe), "-o", out, *options]
        code = run_cli(command)
        streams = capsys.readouterr()
        return code, streams.out, " ".join(streams.err.split())

    return run


@pytest.mark.slow
def test_a_study_goes_on(explore: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, _ = explore("--trials", "2")
    assert code == 0
    assert shown == (out / "front.md").read_text()
    first = trials(out)
    complete = [t for t in first if t["state"] == "complete"]
    assert len(complete) == 2

    # a run with the trials' conditions, and a list with these conditions
    run = out / "trials" / "0000" / "run.json"
    measured = complete[0]["figures"]["measured"]
    assert measured["windows"] == 1 and measured["dtype"] == "float32"
    mine = {"name": "mine", "packed_bytes": 1 << 20, "perplexity": 9.0, "measured": measured}
    (tmp_path / "reference.json").write_text(json.dumps([mine]))
    options = ["--trials", "5", "--json", "--reference", str(tmp_path / "reference.json")]
    options += ["--reference", str(run)]
    code, shown, notes = explore(*options)
    assert code == 0
    result = json.loads(shown)
    assert "all combinations" in notes
    assert result["trials"][: len(first)] == first
    assert [r["name"] for r in result["references"]] == [
        "mine", "00-source", "01-depth", "02-width",
    ]  # fmt: skip
    # all four values were tried, and impossible ones were refused before any work
    tried = {t["values"]["width.ffn_keep"]: t for t in result["trials"]}
    assert sorted(tried) == [64, 128, 192, 999]
    assert tried[999]["state"] == "infeasible" and "999" in tried[999]["reason"]
    assert not (out / "trials" / f"{tried[999]['trial']:04d}").exists()
    assert tried[64]["packed_bytes"] < tried[128]["packed_bytes"] < tried[192]["packed_bytes"]
    assert tried[128]["figures"]["layers"] == 3

    folders = {keep: out / "trials" / f"{t['trial']:04d}" for keep, t in tried.items()}
    # the first stage ran once: its files are hard links
    files = [folders[k] / "01-depth" / "model.safetensors" for k in (64, 128, 192)]
    assert len({f.stat().st_ino for f in files}) == 1
    # only the front keeps its models
    front = {t["trial"] for t in result["front"]}
    for keep in (64, 128, 192):
        kept = (folders[keep] / "02-width" / "model.safetensors").is_file()
        assert kept == (tried[keep]["trial"] in front)

    # another text makes another study
    text = tmp_path / "text.txt"
    text.write_text(text.read_text() + "The end.\n")
    code, _, said = explore("--trials", "1")
    assert code == RunChanged.exit_code
    assert "text.txt has other content" in said


def test_an_order_that_cannot_work_is_refused_before_any_work(
    explore: Run, recipe: Path, tmp_path: Path
) -> None:
    later = """[gptq]
group_size = 32
[eora]
rank = 4
[reconstruct]
samples = 2
length = 32
[explore]"""
    recipe.write_text(RECIPE.replace("[explore]", later))
    code, _, said = explore("--trials", "1")
    assert (
        code != 0
        and "[reconstruct] changes the weights that the adapters of [eora] correct" in said
    )
    assert not list((tmp_path / "out").rglob("0[1-9]-*"))


@pytest.mark.slow
def test_references_of_another_protocol_are_refused(
    explore: Run, recipe: Path, tmp_path: Path
) -> None:
    own = RECIPE.split("[explore]")[0].replace("windows = 1", "windows = 2\ndtype = 'bfloat16'")
    (tmp_path / "other.toml").write_text(own)
    run = tmp_path / "run"
    given = ["--recipe", str(tmp_path / "other.toml"), "-o", str(run)]
    assert run_cli(["compress", str(STORIES), *given]) == 0
    code, _, said = explore("--trials", "1", "--reference", str(run / "run.json"))
    assert code == BadData.exit_code
    assert "00-source: windows: 2 → 1, dtype: bfloat16 → float32; 01-depth: windows: 2" in said
    assert not (tmp_path / "out").exists()


def trials(out: Path) -> list[dict[str, Any]]:
    content = json.loads((out / "front.json").read_text())
    found: list[dict[str, Any]] = content["trials"]
    return found


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--trials", "0"], UsageError, "'--trials': 0 is not in the range x>=1"),
        (["--trials", "1", "--timeout", "0"], UsageError, "--timeout 0"),
        (["--trials", "1", "--storage", "nothing://x"], OutputError, "nothing://x cannot be used"),
        (["--trials", "1", "--set", "width.nothing=1"], BadRecipe, "there is no such key"),
    ],
)
def test_refusals(options: list[str], error: type[ShrinkcError], words: str, explore: Run) -> None:
    code, _, said = explore(*options)
    assert code == error.exit_code
    assert words in said


def test_a_range_of_an_unknown_key(explore: Run, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("width.ffn_keep = [", "width.ffn_kept = ["))
    code, _, said = explore("--trials", "1")
    assert code == BadRecipe.exit_code
    assert "[explore] width.ffn_kept: [width] has no key 'ffn_kept'" in said
    assert "ffn_keep" in said
    assert not (tmp_path / "out").exists()


def test_no_trial_is_possible(explore: Run, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("[64, 128, 192, 999]", "[998, 999]"))
    code, _, said = explore("--trials", "1")
    assert code == StageFailed.exit_code
    assert "none of 2 trials is possible; the first: [width]" in said


def test_a_recipe_has_to_measure_perplexity(explore: Run, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.replace("[evaluate]", "[evaluate]\nsamples = 'a'").replace(
        'text = "text.txt"\nwindows', "windows"
    ))  # fmt: skip
    code, _, said = explore("--trials", "1")
    assert code == BadRecipe.exit_code and "measures no perplexity" in said
    assert not (tmp_path / "out").exists()


def test_ranges_from_a_file_of_their_own(explore: Run, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.split("[explore]")[0])
    code, _, said = explore("--trials", "1")
    assert code == BadRecipe.exit_code and "no table [explore]" in said
    space = tmp_path / "space.toml"
    space.write_text("lora.rank = [4]")
    code, _, said = explore("--trials", "1", "--space", str(space))
    assert code == BadRecipe.exit_code and "[lora] is no table of the recipe" in said


def test_only_files_of_dominated_models_are_deleted(tmp_path: Path) -> None:
    results = [
        Result(number, {}, "complete", Outcome(1, 9.0), best=best)
        for number, best in ((0, True), (1, False))
    ]
    for number in (0, 1):
        for step in ("00-source", "01-depth"):
            folder = tmp_path / f"{number:04d}" / step
            folder.mkdir(parents=True)
            (folder / "step.json").write_text('{"files": {"model.safetensors": {}}}')
            (folder / "model.safetensors").write_text("weights")
            (folder / "notes.md").write_text("the user's")
    Trials.delete_dominated_models(SimpleNamespace(folder=tmp_path), results)  # type: ignore[arg-type]
    left = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*") if f.is_file()}
    assert len(left) == 2 * 2 * 3 - 1 and "0001/01-depth/model.safetensors" not in left


def test_a_full_disk(explore: Run, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    (tmp_path / "out").symlink_to(disk / "out")
    code, shown, said = explore("--trials", "1")
    assert (code, shown) == (OutputError.exit_code, "")
    assert "database or disk is full" in said
    with suppress(OSError), (disk / "more").open("wb", buffering=0) as more:
        while more.write(bytes(4096)):
            pass
    code, _, said = explore("--trials", "1")
    assert code == OutputError.exit_code and "out cannot be written: No space left" in said


def test_another_directory_is_not_touched(explore: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    code, _, _ = explore("--trials", "1")
    assert code == OutputError.exit_code
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


# Python ignores exceptions in the callback of a weak reference, also that of a signal handler.  In
# the child, the signal arrives in such a callback at the begin and in the middle of every trial.
LOST = """
import os, signal, sys, weakref
from shrinkc.cli import main
from shrinkc.compression.trials import Trials

class Victim:
    pass

def interrupted(work):
    def run(*arguments, **others):
        victim = Victim()
        reference = weakref.ref(victim, lambda _: os.kill(os.getpid(), signal.{signal}))
        del victim
        return work(*arguments, **others)
    return run

Trials.run = interrupted(Trials.run)
sys.argv[0] = "shrinkc"
main.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_python_drops_ends_the_search(
    name: str, code: int, recipe: Path, tmp_path: Path
) -> None:
    command = ["explore", str(STORIES), "--recipe", str(recipe), "-o", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-c", LOST.format(signal=name), *command, "--trials", "3"],
        capture_output=True, text=True,
        # a background job of a shell inherits an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert "Exception ignored" in ended.stderr
    assert ended.returncode == code, ended.stderr
    # no trial was completed
    assert not list((tmp_path / "out" / "trials").glob("*/02-width/step.json"))
