"""examples/bench/fidelity.py prints and writes what the protocols measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fidelity
import pytest

from shrinkc.core.errors import ShrinkcError


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the script's command in this process and return exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> Ran:
        capfd.readouterr()
        try:
            code = fidelity.main([str(argument) for argument in arguments])
        except ShrinkcError as error:
            return Ran(error.exit_code, "", str(error))
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat and the hen " * 200, encoding="utf-8")
    return file


@pytest.mark.libraries("torch", "transformers")
def test_table_and_json(tiny_dir: Path, text: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.json"
    ran = run(tiny_dir, "--text", text, "--windows", "2", "--json", out)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "wikitext512: 2 windows, 1022 predicted tokens"
    assert lines[2].split()[0] == "float32"
    assert "1.0000  100.00%" in lines[2]
    assert lines[3].startswith("integer, 8 bit, embedding 8 bit  ")
    a, b = json.loads(out.read_text(encoding="utf-8"))
    assert a["tokens"] == b["tokens"] == 1022
    assert b["ratio"] == pytest.approx(b["perplexity"] / a["perplexity"])
    assert f"{b['loss']:.4f}" in lines[3]
    assert "integer: 2/2 windows" in ran.stderr


@pytest.mark.libraries("torch", "transformers")
def test_a_quantised_model_is_compared_with_its_own_weights(
    text: Path, tmp_path: Path, run: Run
) -> None:
    from helpers.tiny_gguf import tiny_gguf

    model, out = tmp_path / "m.gguf", tmp_path / "out.json"
    tiny_gguf(model)  # 4 bit, and coarse: only the same weights give nearly the same loss
    ran = run(model, "--text", text, "--windows", "1", "--json", out)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("integer, as stored  ")
    assert json.loads(out.read_text(encoding="utf-8"))[1]["ratio"] == pytest.approx(1, abs=0.01)


def test_integer_model_alone(tiny_dir: Path, text: Path, run: Run) -> None:
    ran = run(tiny_dir, "--text", text, "--windows", "1", "--skip-float", "--bits", "4",
                   "--group-size", "8", "--asymmetric", "--embedding-bits", "4")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    row = ran.stdout.splitlines()[-1]
    assert row.startswith("integer, 4 bit, group size 8, asymmetric, embedding 4 bit  ")
    assert "float32" not in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--windows", "99"], 2, "99 windows of 512 tokens need 50688 tokens"),
        (["--bits", "7"], 20, "--bits 7 is not supported"),
        (["--windows", "1", "--group-size", "7"], 20, "group size 7 does not divide"),
    ],
)
def test_refusals_have_their_exit_code(
    tiny_dir: Path, text: Path, run: Run, arguments: list[str], code: int, says: str
) -> None:
    ran = run(tiny_dir, "--text", text, "--skip-float", *arguments)
    assert ran.returncode == code
    assert says in ran.stderr
