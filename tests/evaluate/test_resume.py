"""An interrupted evaluation resumes, and its report equals that of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from helpers.interrupting import InterruptAt
from helpers.tiny_llama import write_tiny_llama
from shrinkc.cli.main import run_cli
from shrinkc.core.errors import BadData, RunChanged
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Silent
from shrinkc.evaluation import Choices, EvalPlan, TaskChoice, evaluate, made_from
from shrinkc.evaluation.scorer import Predicted

from .fake_scorer import FakeScorer

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Text, questions and tasks of different lengths, as arguments of shrinkc.evaluate."""
    folder = tmp_path_factory.mktemp("files")
    text, trivia, tasks = (folder / n for n in ("text.txt", "trivia.jsonl", "tasks.txt"))
    text.write_text("".join(f"the cat {n} and the hen\n" for n in range(3000)))
    rows = [{"question": f"Who is{' not' * n} Tom?", "golden_answers": ["Tom"]} for n in range(3)]
    trivia.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "Play: Tom has{} a ball. He\n2\ngrew.\nbit the sky.\nplays with it.\nof.\n"
    tasks.write_text("".join(lines.format(" not" * n) for n in range(3)))

    tasks_asked = (f"triviaqa={trivia}", f"hellaswag={tasks}")
    return {"text": text, "tasks": tasks_asked, "samples": ("Once", "One day")}


def without_seconds(report: Any) -> Any:
    if isinstance(report, dict):
        return {k: without_seconds(v) for k, v in report.items() if k != "seconds"}
    return report


# ---- a command that is killed ----


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, out = (tmp_path_factory.mktemp("tiny") / name for name in ("model", "out"))
    write_tiny_llama(model, hidden=32, intermediate=48, heads=4, kv_heads=2, max_position=128)
    options = ["--target", "host", "--context", "96"]
    assert run_cli(["compile", str(model), "-o", str(out), *options]) == 0
    return out


