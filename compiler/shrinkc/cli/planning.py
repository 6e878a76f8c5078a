"""``shrinkc plan``: whether a model fits, where, and how fast; of one set of options or of many."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.compiling import compile_command
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.options import PATH, Command, command, model_options, speed_options
from shrinkc.core.shell import quoted

_AXIS = re.compile(r"[a-z0-9-]+=.*", re.DOTALL)


class PlanCommand(Command):
    """Command that accepts several axes after one ``--sweep``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        out: list[str] = []
        for word in args:
            if len(out) > 1 and out[-2] == "--sweep" and _AXIS.fullmatch(word):
                out.append("--sweep")
            out.append(word)
        return super().parse_args(ctx, out)


@command(
    "plan",
    "Check whether a model fits a chip, and estimate its speed.",
    "shrinkc plan model --bits 4 --context 128",
    "shrinkc plan model/config.json --sweep bits=2,4,8 context=64,256 --picture sweep.svg",
    cls=PlanCommand,
)
@model_options
@speed_options
@click.option(
    "--sweep", "axes", multiple=True, metavar="NAME=V1,V2,...",
    help="Plan all combinations of values of bits, embedding-bits, group-size (channel: no groups), context, "
    "l1, ram, flash, hyperram, target. May be repeated.",
)  # fmt: skip
@click.option(
    "--picture",
    type=PATH,
    metavar="FILE",
    help="Draw the memory map, or the sweep, to this SVG file.",
)
@click.pass_context
def plan_command(
    ctx: click.Context,
    /,
    axes: tuple[str, ...],
    picture: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check whether MODEL fits a chip, place it in the memories, and estimate its speed.

    MODEL may be only a config.json, because weights are not read; or a model's id on the Hugging Face hub.
    Energy is not estimated, because nothing was measured on a chip.
    """
    if picture is not None:
        from shrinkc.core.output import check_file

        check_file(picture)
    if axes:
        from shrinkc.cli import sweeping

        sweeping.run(ctx, axes, picture, as_json, options)
        return
    console = Console()
    with console.stage("planning"):
        planned = shrinkc.plan(**options)
    if not planned.fits:
        raise planned.error
    speed = planned.speed
    if picture is not None:
        from shrinkc.core.output import write_file

        write_file(picture, planned.picture())
    if as_json:
        print_json({**planned.to_json(), "speed": None if speed is None else speed.to_json()})
        return
    from shrinkc.driver.summary import summary

    for line in summary(planned, console.verbose):
        click.echo(line)
    console.note("")
    console.note(f"next: {_compile_command(ctx)}")


def _compile_command(ctx: click.Context) -> str:
    """`shrinkc compile` with the options of this command that it takes."""
    kept = {param.name for param in compile_command.params}
    words = [
        part
        for param in ctx.command.params
        if param.name in kept
        and param.name in ctx.params
        and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
        for part in _words(param, ctx.params[param.name])
    ]
    return quoted("shrinkc", "compile", *words, "-o", "out")


def _words(param: click.Parameter, value: Any) -> list[str]:
    """Return the command-line words for this parameter and value."""
    if isinstance(param, click.Argument):
        return [str(value)]
    if value is True:
        return [param.opts[0]]
    return [param.opts[0], str(value)]
