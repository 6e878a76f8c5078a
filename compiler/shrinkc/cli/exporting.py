"""``shrinkc export``: models for the tools of others."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command
from shrinkc.core.errors import UsageError

_FORMS = "--onnx FILE, --gguf FILE, --gptq DIRECTORY, --hub OWNER/NAME"


@command(
    "export",
    "Write a model for other tools: llama.cpp, vLLM, ONNX, the hub.",
    "shrinkc export out/mine/02-gptq --gguf mine.gguf",
    "shrinkc export out --onnx model.onnx",
)
@click.argument("model", type=PATH)
@click.option("--gguf", type=PATH, help="Write a file for llama.cpp.  MODEL: a directory, a step.")
@click.option(
    "--gptq", type=PATH, help="Write a standard GPTQ checkpoint.  MODEL: a step after gptq."
)
@click.option("--hub", metavar="OWNER/NAME", help="Push MODEL, a step, to the Hugging Face hub.")
@click.option("--onnx", type=PATH, help="Write an ONNX graph.  MODEL: a compiled directory.")
@click.option(
    "--compact",
    is_flag=True,
    help="With --gguf: Q4_1 instead of Q5_0 for 4 bit with zero points, a tenth smaller, with rounded minima.",
)
@click.option("--private", is_flag=True, help="With --hub: a private repository, if it is new.")
@click.option("--dry-run", is_flag=True, help="With --hub: list the files and stop.")
def export_command(
    model: Path, gguf: Path | None, gptq: Path | None, hub: str | None, onnx: Path | None,
    compact: bool, private: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write MODEL for other tools, in the form of one option.

    --gguf keeps the integers of the layers and says if values differ.  --gptq keeps them too, with
    embedding and LM head in float16.  The graph of --onnx has exactly the same integers as the program.
    """
    from shrinkc.driver import exporting

    if sum(given is not None for given in (gguf, gptq, hub, onnx)) != 1:
        raise UsageError("export writes one form at a time.", f"give one of {_FORMS}.")
    if compact and gguf is None:
        raise UsageError("--compact belongs to --gguf.", "leave it out.")
    if (private or dry_run) and hub is None:
        raise UsageError("--private and --dry-run belong to --hub.", "leave them out.")
    console = Console()
    result: exporting.Result
    if gguf is not None:
        result = exporting.export_gguf(model, gguf, console, compact=compact)
    elif gptq is not None:
        result = exporting.export_gptq(model, gptq, console)
    elif hub is not None:
        result = exporting.push(model, hub, console, private=private, dry_run=dry_run)
    else:
        assert onnx is not None
        result = exporting.export_onnx(model, onnx, console)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())
