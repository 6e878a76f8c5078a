"""The commands and their options.  Each imports its work only when it runs: ``--help`` is instant."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli import stopping
from shrinkc.cli.chatting import chat_command
from shrinkc.cli.console import (
    Console,
    StandardOutput,
    drop_unwritten,
    error_text,
    is_terminal,
    print_json,
)
from shrinkc.cli.converting import convert_command
from shrinkc.cli.differing import diff_command
from shrinkc.cli.exporting import export_command
from shrinkc.cli.inspecting import inspect_command
from shrinkc.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    PATH,
    SEED,
    Device,
    Group,
    json_option,
    model_options,
)
from shrinkc.cli.planning import plan_command
from shrinkc.cli.recipes import recipes_command
from shrinkc.cli.reporting import report_command
from shrinkc.cli.telling import run_command
from shrinkc.core.errors import Interrupted, OutputError, ShrinkcError, UsageError
from shrinkc.core.output import output_error

DEFECT = 70


class DefectError(ShrinkcError):
    """Any exception that is no refusal."""

    exit_code = DEFECT
    title = "defect"


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(shrinkc.__version__, prog_name="shrinkc")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Compile a LLaMA to an integer-only C program, run it, and prove every integer of it."""
    if context.invoked_subcommand is None:
        # a script that lost its command must not pass for one that did something
        _say(context.get_help())
        context.exit(UsageError.exit_code)


