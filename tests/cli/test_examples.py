"""The examples that the help of the commands shows."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from shrinkc.cli.main import cli as commands
from shrinkc.cli.options import Command

from .conftest import Cli

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"

# in an order in which one makes what another needs; all others are minutes of work, or need a simulator
EXECUTED = ("compile", "plan", "inspect", "diff", "export", "doctor", "run", "report", "recipes")


@pytest.mark.parametrize("name", commands.commands)
def test_the_help_shows_examples_that_can_be_parsed(cli: Cli, name: str) -> None:
    command = commands.commands[name]
    assert isinstance(command, Command) and command.examples
    lines = cli(name, "--help").out.splitlines()
    shown = lines[lines.index("Examples:") + 1 :]
    assert [line.strip() for line in shown] == [*command.examples]
    for line in command.examples:
        program, first, *arguments = shlex.split(line)
        assert (program, first) == ("shrinkc", name)
        with command.make_context(name, arguments) as context:
            assert isinstance(context, click.Context)


@pytest.mark.slow
def test_they_do_what_they_say(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: Callable[..., None]
) -> None:
    needs("cc", "make")
    shutil.copytree(STORIES, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    done = 0
    for name in EXECUTED:
        command = commands.commands[name]
        assert isinstance(command, Command)
        for line in command.examples:
            if (
                "gvsoc" in line
                or "--gguf" in line
                or (name == "export" and find_spec("onnx") is None)
            ):
                continue
            result = cli(*shlex.split(line)[1:])
            assert result.code == (64 if name == "diff" else 0), (line, result.err)
            done += 1
    assert done >= 11
    assert (tmp_path / "sweep.svg").is_file()
