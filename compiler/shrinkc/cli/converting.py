"""``shrinkc convert``: a llama2.c checkpoint becomes a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import click

from shrinkc.cli.console import Console
from shrinkc.cli.options import PATH, Command


@click.command(
    "convert",
    cls=Command,
    short_help="llama2.c checkpoint to Hugging Face directory.",
    examples=("shrinkc convert stories260K.bin tok512.bin -o model",),
)
@click.argument("checkpoint", type=PATH)
@click.argument("tokenizer", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The directory to make.")
def convert_command(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Turn a llama2.c CHECKPOINT.bin and its TOKENIZER.bin into a Hugging Face directory."""
    console = Console()
    with console.stage("converting"):
        from shrinkc.importer import convert_llama2c

        convert_llama2c(checkpoint, tokenizer, output)
    console.note(f"{output}: config.json, model.safetensors, tokenizer.json")
