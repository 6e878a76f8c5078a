"""Options that commands share, and their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from shrinkc.build.make import OPTIONS
from shrinkc.cli.console import VERBOSITY
from shrinkc.core.errors import UsageError
from shrinkc.core.parsing import parse_json
from shrinkc.core.shell import is_text, printable
from shrinkc.core.words import parse_size
from shrinkc.storage import KV_BITS, WIDEST, WIDTHS
from shrinkc.targets import DEFAULT, MACHINES, TARGETS

PATH = click.Path(path_type=Path)  # of any bytes
FOLDER = click.Path(path_type=Path)  # an output of torch's libraries, which accept only UTF-8
COUNT = click.IntRange(1)
SEED = click.IntRange(0, 2**32 - 1)
TASK_HELP = "Task of lm-evaluation-harness, or its YAML file; FILE holds its data. May be repeated."
FILE = click.Path()  # of any bytes, or a keyword: hub, or the name of a shipped recipe


def _verbosity(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if not given:
        return
    if VERBOSITY in ctx.meta:
        raise UsageError("--quiet and --verbose cannot be used together.", "give one of them.")
    ctx.meta[VERBOSITY] = -1 if param.name == "quiet" else 1


class Command(click.Command):
    """A command with the options that all have, whose texts are UTF-8: other bytes that the shell passed on are
    refused.

    ``examples`` are command lines that its help shows.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["--json", "as_json"], is_flag=True, help="Print the result as one JSON object."),
            click.Option(
                ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_verbosity,
                help="Print only results and errors.",
            ),
            click.Option(
                ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_verbosity,
                help="Print each step, and how long it took.",
            ),
        ]  # fmt: skip
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on its own line for copying."""
        if not self.examples:
            return
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for param in self.params:
            if param.type not in (click.STRING, FOLDER):
                continue
            given = ctx.params.get(param.name or "")
            for value in given if isinstance(given, tuple) else (given,):
                if value is not None and not is_text(str(value)):
                    message = f"'{printable(str(value))}' is not UTF-8 text."
                    raise click.BadParameter(message, ctx, param)
        return rest


def command(
    name: str, short_help: str, *examples: str, cls: type[Command] = Command
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a command of a function with an argument ``as_json``."""
    return click.command(name, cls=cls, short_help=short_help, examples=examples)


class Size(click.ParamType):
    """Size in bytes, such as 128KiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class Tools(click.ParamType):
    """JSON file with a list of functions that the model may call."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[dict[str, Any]]:
        try:
            tools = parse_json(Path(value).read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--tools {value} cannot be read: {error}.",
                "give a JSON file with a list of tools.",
            ) from error
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise UsageError(
                f"--tools {value} is no list of JSON objects.",
                'give a list such as [{"type": "function", "function": {"name": "...", "description": "...", '
                '"parameters": {...}}}].',
            )
        return tools


