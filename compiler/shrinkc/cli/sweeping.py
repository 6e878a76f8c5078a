"""``shrinkc plan --sweep``: many plans as a table, JSON or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shrinkc.cli.console import Console, print_json
from shrinkc.core.errors import DoesNotFit, UsageError
from shrinkc.core.output import write_file
from shrinkc.driver.sweeping import AXES, Value, sweep


def run(
    ctx: click.Context,
    texts: tuple[str, ...],
    picture: Path | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    """Plan every combination of the axes in ``texts``.  Raises DoesNotFit if none fits."""
    axes = _axes(ctx, texts)
    for name in axes:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} and --sweep {name.replace('_', '-')}= cannot be used together.",
                "leave one of them out.",
            )
    found = sweep(axes, options, Console())
    if picture is not None:
        write_file(picture, found.picture())
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines():
            click.echo(line)
    if not found.fits:
        raise DoesNotFit(
            f"{found.model}: none of {len(found.points)} combinations fits.",
            "run 'shrinkc plan' with the options of one combination to see which changes would make it fit.",
        )


def _axes(ctx: click.Context, texts: tuple[str, ...]) -> dict[str, list[Value]]:
    """Return option -> values of texts such as "bits=2,3,4,8".  Raises UsageError for an invalid text."""
    allowed = f"allowed: {', '.join(axis.replace('_', '-') for axis in AXES)}."
    axes: dict[str, list[Value]] = {}
    for text in texts:
        written, separator, words = text.partition("=")
        name = written.replace("-", "_")
        if not separator or name not in AXES:
            raise UsageError(
                f"--sweep {text} does not name an option that can be swept.",
                f"write for example bits=2,4,8; {allowed}",
            )
        if name in axes:
            raise UsageError(f"--sweep {written}= is given twice.", "give its values once.")
        param = next(p for p in ctx.command.params if p.name == name)
        values = [_value(ctx, param, word.strip()) for word in words.split(",")]
        axes[name] = list(dict.fromkeys(values))
    return axes


def _value(ctx: click.Context, param: click.Parameter, word: str) -> Value:
    """Convert a word like the option does; "channel" means per-channel (group size None)."""
    if param.name == "group_size" and word == "channel":
        return None
    value: Value = param.process_value(ctx, word)
    return value
