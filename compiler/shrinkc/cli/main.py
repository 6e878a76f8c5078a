"""Entry point of the command line.  Commands are imported only when they run, so ``--help`` is fast."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path

import click

import shrinkc
from shrinkc.cli import stopping
from shrinkc.cli.commands import COMMANDS
from shrinkc.cli.console import (
    StandardOutput,
    drop_unwritten,
    error_text,
    is_terminal,
    print_json,
)
from shrinkc.core.errors import Interrupted, OutputError, ShrinkcError, UsageError
from shrinkc.core.output import output_error

DEFECT = 70


class DefectError(ShrinkcError, exit_code=DEFECT, title="defect"):
    """An unexpected exception: a defect of shrinkc.

    Report it with the output of ``shrinkc --debug COMMAND``.
    """


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(shrinkc.__version__, prog_name="shrinkc")
@click.option("--debug", is_flag=True, help="Print the Python traceback if the command fails.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Put a language model on a small chip: compress it, compile it to an integer-only C program, run
    the program and verify it.

    Start with 'shrinkc plan MODEL', which says whether a model fits.
    """
    if context.invoked_subcommand is None:
        # a script that forgot the command must fail
        _say(context.get_help())
        context.exit(UsageError.exit_code)


for _command in COMMANDS:
    cli.add_command(_command)


def run_cli(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    Every error is one paragraph on stderr, and with ``--json`` also the object on stdout, unless that
    has its object already.
    """
    debug = "--debug" in arguments
    out = StandardOutput(sys.stdout)
    answer = out if "--json" in arguments else None
    try:
        with redirect_stdout(out):
            return _invoke(arguments)
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        if stop.code >= 128:  # from a signal
            _say("shrinkc: terminated; nothing was left half-written.")
        return stop.code
    except BrokenPipeError:  # whoever read our output has enough
        return ShrinkcError.exit_code
    except Exception as error:
        return _failed(_refusal(error), debug, answer)
    except KeyboardInterrupt:
        stopped = Interrupted("stopped; nothing was left half-written.")
        return _failed(stopped, debug, answer)


def _refusal(error: Exception) -> ShrinkcError:
    """Return the error to report for an exception."""
    if isinstance(error, ShrinkcError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if not isinstance(error, OSError):
        return DefectError(
            f"{type(error).__name__}: {error} - this is a defect of shrinkc; "
            "'shrinkc --debug ...' shows where, please report it."
        )
    # a full disk or missing permissions outside an output, such as temporary files of a run
    if error.filename is not None:
        return output_error(Path(str(error.filename)), error)
    return OutputError(
        f"a file cannot be written: {error.strerror or error}.",
        f"the system does not say which one; scratch files go to {tempfile.gettempdir()}.",
    )


def _invoke(arguments: Sequence[str]) -> int:
    """Run a command.  ``cli.main`` would convert interrupts, ends of files and broken pipes, and write to
    stderr, which may be closed."""
    if os.environ.get("_SHRINKC_COMPLETE"):  # shell completion
        cli.main(list(arguments), "shrinkc")  # exits
    try:
        with cli.make_context("shrinkc", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return 0


def _failed(error: ShrinkcError, debug: bool, answer: StandardOutput | None) -> int:
    """Print the error, and as JSON if ``answer`` (stdout of ``--json``) has no object yet; return the exit code."""
    stopping.finish()
    if isinstance(error, Interrupted) and is_terminal(sys.stderr):
        _say("")  # the terminal has shown ^C
    if debug:
        _say(traceback.format_exc().rstrip())
    _say(error_text(error))
    if answer is not None and not answer.used:
        with suppress(OSError, OutputError), redirect_stdout(answer):
            print_json(error.to_json())
    return error.exit_code


def _say(text: str) -> None:
    with suppress(OSError):  # stderr is closed; the exit code still tells the error
        print(text, file=sys.stderr, flush=True)


def _usage(error: click.ClickException) -> ShrinkcError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "shrinkc"
    text = error.format_message()
    return UsageError(
        text if text.endswith((".", "?", ")")) else f"{text}.", f"see '{path} --help'."
    )


def main() -> None:
    """Run the ``shrinkc`` command."""
    stopping.install()
    if sys.stderr is None:  # the caller closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # generated text may have characters that the locale cannot encode
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = run_cli(sys.argv[1:])
    finally:
        stopping.finish()
        drop_unwritten(sys.stdout)
        drop_unwritten(sys.stderr)
    sys.exit(code)
