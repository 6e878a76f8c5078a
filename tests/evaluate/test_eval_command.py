"""``shrinkc eval``: the table, the report, and refusals before any work."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_families import write_family
from shrinkc.cli.main import run_cli
from shrinkc.driver import evaluating

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"


pytestmark = [pytest.mark.slow, pytest.mark.libraries("lm_eval", "torch", "transformers")]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    text, trivia, tasks = (tmp_path / n for n in ("text.txt", "trivia.jsonl", "tasks.txt"))
    text.write_text("Once upon a time, there was a little girl named Lily.\n" * 90)
    rows = [{"question": f"Who is {name}?", "golden_answers": [name]} for name in ("Tom", "Mia")]
    trivia.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.write_text("Play: Tom has a ball. He\n2\ngrew.\nbit the sky.\nplays with it.\nof.\n")
    return {"text": text, "triviaqa": trivia, "hellaswag": tasks}


def options_of(files: dict[str, Path]) -> list[str]:
    """That all of it is measured."""
    tasks = [f"--task={name}={path}" for name, path in files.items() if name != "text"]
    return [f"--text={files['text']}", *tasks]


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.words = code, out, " ".join(err.split())

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def shrinkc(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = run_cli(["eval", *map(str, arguments)])
        return Ran(code, *capfd.readouterr())

    return run


def test_table_and_report(shrinkc: Any, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = options_of(files)
    ran = shrinkc(
        STORIES, *options, "--windows", 2, "--threads", 1, "--sample", "Once upon a time", "-o", out
    )
    assert ran.code == 0, ran.words
    report = json.loads(out.read_text())
    assert set(report) == {"model", "perplexity", "tasks", "samples"}
    assert report["model"]["threads"] == 1
    assert report["perplexity"]["windows"] == 2
    lines = ran.out.splitlines()
    assert lines[0] == "stories (hf, float32, 1 thread)"
    assert lines[1].split() == ["measure", "value", "+-", "of"]
    assert f"{report['perplexity']['perplexity']:.3f}" in lines[2]
    assert "2 windows, 1022 tokens" in lines[2]
    assert set(report["tasks"]) == {"triviaqa", "hellaswag"}
    assert "hellaswag acc_norm" in ran.out
    assert "> Once upon a time\n, there was a little girl named Lily." in ran.out
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_json_alone_on_stdout(shrinkc: Any, files: dict[str, Path]) -> None:
    options = ("--windows", 1, "--json", "--dtype", "bfloat16", "--batch", 2)
    ran = shrinkc(STORIES, "--text", files["text"], *options)
    assert ran.code == 0, ran.words
    assert ran.json["perplexity"]["dtype"] == "bfloat16"
    assert ran.json["model"]["batch"] == 2


def test_the_batch_does_not_matter(shrinkc: Any, files: dict[str, Path]) -> None:
    options = options_of(files)
    a, b = (shrinkc(STORIES, *options, "--batch", n, "--json").json for n in (1, 8))
    assert a["perplexity"]["loss"] == pytest.approx(b["perplexity"]["loss"], rel=1e-6)
    for part in ("triviaqa", "hellaswag"):
        assert a["tasks"][part]["metrics"] == b["tasks"][part]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([STORIES], 2, "eval has nothing to measure. Hint: give at least one of --text FILE"),
        ([STORIES, "--sample", "a", "--windows", "0"], 2, "--windows 0 is not possible"),
        ([STORIES, "--sample", "a", "--windows", "some"], 2, "allowed: 1 and more, or all"),
        ([STORIES, "--sample", "a", "--threads", "0"], 2, "--threads 0 is not possible"),
        ([STORIES, "--sample", "a", "--engine", "host"], 2, "is not a compiled directory"),
        ([STORIES, "--sample", "a", "--chat"], 2, "no chat template"),
        ([STORIES, "--text", "{text}", "--chat"], 2, "--chat needs a message"),
        ([STORIES, "--text", "{text}", "--windows", "99"], 2, "windows of 512 tokens need"),
        ([STORIES, "--text", "{text}", "--protocol", "wikitext2048"], 2, "needs 2048 positions"),
        ([STORIES, "--text", "nowhere.txt"], 17, "nowhere.txt cannot be read"),
        ([STORIES, "--task", "=a"], 2, "'=a' is no task"),
        ([STORIES, "--task", "hellaswag={text}"], 17, "lines 1 to 6 are no task"),
        ([STORIES, "--task", "hellaswag={triviaqa}"], 17, "for the task hellaswag: 'ctx_a'"),
        ([STORIES, "--task", "nowhere.yaml"], 17, "nowhere.yaml cannot be read"),
        (["../nowhere", "--sample", "a"], 10, "does not exist"),
        ([STORIES, "--sample", "a", "-o", "no/where.json"], 40, "does not exist"),
    ],
)  # fmt: skip
def test_refusals(
    shrinkc: Any, files: dict[str, Path], arguments: list[object], code: int, says: str
) -> None:  # fmt: skip
    ran = shrinkc(*(str(a).format(**files) for a in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.words


def test_a_failed_run_writes_no_report(
    shrinkc: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    out.write_text("before")
    assert shrinkc(STORIES, "--text", files["text"], "--windows", 99, "-o", out).code == 2
    assert out.read_text() == "before"
    assert shrinkc(STORIES, "--text", files["text"], "--windows", 1, "-o", out).code == 0
    assert json.loads(out.read_text())["perplexity"]["windows"] == 1


# ---- where the report goes ----


def test_the_report_on_standard_output(
    shrinkc: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "stdout"  # a link of this test's own, as /dev/stdout is one
    out.symlink_to("/proc/self/fd/1")
    ran = shrinkc(STORIES, "--text", files["text"], "--windows", 1, "-o", out)
    assert ran.code == 0, ran.words
    report, end = json.JSONDecoder().raw_decode(ran.out)
    assert report["perplexity"]["windows"] == 1
    assert ran.out[end:].strip().startswith("stories (hf")
    assert out.is_symlink() and os.readlink(out) == "/proc/self/fd/1"


def test_the_report_through_pipe_and_link(
    shrinkc: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    target.write_text("before")
    link.symlink_to(target)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    for out in (pipe, link):
        assert shrinkc(STORIES, "--text", files["text"], "--windows", 1, "-o", out).code == 0
    reader.join(20)
    for report in (read[0].decode(), target.read_text()):
        assert json.loads(report)["perplexity"]["windows"] == 1
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and link.is_symlink()


def test_a_full_disk_is_refused_before_the_work(
    shrinkc: Any, files: dict[str, Path], small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    disk = small_disk(4)
    (disk / "much").write_bytes(bytes(4096))
    monkeypatch.setattr(evaluating, "evaluate", lambda *_: pytest.fail("measured"))
    ran = shrinkc(STORIES, "--text", files["text"], "-o", disk / "report.json")
    assert (ran.code, ran.out) == (40, "")
    assert "report.json cannot be written: No space left on device" in ran.words
    assert [p.name for p in disk.iterdir()] == ["much"]


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_what_was_measured_is_printed_when_the_disk_is_full_by_then(
    shrinkc: Any, files: dict[str, Path], small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch, option: list[str],
) -> None:  # fmt: skip
    disk = small_disk(64)
    measure = evaluating.evaluate

    def fill(*arguments: Any) -> Any:
        report = measure(*arguments)
        with suppress(OSError), (disk / "much").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        return report

    monkeypatch.setattr(evaluating, "evaluate", fill)
    out = disk / "report.json"
    ran = shrinkc(STORIES, "--text", files["text"], "--windows", 1, "-o", out, *option)
    assert ran.code == 40 and "report.json cannot be written: No space left" in ran.words
    if option:
        assert ran.json["perplexity"]["windows"] == 1
    else:
        assert "wikitext512 perplexity" in ran.out
    # what was scored stays, so that with some space the same command writes the report
    assert sorted(p.name for p in disk.iterdir()) == ["much", "report.json.resume"]
    (disk / "much").unlink()
    monkeypatch.setattr(evaluating, "evaluate", measure)
    assert shrinkc(STORIES, "--text", files["text"], "--windows", 1, "-o", out, *option).code == 0
    assert [p.name for p in disk.iterdir()] == ["report.json"]


# ---- every family that compiles ----


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families(shrinkc: Any, tmp_path: Path, family: str) -> None:
    """The float model and the compiled one continue a prompt with mostly the same tokens."""
    write_family(tmp_path / family, family)
    out = tmp_path / "out"
    options = ["-o", str(out), "--target", "host", "--context", "64", "-q"]
    assert run_cli(["compile", str(tmp_path / family), *options]) == 0
    new = []
    for arguments in ([tmp_path / family], [out, "--engine", "interpreter"]):
        ran = shrinkc(*arguments, "--sample", "the cat", "--json")
        assert ran.code == 0, ran.words
        new.append(ran.json["samples"]["texts"][0]["new_tokens"])
    assert new[0][:1] == new[1][:1]


# ---- what other libraries print ----


@pytest.mark.slow  # a process that imports torch for itself
def test_nothing_but_ours_on_standard_error() -> None:
    """Also where transformers' models, and with them torchao, are imported before a model is loaded."""
    script = (
        "import sys; from shrinkc.checkpoints import need; need('torch')\n"
        "from transformers import LlamaForCausalLM; from shrinkc.cli.main import run_cli\n"
        "sys.exit(run_cli(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "eval", str(STORIES), "--sample", "Once", "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# ---- threads ----


def test_a_small_model_takes_one_thread(shrinkc: Any, files: dict[str, Path]) -> None:
    import torch

    from shrinkc.checkpoints import suited_threads

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        wanted = {96: 1, 128: 1, 255: 1, 256: 2, 384: 3, 4096: 3}
        assert {hidden: suited_threads(hidden) for hidden in wanted} == wanted
        task = [STORIES, "--sample", "a", "--json"]
        assert shrinkc(*task).json["model"]["threads"] == 1
        assert shrinkc(*task, "--threads", 2).json["model"]["threads"] == 2
        assert torch.get_num_threads() == 3  # what a caller in Python had chosen
    finally:
        torch.set_num_threads(before)
