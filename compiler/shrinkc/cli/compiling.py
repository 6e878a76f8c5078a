"""``shrinkc compile``: a model as a C program with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command, model_options
from shrinkc.core.shell import quoted


@command(
    "compile",
    "Compile a model to a C program with its weights.",
    "shrinkc compile model -o out",
    "shrinkc compile model -o narrow --bits 4 --group-size 32 --context 128",
)
@model_options
@click.option("-o", "--output", type=PATH, required=True, help="The directory to make.")
@click.option("--force", is_flag=True, help="Replace a directory that shrinkc made.")
def compile_command(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Compile MODEL to a C program with its weights.

    MODEL is a Hugging Face directory, a GPTQModel directory, a GGUF file, or an id of the hub such as
    OWNER/NAME.
    """
    from shrinkc.driver.summary import summary

    console = Console()
    result = shrinkc.compile(output=output, force=force, reporter=console, **options)
    run = quoted("shrinkc", "run", output, "--on", result.prepared.target.runs_on[-1])
    for line in [
        *summary(result.prepared, console.verbose),
        "",
        f"wrote {output} ({result.files} files)",
        f"next: {run} --prompt 'Once upon a time'",
    ]:
        console.note(line)
    if as_json:
        print_json(result.to_json())
