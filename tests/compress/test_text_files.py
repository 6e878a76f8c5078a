"""Unreadable texts are reported before torch is imported, which takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shrinkc.compression.recipe import parse_recipe
from shrinkc.core.errors import BadData
from shrinkc.core.inputs import check_text_files

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
RECIPE = """
[calibration]
text = ["none.txt"]
[depth]
remove = 1
[lora]
text = ["none.txt", "hub:a/b", "self:2k"]
[finetune_scales]
[evaluate]
text = "none.txt"
tasks = ["hellaswag={folder}"]
[explore]
depth.remove = [1, 2]
"""
COMMANDS = """
import contextlib, io, sys
from shrinkc.cli.main import run_cli

model, recipe = sys.argv[1:]
for words in (
    ["compress", model, "--recipe", recipe.replace("space", "plain"), "-o", "run"],
    ["explore", model, "--recipe", recipe, "--trials", "1", "-o", "search"],
    ["eval", model, "--text", "none.txt"],
    ["sensitivity", model, "--text", "none.txt", "--text", "none.txt"],
    ["franken", model, "--layers", "0-4", "--text", "none.txt"],
):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run_cli(words)
    text = " ".join(said.getvalue().split())
    print(words[0], code, text.count("none.txt"), "torch" in sys.modules, text)
"""


@pytest.mark.libraries("optuna")
def test_every_command_reports_them_once_before_torch(tmp_path: Path) -> None:
    text = RECIPE.format(folder=tmp_path)
    (tmp_path / "space.toml").write_text(text)
    (tmp_path / "plain.toml").write_text(text[: text.index("[explore]")])
    found = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(STORIES), str(tmp_path / "space.toml")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split(" ", 4) for line in found.stdout.splitlines()]
    assert [line[:4] for line in lines] == [
        [name, "17", "1", "False"]
        for name in ("compress", "explore", "eval", "sensitivity", "franken")
    ], found.stdout
    for line in lines[:2]:  # every key and every file is listed
        keys = "lora.text, calibration.text, evaluate.text: "
        assert f"{keys}{tmp_path / 'none.txt'} cannot be read: No such file" in line[4]
        assert f"evaluate.tasks: {tmp_path} cannot be read: Is a directory" in line[4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.toml", "space.toml"]


def test_unused_calibration_text_may_be_missing() -> None:
    tables = {"calibration": {"text": ["/none"]}, "depth": {"layers": [1]}}
    assert list(parse_recipe(tables).text_files()) == []


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("é")
    (tmp_path / "bad").write_bytes(b"caf\xe9")
    check_text_files([("text", tmp_path / "good")])
    files = [("a", tmp_path / "bad"), ("b", tmp_path / "good"), ("c", Path("x\0y"))]
    with pytest.raises(BadData, match="a: .*bad cannot be read: it is not UTF-8.*; c: "):
        check_text_files(files)
