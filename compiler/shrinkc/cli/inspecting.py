"""``shrinkc inspect``: kind, contents and sizes of a file or directory."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import UsageError
from shrinkc.core.shell import printable


@command(
    "inspect",
    "Show what is in a model or a result.",
    "shrinkc inspect out",
    "shrinkc inspect model",
    "shrinkc inspect --supported",
)
@click.argument("path", type=PATH, required=False)
@click.option(
    "--supported", is_flag=True, help="List the models, formats and targets that shrinkc supports."
)
def inspect_command(path: Path | None, supported: bool, as_json: bool) -> None:
    """Show what PATH is: shapes, bits, operations and sizes.

    PATH is a directory with a checkpoint, a config.json, a GGUF file, a directory that compile or compress
    created, or the ir.safetensors of a compiled model.
    """
    if supported == (path is not None):
        raise UsageError("inspect needs a PATH or --supported.", "give one of them.")
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
