"""``shrinkc compress``: from a model and a recipe to a directory with a step per stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import FILE, FOLDER, Device, command


@command(
    "compress",
    "Make a model smaller: prune, train, quantise.",
    "shrinkc compress model -o out --recipe quarter",
    "shrinkc compress model -o out --recipe quarter --fast --text self:160k --text train.txt",
)
@click.argument("model")
@click.option(
    "-o", "--output", type=FOLDER, required=True, help="Directory for the results of all steps."
)
@click.option(
    "--recipe",
    type=FILE,
    required=True,
    metavar="FILE|NAME",
    help="TOML file, or the name of a recipe that 'shrinkc recipes' lists.",
)
@click.option(
    "--text",
    "text",
    multiple=True,
    metavar="FILE|SOURCE",
    help="Text for calibration and training instead of the recipe's: a file, nltk:CORPUS, hub:DATASET or self:TOKENS. "
    "May be repeated.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Train less, as the recipe's table [fast] says; 'shrinkc recipes' names the loss.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change a value of the recipe, e.g. lora.rank=16. May be repeated.",
)
@click.option("--force", is_flag=True, help="Delete earlier steps and start over.")
@click.option(
    "--dry-run", is_flag=True, help="Check the recipe and estimate memory and time; change nothing."
)
@click.option(
    "--device", type=Device(), default="cpu", show_default=True, help="Device for torch, e.g. cuda."
)
def compress_command(model: str, output: Path, as_json: bool, **options: Any) -> None:
    """Make MODEL smaller by the steps of a recipe.

    MODEL is a Hugging Face directory, a GGUF file, or a model's id on the Hugging Face hub.  Every step
    writes a checkpoint that can be loaded.  After an interruption, the same command continues.
    """
    console = Console()
    result = shrinkc.compress(model, output, reporter=console, **options)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())
