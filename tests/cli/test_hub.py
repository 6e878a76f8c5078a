"""``plan`` and ``compile`` of ids of the hub, and of what is no model but looks like one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from shrinkc.checkpoints import loading

from .conftest import Cli

NAME = "somebody/tiny-model"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """A hub that has one model, and what was asked of it: of its files those that were asked for."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    calls: list[dict[str, Any]] = []

    def download(name: str, **files: Any) -> str:
        calls.append({"name": name, **files})
        if name != NAME:
            raise OSError("no network here")
        place = tmp_path / "cache" / "0123abcd"
        place.mkdir(parents=True, exist_ok=True)
        for pattern in files["allow_patterns"]:
            for file in model.glob(pattern):
                shutil.copy(file, place)
        return str(place)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_a_plan_fetches_no_weights(cli: Cli, asked: list[dict[str, Any]], model: Path) -> None:
    here = cli("plan", model, "--json").json
    there = cli("plan", NAME, "--json")
    assert there.code == 0
    assert there.json["model"] == NAME
    assert there.json["memory"] == here["memory"]
    assert not list(Path("cache/0123abcd").glob("*.safetensors"))
    assert [call["name"] for call in asked] == [NAME]
    assert cli("plan", NAME, "--sweep", "bits=4,8").code == 0
    assert shrinkc.open(NAME).name == NAME


def test_it_is_compiled(cli: Cli, asked: list[dict[str, Any]], model: Path) -> None:
    assert cli("compile", NAME, "-o", "there").code == 0
    assert cli("compile", model, "-o", "here").code == 0
    for file in ("plan.json", "blobs/wmem.bin"):
        assert Path("there", file).read_bytes() == Path("here", file).read_bytes()
    manifest = json.loads(Path("there/manifest.json").read_text())
    assert manifest["model"] == NAME
    assert manifest["command"].startswith(f"shrinkc compile {NAME} ")
    shutil.rmtree("cache")
    opened = shrinkc.open(NAME)  # planned first, compiled then
    assert shrinkc.compile(opened, "again").output.is_dir()
    assert len(asked) == 3


@pytest.mark.parametrize("command", ["plan", "compile"])
def test_what_the_hub_does_not_give(
    cli: Cli, asked: list[dict[str, Any]], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["-o", "out"] if command == "compile" else []
    result = cli(command, "somebody/else", *more)
    assert (result.code, result.out) == (shrinkc.errors.ModelNotFound.exit_code, "")
    assert (
        "somebody/else is no local directory, and the Hugging Face hub does not give it"
        in result.words
    )
    assert "no network here" in result.words and not Path("out").exists()
    for name in ("else", "somebody/else.gguf", "a/b/c", "/somebody/else"):  # paths, all of them
        assert cli(command, name, *more).code == shrinkc.errors.ModelNotFound.exit_code
    assert len(asked) == 1
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    result = cli(command, "somebody/else", *more)
    assert result.code == shrinkc.errors.ModelNotFound.exit_code and len(asked) == 1
    assert "ids of the hub need: pip install" in result.words


@pytest.mark.parametrize("command", ["plan", "compile"])
def test_a_run_has_steps(cli: Cli, model: Path, tmp_path: Path, command: str) -> None:
    step = tmp_path / "run" / "02-gptq"
    shutil.copytree(model, step)
    (step / "step.json").write_text("{}")
    more = ["-o", tmp_path / "out"] if command == "compile" else []
    result = cli(command, tmp_path / "run", *more)
    assert result.code == shrinkc.errors.ModelNotFound.exit_code
    assert "is a run of 'shrinkc compress', not a model" in result.words
    assert "give one of its steps, such as" in result.words and "02-gptq" in result.words
    assert cli(command, step, *more).code == 0
