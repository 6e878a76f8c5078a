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
    "Compile a model to an integer-only C program.",
    "shrinkc compile model -o out",
    "shrinkc compile model -o narrow --bits 4 --group-size 32 --context 128",
)
@model_options
@click.option(
    "-o", "--output", type=PATH, required=True, help="Directory to create for the program."
)
@click.option("--force", is_flag=True, help="Replace the directory if shrinkc created it.")
def compile_command(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Compile MODEL to an integer-only C program with its weights.

    MODEL is a directory with a Hugging Face or GPTQ checkpoint, a GGUF file, or the id OWNER/NAME of a
    model on the Hugging Face hub.
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
