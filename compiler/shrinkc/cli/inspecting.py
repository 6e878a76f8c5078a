"""``shrinkc inspect``: what something is, and where its bytes go."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import UsageError
from shrinkc.core.shell import printable


@command(
    "inspect",
    "Show what a file or directory holds.",
    "shrinkc inspect out",
    "shrinkc inspect model",
    "shrinkc inspect --supported",
)
@click.argument("path", type=PATH, required=False)
@click.option("--supported", is_flag=True, help="List what can be compiled; without PATH.")
def inspect_command(path: Path | None, supported: bool, as_json: bool) -> None:
    """Show what PATH is: shapes, bits, operations, and what takes how many bytes.

    PATH is a checkpoint's directory, a config.json, a GGUF file, a compiled directory, its
    ir.safetensors, or the directory of a compression run.
    """
    if supported == (path is not None):
        raise UsageError(
            "inspect takes one thing to look at.", "give a PATH, or --supported without one."
        )
    if path is None:
        from shrinkc.driver.supported import supported as tables

        found = tables()
    else:
        from shrinkc.driver.inspecting import inspect

        with Console().stage("reading"):
            found = inspect(path)
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines():
        click.echo(printable(line))
