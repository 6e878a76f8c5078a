"""``shrinkc report``: HTML page about a compiled directory or a compression run."""

from __future__ import annotations

from pathlib import Path

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, command, speed_options


@command(
    "report",
    "Write an HTML page about results of compile or compress.",
    "shrinkc report out",
    "shrinkc report out -o page.html --position 100 --clock 350",
)
@click.argument("directory", type=PATH)
@click.option(
    "-o", "--output", type=PATH, metavar="FILE",
    help="Page to write. [default: report.html in DIRECTORY]",
)  # fmt: skip
@speed_options
@click.option(
    "--run", "run_file", type=PATH, metavar="FILE",
    help="Output of 'shrinkc run --json' to show. [default: the last run with --profile]",
)  # fmt: skip
@click.option(
    "--eval", "evals", type=PATH, multiple=True, metavar="FILE",
    help="Output of 'shrinkc eval -o' to show, besides those in DIRECTORY. May be repeated.",
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
    """Write an HTML page about DIRECTORY, and the same facts to report.json.

    For a compiled model the page shows memories, weights, cycles, timeline, roofline and accuracy.  For the
    results of 'compress' it shows sizes, quality, steps, sensitivities and sample texts.
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
