"""examples/bench/fidelity.py prints and writes what the protocols measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "bench" / "fidelity.py"


def fidelity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, PYTHONPATH=str(ROOT / "compiler"))
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat and the hen " * 200, encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
def test_table_and_json(tiny_dir: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = fidelity(tiny_dir, "--text", text, "--windows", "2", "--json", out)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "wikitext512: 2 windows, 1022 predicted tokens"
    assert lines[2].split()[0] == "float32"
    assert "1.0000  100.00%" in lines[2]
    assert lines[3].startswith("integer, 8 bit, head 8 bit  ")
    a, b = json.loads(out.read_text(encoding="utf-8"))
    assert a["tokens"] == b["tokens"] == 1022
    assert b["ratio"] == pytest.approx(b["perplexity"] / a["perplexity"])
    assert f"{b['loss']:.4f}" in lines[3]
    assert "integer: 2/2 windows" in run.stderr


@pytest.mark.slow
@pytest.mark.libraries("torch", "transformers")
def test_a_quantised_model_is_compared_with_its_own_weights(text: Path, tmp_path: Path) -> None:
    from helpers.tiny_gguf import tiny_gguf

    model, out = tmp_path / "m.gguf", tmp_path / "out.json"
    tiny_gguf(model)  # 4 bit, and coarse: only the same weights give nearly the same loss
    run = fidelity(model, "--text", text, "--windows", "1", "--json", out)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("integer, as stored  ")
    assert json.loads(out.read_text(encoding="utf-8"))[1]["ratio"] == pytest.approx(1, abs=0.01)


def test_integer_model_alone(tiny_dir: Path, text: Path) -> None:
    run = fidelity(tiny_dir, "--text", text, "--windows", "1", "--skip-float", "--bits", "4",
                   "--group", "8", "--asymmetric", "--head-bits", "4")  # fmt: skip
    assert run.returncode == 0, run.stderr
    row = run.stdout.splitlines()[-1]
    assert row.startswith("integer, 4 bit, groups of 8, asymmetric, head 4 bit  ")
    assert "float32" not in run.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--windows", "99"], 2, "99 windows of 512 tokens need 50688 tokens"),
        (["--bits", "5"], 20, "--bits 5 is not supported"),
        (["--windows", "1", "--group", "7"], 20, "group size 7 does not divide"),
    ],
)
def test_refusals_have_their_exit_code(
    tiny_dir: Path, text: Path, arguments: list[str], code: int, says: str
) -> None:
    run = fidelity(tiny_dir, "--text", text, "--skip-float", *arguments)
    assert run.returncode == code
    assert says in run.stderr
    assert "Traceback" not in run.stderr
