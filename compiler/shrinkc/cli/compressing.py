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
    "Make a model smaller by a recipe.",
    "shrinkc compress model -o small --recipe small --set calibration.text=train.txt",
)
@click.argument("model")
@click.option("-o", "--output", type=FOLDER, required=True, help="The run's directory.")
@click.option(
    "--recipe",
    type=FILE,
    required=True,
    metavar="FILE|NAME",
    help="A TOML file, or a shipped recipe, see 'shrinkc recipes'.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change the recipe, e.g. lora.rank=16. May be repeated.",
)
@click.option("--force", is_flag=True, help="Start over: removes the steps that are there.")
@click.option("--dry-run", is_flag=True, help="Check everything, estimate, and stop.")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Device of torch.")
def compress_command(model: str, output: Path, as_json: bool, **options: Any) -> None:
    """Compress MODEL: a Hugging Face directory, a .gguf file, or an id of the hub.

    Every stage of the recipe leaves a directory that loads.  The same command continues a run
    that was interrupted.
    """
    console = Console()
    result = shrinkc.compress(model, output, reporter=console, **options)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())
