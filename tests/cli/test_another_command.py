"""A command is three files: one that no product has is added to a copy of the package by what it does, its options,
and its line among the commands; help, completion, JSON and refusals then know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.product import copy_with

COUNTING = '''"""How many parameters a model has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from shrinkc.importer import load_config
from shrinkc.model import matrix_shapes


@dataclass(frozen=True)
class Counted:
    """Parameters of the matrices."""

    model: str
    parameters: int

    def lines(self) -> list[str]:
        """For people."""
        return [f"{self.model}: {self.parameters:,} parameters"]

    def to_json(self) -> dict[str, object]:
        """For programs."""
        return asdict(self)


def count_parameters(model: Path) -> Counted:
    """Reads the configuration alone.  Raises what opening a model raises."""
    shapes = matrix_shapes(load_config(model))
    return Counted(model.name, sum(map(prod, shapes.values())))
'''

COMMAND = '''"""``shrinkc count``: how many parameters a model has."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import print_json
from shrinkc.cli.options import PATH, command


@command("count", "Count a model's parameters.", "shrinkc count model")
@click.argument("model", type=PATH)
def count_command(model: Path, as_json: bool) -> None:
    """Count the parameters of MODEL."""
    from shrinkc.driver.counting import count_parameters

    result = count_parameters(model)
    if as_json:
        print_json(result.to_json())
    for line in [] if as_json else result.lines():
        click.echo(line)
'''


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel carries, with two files more and one changed."""
    return copy_with(
        tmp_path_factory.mktemp("product"),
        {
            "compiler/shrinkc/driver/counting.py": COUNTING,
            "compiler/shrinkc/cli/counting.py": COMMAND,
        },
        "compiler/shrinkc/cli/commands.py",
        {
            "from shrinkc.cli.differing": "from shrinkc.cli.counting import count_command\nfrom shrinkc.cli.differing",
            "    compile_command, plan_command": "    count_command, compile_command, plan_command",
        },
        "count_command",
    )


def shrinkc(
    product: Path, *arguments: str, code: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shrinkc", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(product / "compiler"), **env},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_a_command_is_three_files(product: Path, model: Path) -> None:
    result = json.loads(shrinkc(product, "count", str(model), "--json").stdout)
    assert result["model"] == model.name and result["parameters"] > 9_000
    assert "  count " in shrinkc(product, "--help").stdout
    shown = shrinkc(product, "count", "--help").stdout
    assert "Count the parameters of MODEL." in shown and shown.rstrip().endswith(
        "shrinkc count model"
    )
    assert shrinkc(product, "count", str(product), code=10).stdout == ""
    words = shrinkc(
        product, _SHRINKC_COMPLETE="bash_complete", COMP_WORDS="shrinkc co", COMP_CWORD="1"
    ).stdout.split()
    assert "plain,count" in words
