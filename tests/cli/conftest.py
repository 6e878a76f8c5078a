"""A tiny model and a way to run command lines in this process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool
from shrinkc.cli.main import run_cli


@dataclass(frozen=True)
class Result:
    """Exit code and both streams of one command line; ``words`` is stderr without line breaks."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return " ".join(self.err.split())

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """cli("compile", model, "-o", out): runs it and returns what came of it."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = run_cli([str(a) for a in arguments])
        streams = capfd.readouterr()
        return Result(code, streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of odd sizes that takes a moment to compile."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_llama(folder, hidden=20, intermediate=36, layers=2, heads=4, kv_heads=2, head_dim=6)
    return folder


@pytest.fixture(scope="session")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, compiled for siracusa; tests that change something take a copy."""
    out = tmp_path_factory.mktemp("compiled") / "tiny"
    assert run_cli(["compile", str(model), "-o", str(out)]) == 0
    return out


@pytest.fixture
def program(compiled: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(compiled, tmp_path / "program"))


@pytest.fixture
def needs() -> Callable[..., None]:
    """needs("cc", "make"): skips the test, naming what is missing."""

    def check(*names: str) -> None:
        for name in names:
            tool = find_tool(name, dict(os.environ))
            if not tool.usable:
                pytest.skip(f"{tool.name}: {tool.problem}; {tool.fix}")

    return check
