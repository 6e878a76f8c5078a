"""``shrinkc diff``: differences between two compiled directories or two ``--json`` outputs."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import Different, UsageError
from shrinkc.core.shell import printable


@command(
    "diff",
    "Compare two compiled models.",
    "shrinkc diff out narrow",
)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--prompt",
    default="Once upon a time",
    show_default=True,
    help="Prompt that both models are given.",
)
@click.option(
    "--positions", type=int, default=8, show_default=True,
    help="Most tokens to compare: the prompt, continued by A.",
)  # fmt: skip
def diff_command(a: Path, b: Path, prompt: str, positions: int, as_json: bool) -> None:
    """Compare options, sizes, plan and code of A and B, and find the first integer that differs.

    A and B are compiled directories, or files with the --json output of two runs or plans.
    The exit code is 0 if they are equal and 64 if they differ.
    """
    from shrinkc.driver.differing import diff_directories, diff_objects

    if positions < 1:
        raise UsageError(f"--positions {positions} is not possible.", "allowed: 1 and more.")
    if a.is_dir() != b.is_dir():
        folder, file = (a, b) if a.is_dir() else (b, a)
        raise UsageError(
            f"{printable(str(folder))} is a directory, but {printable(str(file))} is not.",
            "give two directories made by 'shrinkc compile', or two files with the output of --json.",
        )
    found = (
        diff_directories(a, b, prompt, positions, Console()) if a.is_dir() else diff_objects(a, b)
    )
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines():
            click.echo(printable(line))
    if found.tables:
        kinds = ", ".join(title.replace("_", " ") for title in found.tables)
        raise Different(f"{printable(str(a))} and {printable(str(b))} differ in: {kinds}.")