class Device(click.ParamType):
    """Device of torch, checked before a command begins its work."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from shrinkc.checkpoints import check_device

        check_device(str(value))
        return str(value)


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else int(value)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator for several options, in the order of the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_options = together(
    click.argument("model", type=PATH),
    click.option(
        "--target", type=click.Choice(list(TARGETS)), default=DEFAULT.name,
        show_default=True, help="The chip or machine that the program is for.",
    ),
    click.option(
        "--bits", type=click.Choice([str(w) for w in WIDTHS]), callback=_number,
        help=f"Bits per weight of the layers. [default: {WIDEST}; those of a quantised checkpoint]",
    ),
    click.option(
        "--group-size", type=int, metavar="N",
        help="Weights that share one scale. [default: one scale per output channel]",
    ),
    click.option(
        "--short-last-group", is_flag=True,
        help="Allow a smaller last group where the group size does not divide the inputs.",
    ),
    click.option("--asymmetric", is_flag=True, help="Quantise asymmetrically, with a zero point for each scale."),
    click.option(
        "--embedding-bits", type=click.Choice([str(w) for w in WIDTHS]), callback=_number,
        help=f"Bits per weight of the embedding and the LM head. [default: {WIDEST}; those of a quantised checkpoint]",
    ),
    click.option(
        "--kv-bits", type=click.Choice([str(w) for w in KV_BITS]), callback=_number, default=str(KV_BITS[0]),
        show_default=True, help="Bits of keys and values in the KV cache.",
    ),
    click.option(
        "--context", type=int, metavar="N",
        help="Most tokens of prompt and answer together. [default: the model's limit, at most 256]",
    ),
    click.option(
        "--fit", is_flag=True,
        help="Choose the width of every matrix so that the model fits with the least estimated loss. Of --bits, "
        "--embedding-bits, --group-size and --asymmetric, those that you give stay.",
    ),
    click.option(
        "--sensitivity", type=PATH, metavar="FILE",
        help="With --fit: sensitivity.json of 'shrinkc sensitivity', or its directory, for measured losses.",
    ),
    click.option("--l1", type=Size(), help="L1 memory to use, such as 128KiB. [default: all]"),
    click.option("--ram", type=Size(), help="RAM of a board, with --target rv32, such as 520KiB."),
    click.option(
        "--flash", type=Size(),
        help="Flash of the board: mapped flash with --target rv32, such as 4MiB; else off-chip flash. "
        "[default: 512MiB off-chip]",
    ),
    click.option("--hyperram", type=Size(), help="HyperRAM of the board, such as 8MiB. [default: 64MiB]"),
    click.option(
        "--code", metavar="MEMORY",
        help=f"Memory for the code of decode steps, on {DEFAULT.name}: {' or '.join(DEFAULT.code)}. "
        f"[default: {DEFAULT.code[0]}]",
    ),
    click.option("--adapter", type=PATH, help="A PEFT LoRA directory to compile as a low-rank adapter."),
    click.option(
        "--engines", metavar="LIST",
        help="Engines that may multiply matrices, such as "
        f"{','.join(DEFAULT.engines[:2])}. [default: all]",
    ),
)  # fmt: skip
"""Options of ``plan`` and ``compile`` that affect the program."""


def run_options(default_tokens: str, timed: str) -> Callable[[Any], Any]:
    """Return the options for running and sampling that ``run`` and ``chat`` share.  ``default_tokens`` is in the help
    of ``--tokens``, ``timed`` in that of ``--timeout``."""
    return together(
        click.option(
            "--on", type=click.Choice(MACHINES), default="host", show_default=True,
            help="Machine that runs the program: this computer (host) or a simulator.",
        ),
        click.option(
            "--tools", type=Tools(), metavar="FILE",
            help="JSON file with functions that the model may call, for its chat template.",
        ),
        click.option(
            "-n", "--tokens", type=int, metavar="N",
            help=f"Most tokens to generate. [default: {default_tokens}]",
        ),
        click.option(
            "--temperature", type=float, default=0.0, show_default=True,
            help="Randomness of the text; 0 always takes the most probable token.",
        ),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True,
            help="Sample only from the most probable tokens, up to this total probability.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed for sampling."),
        click.option(
            "--prompt-lookup", type=int, metavar="N",
            help="Speed up repetitive text: guess 1 to 8 tokens from earlier text; needs temperature 0. [default: off]",
        ),
        click.option(
            "--make", "make_options", multiple=True, metavar="NAME=VALUE",
            help="Set a variable of the program's Makefile, such as SAN=1. May be repeated.",
        ),
        click.option(
            "--timeout", type=float, metavar="SECONDS",
            help=f"Longest time for {timed}. [default: 600; on gvsoc 7200]",
        ),
    )  # fmt: skip


def make_variables(values: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--make`` by name.  Raises UsageError for one without ``=``."""
    out = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not separator:
            raise UsageError(f"--make {text} is not possible.", f"allowed: {'=, '.join(OPTIONS)}=.")
        out[name] = value
    return out


speed_options = together(
    click.option(
        "--position", type=int, metavar="N",
        help="Cached tokens assumed for the decode estimate. [default: 64, or what fits]",
    ),
    click.option(
        "--clock", type=float, metavar="MHZ",
        help="Clock of the cluster, for tokens per second. [default: 72, the simulator's]",
    ),
)  # fmt: skip
"""Options of speed estimates."""
