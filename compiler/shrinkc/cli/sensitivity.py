"""``shrinkc sensitivity``: cost of removing, narrowing and quantising each part of a model."""

from __future__ import annotations

import time
from typing import Any

import click

from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import COUNT, FILE, FOLDER, command


@command(
    "sensitivity",
    "Measure how much quality each part of a model gives.",
    "shrinkc sensitivity model --text train.txt -o sensitivity",
)
@click.argument("model")
@click.option(
    "--text",
    type=FILE,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Text file to measure on. May be repeated.",
)
@click.option(
    "--samples",
    type=COUNT,
    default=16,
    show_default=True,
    help="Number of windows of text to measure. Standard errors need at least 2.",
)
@click.option(
    "--length", type=click.IntRange(8), default=256, show_default=True, help="Tokens per window."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="Precision of the computation; float32 takes about 1.5 times as long.",
)
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads for torch.")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    help="Directory for results and picture, from which the command continues.",
)
def sensitivity_command(as_json: bool, **options: Any) -> None:
    """Measure how much quality is lost if a layer or matrix of MODEL is removed, narrowed or quantised."""
    from shrinkc.driver.sensitivity import (
        PICTURE,
        RESULT,
        SensitivityRequest,
        measure_sensitivity,
    )

    console, started = Console(), time.monotonic()
    request = SensitivityRequest(**options)
    measured = measure_sensitivity(request, console)
    try:
        measured.write()
    finally:  # show measurements even if they cannot be written
        if as_json:
            print_json(measured.to_json())
        else:
            write_text("\n".join(measured.lines()) + "\n")
    console.note(f"{time.monotonic() - started:.0f} s")
    if request.output is not None:
        console.note(f"{request.output}: {RESULT}, {PICTURE}")
