"""The commands and their options.  Each imports its work only when it runs: ``--help`` is instant."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, error_text, print_json
from shrinkc.cli.units import parse_size
from shrinkc.core.errors import Interrupted, ShrinkcError, UsageError
from shrinkc.core.output import output_error

DEFECT = 70
TERMINATED = 143  # what a shell reports of a process that SIGTERM ended

PATH = click.Path(path_type=Path)


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


def _model_options(command: Any) -> Any:
    """What decides a program: the same for ``plan`` and ``compile``."""
    options = (
        click.argument("model", type=PATH),
        click.option(
            "--target", type=click.Choice(["siracusa", "rv32", "host"]), default="siracusa",
            show_default=True, help="What the program is for.",
        ),
        click.option(
            "--bits", type=click.Choice(["8", "4"]), default="8", show_default=True,
            help="Bits per weight of the layers.",
        ),
        click.option("--group", type=int, help="Weights that share a scale. [default: a whole row]"),
        click.option(
            "--short-last-group", is_flag=True,
            help="Let the last group of a row be shorter where the size does not divide.",
        ),
        click.option("--asymmetric", is_flag=True, help="Zero points beside the scales."),
        click.option(
            "--head-bits", type=click.Choice(["8", "4"]), default="8", show_default=True,
            help="Bits per weight of embedding and head.",
        ),
        click.option(
            "--context", type=int,
            help="Positions that prompt and answer may take. [default: the model's, at most 256]",
        ),
        click.option("--l1", type=_Size(), help="L1 memory to use, e.g. 128KiB. [default: all]"),
        click.option("--adapter", type=PATH, help="A PEFT LoRA directory, kept as a side path."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _json_option(command: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        command
    )


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(shrinkc.__version__, prog_name="shrinkc")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile a LLaMA to an integer-only C program, run it, and prove every integer of it."""


@cli.command("compile", short_help="Compile a model to a C program with its weights.")
@_model_options
@click.option("-o", "--output", type=PATH, required=True, help="The directory to make.")
@click.option("--force", is_flag=True, help="Replace a directory that shrinkc made.")
@_json_option
def compile_command(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Compile the Hugging Face directory MODEL to a C program with its weights."""
    from shrinkc.cli import compiling, planning

    console = Console()
    request = planning.PlanRequest.from_options(**options)
    result = compiling.compile_model(request, output, force=force, reporter=console)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())


@cli.command("plan", short_help="Say whether a model fits, and where.")
@_model_options
@_json_option
def plan_command(as_json: bool, **options: Any) -> None:
    """Say whether MODEL fits, and where everything would lie, without reading its weights."""
    from shrinkc.cli import planning

    prepared = planning.prepare(planning.PlanRequest.from_options(**options))
    if as_json:
        print_json(prepared.to_json())
    else:
        for line in prepared.lines():
            click.echo(line)


@cli.command("run", short_help="Build, run and verify a compiled program.")
@click.argument("directory", type=PATH)
@click.option(
    "--on",
    "machine",
    type=click.Choice(["host", "qemu", "gvsoc"]),
    default="host",
    show_default=True,
    help="Where the program runs.",
)
@click.option("--prompt", help="The text to go on from. [default: none]")
@click.option("--prompt-ids", help="The prompt as token ids, e.g. 1,403,407.")
@click.option(
    "--tokens", type=int, help="Most new tokens. [default: 64, or what the context leaves]"
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampler.")
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens that have this probability together.",
)
@click.option("--ignore-eos", is_flag=True, help="Go on after an end token.")
@click.option("--no-verify", is_flag=True, help="Do not compare with the interpreter.")
@click.option(
    "--make",
    "make_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the directory's Makefile, e.g. SAN=1. May be repeated.",
)
@click.option("--timeout", type=float, help="Seconds. [default: 600; on gvsoc 7200]")
@_json_option
def run_command(directory: Path, as_json: bool, **options: Any) -> None:
    """Build and run the compiled DIRECTORY and compare every integer with the interpreter's."""
    from shrinkc.cli import running

    request = running.RunRequest.from_options(**options)
    running.run(directory, request, env=dict(os.environ), console=Console(), as_json=as_json)


@cli.command("convert", short_help="llama2.c checkpoint to Hugging Face directory.")
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


@cli.command("doctor", short_help="List the outside programs and fixes.")
@_json_option
def doctor_command(as_json: bool) -> None:
    """List the outside programs: found, or missing and the command that fixes it."""
    from shrinkc.cli import doctor

    doctor.report(dict(os.environ), as_json=as_json)


def run_cli(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; every error is one paragraph on stderr."""
    debug = "--debug" in arguments
    try:
        result = cli.main(list(arguments), prog_name="shrinkc", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ShrinkcError as error:
        return _failed(error, debug)
    except click.ClickException as error:
        return _failed(_usage(error), debug)
    except (click.Abort, KeyboardInterrupt):
        return _failed(Interrupted("stopped; nothing was left half-written."), debug)
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code >= 128:  # from _terminate
            print("shrinkc: terminated; nothing was left half-written.", file=sys.stderr)
            return stop.code
        raise
    except BrokenPipeError:
        # whoever read our output has enough; without this the interpreter complains at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # a full disk or missing rights outside of an output directory: scratch files of a run
        return _failed(output_error(Path(error.filename or Path.cwd()), error), debug)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(
            f"shrinkc: {type(error).__name__}: {error} - this is a defect of shrinkc; "
            "'shrinkc --debug ...' shows where, please report it.",
            file=sys.stderr,
        )
        return DEFECT


def _failed(error: ShrinkcError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(error_text(error), file=sys.stderr)
    return error.exit_code


def _usage(error: click.ClickException) -> ShrinkcError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "shrinkc"
    text = error.format_message()
    return UsageError(
        text if text.endswith((".", "?", ")")) else f"{text}.", f"see '{path} --help'."
    )


def _terminate(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP end like Ctrl-C, so that nothing is left half-written."""
    raise SystemExit(TERMINATED if number == signal.SIGTERM else 128 + number)


def main() -> None:
    """The ``shrinkc`` command."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    for stream in (sys.stdout, sys.stderr):
        # a story may hold what the locale cannot show
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(run_cli(sys.argv[1:]))