@cli.command(
    "compile",
    short_help="Compile a model to a C program with its weights.",
    examples=(
        "shrinkc compile model -o out",
        "shrinkc compile model -o narrow --bits 4 --group 32 --context 128",
    ),
)
@model_options
@click.option("-o", "--output", type=PATH, required=True, help="The directory to make.")
@click.option("--force", is_flag=True, help="Replace a directory that shrinkc made.")
@json_option
def compile_command(output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Compile MODEL to a C program with its weights.

    MODEL is a Hugging Face directory, a GPTQModel directory, a GGUF file, or an id of the hub such as
    OWNER/NAME.
    """
    console = Console()
    result = shrinkc.compile(output=output, force=force, reporter=console, **options)
    for line in result.lines():
        console.note(line)
    if as_json:
        print_json(result.to_json())


@cli.command(
    "compress",
    short_help="Make a model smaller by a recipe.",
    examples=("shrinkc compress model -o small --recipe small --set calibration.text=train.txt",),
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
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Of torch.")
@json_option
def compress_command(model: str, recipe: str, as_json: bool, **options: Any) -> None:
    """Compress MODEL: a Hugging Face directory, a .gguf file, or an id of the hub.

    Every stage of the recipe leaves a directory that loads.  The same command continues a run
    that was interrupted.
    """
    from shrinkc.cli import compressing

    compressing.run(model, recipe=recipe, as_json=as_json, **options)


@cli.command(
    "eval",
    short_help="Measure a float, quantised or compiled model.",
    examples=(
        "shrinkc eval out --text wiki.test.raw --windows 4",
        "shrinkc eval out --base model --text wiki.test.raw --windows 16",
        "shrinkc eval model --hellaswag hub --hellaswag-items 200",
    ),
)
@click.argument("model", type=FILE)
@click.option("--text", type=FILE, metavar="FILE|hub", help="WikiText raw file, for perplexity.")
@click.option(
    "--protocol",
    type=click.Choice([f"wikitext{n}" for n in (64, 128, 256, 512, 2048)]),
    help="How the text is cut. [default: wikitext512, or what a shorter context holds]",
)
@click.option("--windows", default="all", show_default=True, help="Windows of text: N or all.")
@click.option(
    "--base",
    type=FILE,
    metavar="MODEL",
    help="What MODEL was made from: how far its predictions of the text are from that one's.",
)
@click.option("--trivia", type=FILE, metavar="FILE|hub", help="TriviaQA questions, JSON lines.")
@click.option("--trivia-items", type=int, help="Questions to ask. [default: all]")
@click.option(
    "--hellaswag", type=FILE, metavar="FILE|hub", help="HellaSwag tasks, .txt, .bz2 or JSON lines."
)
@click.option("--hellaswag-items", type=int, help="Tasks to do. [default: all]")
@click.option("--sample", multiple=True, metavar="TEXT", help="A text to go on from; repeatable.")
@click.option("--chat", is_flag=True, help="The samples are messages, in the chat template.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of a float model's weights and sums. [default: float32]",
)
@click.option(
    "--kv-bits",
    type=int,
    help="Of a float model's cached keys and values, 2 to 8. [default: as they are]",
)
@click.option("--batch", type=int, help="Sequences at a time. [default: 8]")
@click.option(
    "--threads", type=int, help="Of torch; results differ in the last digits. [default: by size]"
)
@click.option("--device", type=Device(), help="Of torch. [default: cpu]")
@click.option(
    "--engine",
    type=click.Choice(["host", "interpreter"]),
    help="What runs a compiled directory. [default: host]",
)
@click.option("-o", "--output", type=PATH, help="Also write the report as JSON to this file.")
@click.option(
    "--resume",
    type=PATH,
    metavar="FILE",
    help="Keeps what was scored until the end, to go on from. [default: OUTPUT.resume]",
)
@json_option
def eval_command(output: Path | None, as_json: bool, **options: Any) -> None:
    """Measure MODEL: a directory (float, GPTQ, compiled), a .gguf file, or an id of the hub."""
    from shrinkc.cli import evaluating

    evaluating.run(
        output=output, env=dict(os.environ), console=Console(), as_json=as_json, **options
    )


@cli.command(
    "explore",
    short_help="Search recipes: quality against bytes.",
    examples=("shrinkc explore model --recipe small --trials 20 -o search",),
)
@click.argument("model")
@click.option(
    "--recipe",
    type=FILE,
    required=True,
    metavar="FILE|NAME",
    help="What is searched around; its table [explore] has the ranges.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Change the recipe of all trials, e.g. evaluate.windows=8. May be repeated.",
)
@click.option("--space", type=PATH, help="A TOML file with the ranges, instead of [explore].")
@click.option("--trials", type=COUNT, required=True, help="How many more.")
@click.option("--timeout", type=float, help="Seconds after which no trial begins.")
@click.option(
    "--storage", metavar="URL", help="Of an Optuna study. [default: sqlite, OUTPUT/study.db]"
)
@click.option("--study", default="shrinkc", show_default=True, help="The study's name.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the search.")
@click.option(
    "--reference",
    type=PATH,
    multiple=True,
    metavar="JSON",
    help="Configurations to mark: a run.json, or a list. May be repeated.",
)
@click.option("--keep-all", is_flag=True, help="Keep the models that are not on the front too.")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Of torch.")
@click.option("-o", "--output", type=FOLDER, required=True, help="The search's directory.")
@json_option
def explore_command(as_json: bool, **options: Any) -> None:
    """Search for recipes that make MODEL small and keep it good.

    The same command goes on with the study; several processes may work on one.
    """
    from shrinkc.cli import exploring

    exploring.run(exploring.ExploreRequest(**options), console=Console(), as_json=as_json)


@cli.command(
    "sensitivity",
    short_help="Say what each part of a model is worth.",
    examples=("shrinkc sensitivity model --text train.txt -o sensitivity",),
)
@click.argument("model")
@click.option(
    "--text",
    type=FILE,
    multiple=True,
    required=True,
    metavar="FILE",
    help="Text to measure on. Repeatable.",
)
@click.option(
    "--samples", type=COUNT, default=2, show_default=True, help="Windows of text to measure."
)
@click.option(
    "--length", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a window."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="bfloat16",
    show_default=True,
    help="Of the computation; float32 takes about 1.5 times as long.",
)
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Of torch.")
@click.option(
    "-o", "--output", type=FOLDER, help="Make a directory with JSON and picture, resumable."
)
@json_option
def sensitivity_command(as_json: bool, **options: Any) -> None:
    """Measure what it costs to remove, narrow or quantise each layer and matrix of MODEL."""
    from shrinkc.cli import sensitivity

    request = sensitivity.SensitivityRequest(**options)
    sensitivity.run(request, console=Console(), as_json=as_json)


@cli.command(
    "franken",
    short_help="Run a model with layers skipped or repeated.",
    examples=("shrinkc franken model --layers 0-4 --layers 0-2,4 --prompt 'Once upon a time'",),
)
@click.argument("model")
@click.option(
    "--layers",
    multiple=True,
    required=True,
    metavar="LAYERS",
    help="E.g. 0-11,14-29 or 0-7,8x3,9-29 (layer 8 three times); repeatable: side by side.",
)
@click.option("--name", multiple=True, help="Of a configuration, in the order of --layers.")
@click.option("--prompt", default="Once upon a time", show_default=True, help="To go on from.")
@click.option("--tokens", type=COUNT, default=48, show_default=True, help="New tokens of a text.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the sampled text.")
@click.option("--text", type=FILE, metavar="FILE|hub", help="WikiText raw file, for perplexity.")
@click.option("--windows", type=COUNT, help="Windows of 512 tokens of it. [default: all]")
@click.option(
    "--hellaswag", type=FILE, metavar="FILE|hub", help="HellaSwag tasks, .txt, .bz2 or JSON lines."
)
@click.option("--hellaswag-items", type=COUNT, help="Tasks to do. [default: all]")
@click.option(
    "--save", type=FOLDER, metavar="DIR", help="Make a checkpoint of the (only) configuration."
)
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Of torch.")
@click.option("-o", "--output", type=FOLDER, help="Make a directory with the table and its JSON.")
@click.option("--force", is_flag=True, help="Replace what -o made before.")
@json_option
def franken_command(as_json: bool, **options: Any) -> None:
    """Run MODEL with any list of its layers: text, perplexity, HellaSwag, time."""
    from shrinkc.cli import franken

    franken.run(franken.FrankenRequest(**options), console=Console(), as_json=as_json)


@cli.command(
    "doctor",
    short_help="List the outside programs and fixes.",
    examples=("shrinkc doctor",),
)
@json_option
def doctor_command(as_json: bool) -> None:
    """List the outside programs: found, or missing and the command that fixes it."""
    from shrinkc.cli import doctor

    doctor.report(dict(os.environ), as_json=as_json)


for _command in (
    run_command, chat_command, plan_command, inspect_command, report_command, diff_command,
    export_command, convert_command, recipes_command,
):  # fmt: skip
    cli.add_command(_command)


def run_cli(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code.

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
    """What the command line says of any exception."""
    if isinstance(error, ShrinkcError):
        return error
    if isinstance(error, click.ClickException):
        return _usage(error)
    if not isinstance(error, OSError):
        return DefectError(
            f"{type(error).__name__}: {error} - this is a defect of shrinkc; "
            "'shrinkc --debug ...' shows where, please report it."
        )
    # a full disk or missing rights outside of an output: scratch files of a run
    if error.filename is not None:
        return output_error(Path(str(error.filename)), error)
    return OutputError(
        f"a file cannot be written: {error.strerror or error}.",
        f"the system does not say which one; scratch files go to {tempfile.gettempdir()}.",
    )


def _invoke(arguments: Sequence[str]) -> int:
    """Runs a command.  ``cli.main`` would make something else of interrupts, ends of files and broken
    pipes, and write to stderr, which may be closed."""
    if os.environ.get("_SHRINKC_COMPLETE"):  # a shell asks how a word goes on
        cli.main(list(arguments), "shrinkc")  # exits
    try:
        with cli.make_context("shrinkc", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return 0


def _failed(error: ShrinkcError, debug: bool, answer: StandardOutput | None) -> int:
    """Says what is wrong, to programs too where they wait for an ``answer`` and have none yet."""
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
    with suppress(OSError):  # nobody can be told, and the exit code still says what it was
        print(text, file=sys.stderr, flush=True)


def _usage(error: click.ClickException) -> ShrinkcError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "shrinkc"
    text = error.format_message()
    return UsageError(
        text if text.endswith((".", "?", ")")) else f"{text}.", f"see '{path} --help'."
    )


def main() -> None:
    """The ``shrinkc`` command."""
    stopping.install()
    if sys.stderr is None:  # the caller closed it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # a story may hold what the locale cannot show
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = run_cli(sys.argv[1:])
    finally:
        stopping.finish()
        drop_unwritten(sys.stdout)
        drop_unwritten(sys.stderr)
    sys.exit(code)
