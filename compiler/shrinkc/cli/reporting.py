"""``shrinkc report``: a page that says everything of a compiled directory or a compression run."""

from __future__ import annotations

from pathlib import Path

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command, speed_options


@command(
    "report",
    "Write a page about a compiled directory or a run.",
    "shrinkc report out",
    "shrinkc report out -o page.html --position 100 --clock 350",
)
@click.argument("directory", type=PATH)
@click.option(
    "-o", "--output", type=PATH, metavar="FILE",
    help="The page to write. [default: report.html in DIRECTORY]",
)  # fmt: skip
@speed_options
@click.option(
    "--run", "run_file", type=PATH, metavar="FILE",
    help="A file with the output of 'run --json'. [default: the last run with --profile]",
)  # fmt: skip
@click.option(
    "--eval", "evals", type=PATH, multiple=True, metavar="FILE",
    help="A file from 'eval -o FILE', in addition to those in DIRECTORY. May be repeated.",
)  # fmt: skip
def report_command(
    directory: Path,
    output: Path | None,
    position: int | None,
    clock: float | None,
    run_file: Path | None,
    evals: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write an HTML page about DIRECTORY, and report.json with the same facts.

    DIRECTORY was made by compile (memory map, weights, cycles, timeline, roofline, accuracy) or by
    compress (bytes against quality, steps, sensitivities, samples).
    """
    console = Console()
    result = shrinkc.write_report(
        directory, output, position=position, clock=clock, run=run_file, evals=evals,
        reporter=console,
    )  # fmt: skip
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())