def killed(command: list[str], kept: Path, lines: int, number: signal.Signals) -> tuple[int, str]:
    """Return exit code and stderr of a process that gets the signal when ``kept`` has the given number of lines."""
    child = subprocess.Popen(
        [sys.executable, "-m", "shrinkc", *command],
        env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while child.poll() is None and time.monotonic() < deadline:
        if kept.is_file() and kept.read_bytes().count(b"\n") >= lines:
            child.send_signal(number)
            break
        time.sleep(0.005)
    _, said = child.communicate(timeout=100)
    return child.returncode, " ".join(said.split())


@pytest.mark.slow
def test_a_killed_command_goes_on(program: Path, files: dict[str, Any], tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        options = ["--engine", "interpreter", "--protocol", "wikitext64", "--windows", "60"]
        return [
            "eval",
            str(program),
            f"--text={files['text']}",
            *options,
            "-o",
            str(tmp_path / name),
        ]

    out, kept = tmp_path / "report.json", tmp_path / "report.json.resume"
    for lines, number, code in (
        (4, signal.SIGINT, 130), (9, signal.SIGTERM, 143), (14, signal.SIGKILL, -9),
    ):  # fmt: skip
        returned, said = killed(command(out.name), kept, lines, number)
        assert returned == code, said
        assert ("the same command goes on from here" in said) == (code != -9)
        assert ("note: goes on from" in said) == (lines > 4)
        assert not out.exists() and kept.read_bytes().count(b"\n") >= lines
    with kept.open("ab") as file:
        file.write(b'0123abcd {"part": "perp')  # as if it had been killed a little later
    assert run_cli(command(out.name)) == 0
    assert not kept.exists()
    assert run_cli(command("whole.json")) == 0
    whole, report = (json.loads((tmp_path / n).read_text()) for n in ("whole.json", out.name))
    assert without_seconds(report) == without_seconds(whole)
    assert whole["perplexity"]["windows"] == 60 and list(whole) == list(report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "whole.json"]


# ---- every part, float ----


@pytest.mark.slow
@pytest.mark.libraries("lm_eval", "torch", "transformers")
def test_every_part_of_a_float_model(files: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {**files, "windows": 3, "batch": 2, "threads": 1}
    whole = shrinkc.evaluate(STORIES, **options)
    kept = tmp_path / "kept"
    for title, count in (("perplexity", 2), ("triviaqa", 3), ("hellaswag", 3)):
        before = kept.stat().st_size if kept.exists() else 0
        with pytest.raises(KeyboardInterrupt):
            shrinkc.evaluate(
                STORIES, **options, resume=kept, reporter=InterruptAt(title, count)
            )  # fmt: skip
        assert kept.stat().st_size > before, title
    report = shrinkc.evaluate(STORIES, **options, resume=kept)
    assert without_seconds(report) == without_seconds(whole)
    seconds = [json.loads(line.split(b" ", 1)[1]) for line in kept.read_bytes().splitlines()[2:]]
    found = {"perplexity, wikitext512": report["perplexity"], **report["tasks"]}
    for part, about in found.items():
        before = sum(record["seconds"] for record in seconds if record["part"] == part)
        assert about["seconds"] > before - 0.01 > 0


# ---- what is asked again, and what is refused ----


class Once(FakeScorer):
    """Also refuses to be asked where ``silent``."""

    silent = False

    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        assert not self.silent
        return super()._predict(questions)

    def _generate(self, *arguments: Any) -> list[list[int]]:
        assert not self.silent
        return super()._generate(*arguments)


def plan_of(files: dict[str, Any]) -> EvalPlan:
    tasks = tuple(map(TaskChoice.parse, files["tasks"]))
    return EvalPlan(**{**files, "tasks": tasks}, protocol="wikitext64", windows=5)


def kept_evaluation(scorer: Once, plan: EvalPlan, path: Path) -> tuple[Any, int]:
    """Return the report and the number of damaged lines."""
    journal = Journal(path, made_from(scorer, plan))
    try:
        return evaluate(scorer, plan, Silent(), journal), journal.damaged
    finally:
        journal.close()


@pytest.mark.libraries("lm_eval")
def test_what_is_kept_is_not_asked_again(files: dict[str, Any], tmp_path: Path) -> None:
    plan, kept = plan_of(files), tmp_path / "kept"
    answers = {"Question: Who is not Tom??\nAnswer:": "Tom"}
    scorer = Once(answers=answers, liked=("plays with it.",))
    whole, _ = kept_evaluation(scorer, plan, kept)
    assert whole["tasks"]["triviaqa"]["metrics"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert whole["tasks"]["hellaswag"]["metrics"]["acc"]["value"] == 1.0
    lines = kept.read_bytes().splitlines()
    assert (
        len(lines) == 2 + 5 + 3 + 3 + 2
    )  # magic and head, then windows, questions, tasks, samples
    silent = Once(answers=answers, liked=("plays with it.",))
    silent.silent = True
    again, damaged = kept_evaluation(silent, plan, kept)
    assert (without_seconds(again), damaged) == (without_seconds(whole), 0)
    # one window and one question are damaged: these two are asked again, and nothing else
    for line in (3, 9):
        lines[line] = lines[line].replace(b'"results": [', b'"results": [1')
    kept.write_bytes(b"\n".join(lines) + b"\n")
    scorer.asked.clear()
    again, damaged = kept_evaluation(scorer, plan, kept)
    assert (without_seconds(again), damaged) == (without_seconds(whole), 2)
    assert [len(part) for part in scorer.asked] == [1, 1]


def test_a_full_disk_ends_no_evaluation(
    files: dict[str, Any], tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    class Notes(Silent):
        said: list[str]

        def __init__(self) -> None:
            self.said = []

        def note(self, text: str) -> None:
            self.said.append(text)

    plan = EvalPlan(text=files["text"], protocol="wikitext64", windows=60)
    reporter, scorer = Notes(), Once()
    path = small_disk(8) / "kept"
    journal = Journal(path, made_from(scorer, plan))
    (path.parent / "much").write_bytes(bytes(4096))
    report = evaluate(scorer, plan, reporter, journal)
    journal.close()
    assert report["perplexity"]["windows"] == 60  # type: ignore[index]
    (note,) = reporter.said
    assert "kept cannot be written: No space left on device. What comes now is lost" in note


def test_another_evaluation_is_refused(
    program: Path, files: dict[str, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "text": files["text"], "windows": 2, "engine": "interpreter", "resume": tmp_path / "kept",
    }  # fmt: skip
    shrinkc.evaluate(program, **options)
    before = options["resume"].read_bytes()
    with pytest.raises(RunChanged, match="windows: 2 → 3") as caught:
        shrinkc.evaluate(program, **options | {"windows": 3})
    assert caught.value.exit_code == 63
    other = tmp_path / files["text"].name
    other.write_text(files["text"].read_text().upper())
    with pytest.raises(RunChanged, match=r"text\.txt has other content"):
        shrinkc.evaluate(program, **options | {"text": other})
    assert options["resume"].read_bytes() == before


def test_a_refusal_leaves_nothing(program: Path, files: dict[str, Any], tmp_path: Path) -> None:
    options = [f"--text={files['text']}", "--engine", "interpreter"]
    out, notes = tmp_path / "report.json", tmp_path / "notes"
    assert run_cli(["eval", str(program), *options, "--windows", "99999", "-o", str(out)]) == 2
    assert list(tmp_path.iterdir()) == []
    notes.write_text("mine")
    assert run_cli(["eval", str(program), *options, "--resume", str(notes)]) == BadData.exit_code
    assert notes.read_text() == "mine"
