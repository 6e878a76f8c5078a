"""``shrinkc franken``: comparison of layer configurations (layer passthrough)."""

from __future__ import annotations

from typing import Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import COUNT, FILE, FOLDER, SEED, TASK_HELP, command


@command(
    "franken",
    "Try a model with layers skipped or repeated.",
    "shrinkc franken model --layers 0-4 --layers 0-2,4 --prompt 'Once upon a time'",
)
@click.argument("model")
@click.option(
    "--layers",
    multiple=True,
    required=True,
    metavar="LAYERS",
    help="Layers to run, e.g. 0-11,14-29 or 0-7,8x3,9-29 (layer 8 three times). May be repeated.",
)
@click.option(
    "--name", multiple=True, help="Name of the configuration; one for each --layers, in order."
)
@click.option(
    "--prompt",
    default="Once upon a time",
    show_default=True,
    help="Text for the model to continue.",
)
@click.option(
    "--tokens", type=COUNT, default=48, show_default=True, help="Number of tokens to generate."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed for sampling.")
@click.option(
    "--text",
    type=FILE,
    metavar="FILE|hub",
    help="WikiText file to measure perplexity on; hub downloads it.",
)
@click.option(
    "--windows", type=COUNT, help="Number of windows of 512 tokens to measure. [default: all]"
)
@click.option("--task", multiple=True, metavar="NAME[=FILE]", help=TASK_HELP)
@click.option("--items", type=COUNT, help="Number of questions of each task. [default: all]")
@click.option(
    "--save",
    type=FOLDER,
    metavar="DIR",
    help="Save the model as a checkpoint; only with one --layers.",
)
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads for torch.")
@click.option("-o", "--output", type=FOLDER, help="Directory for the table, also as JSON.")
@click.option("--force", is_flag=True, help="Replace earlier results in that directory.")
def franken_command(as_json: bool, **options: Any) -> None:
    """Run MODEL with some layers skipped or repeated: sample text, perplexity, tasks, time."""
    from shrinkc.driver.franken import FrankenRequest, compare_layers

    console = Console()
    found = compare_layers(FrankenRequest(**options), console)
    try:
        found.write(console)
    finally:  # show measurements even if they cannot be written
        if as_json:
            print_json(found.result)
        else:
            write_text(found.table)
