"""``shrinkc run``: streams the text to stdout, then prints measurements and verification."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, print_json, takes_escapes, write_text
from shrinkc.cli.options import PATH, command, make_variables, run_options
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, write_file
from shrinkc.core.shell import printable


class Every(click.ParamType):
    """Value of ``--verify``: ``all`` (1) or ``every:N`` (N)."""

    name = "every"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"all|every:0*([1-9][0-9]{0,8})", str(value))
        if match is None:
            raise UsageError(
                f"--verify {value} is not possible.",
                "allowed: all, or every:N with N of at least 1; --no-verify turns verification off.",
            )
        return int(match[1] or 1)


@command(
    "run",
    "Run a compiled model and verify it bit for bit.",
    "shrinkc run out --prompt 'Once upon a time' --tokens 20",
    "shrinkc run out -p 'Once upon a time' -n 20 --verify every:8",
    "shrinkc run out --on gvsoc --prompt-ids 1,403 --tokens 4 --profile",
)
@click.argument("directory", type=PATH)
@click.option("-p", "--prompt", help="Text for the model to continue. [default: none]")
@click.option(
    "--prompt-file", type=click.Path(allow_dash=True), metavar="FILE|-",
    help="Read the prompt from a file, or from stdin (-), without its final newline.",
)  # fmt: skip
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option("--prompt-ids", help="Prompt as token ids, e.g. 1,403,407.")
@run_options("64, or what the context leaves", "the run")
@click.option("--ignore-eos", is_flag=True, help="Go on when the model ends its text.")
@click.option(
    "--verify", type=Every(), metavar="all|every:N",
    help="Check logits and sampling of all or every Nth token; layer outputs are always checked. [default: all]",
)  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not verify the run.")
@click.option(
    "--profile", is_flag=True, help="Measure the cycles of each operation; only with --on gvsoc."
)
@click.option(
    "--timeline",
    type=PATH,
    metavar="FILE",
    help="Draw the profile to this SVG file; needs --profile.",
)
@click.option(
    "--trace", type=PATH, metavar="FILE",
    help="Write what each core and unit does when, as JSON for ui.perfetto.dev; includes --profile.",
)  # fmt: skip
@click.option(
    "--hook-interval", is_flag=True,
    help="Measure the longest time between two calls of the layer hook; only with --on gvsoc --no-verify.",
)  # fmt: skip
def run_command(
    directory: Path,
    prompt: str | None,
    prompt_file: str | None,
    prompt_ids: str | None,
    verify: int | None,
    no_verify: bool,
    make_options: tuple[str, ...],
    timeline: Path | None,
    trace: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build and run the compiled model in DIRECTORY, and verify it bit for bit.

    The integers of the program are compared with those of an interpreter of the same model.
    """
    console = Console()
    if timeline is not None:
        if not options["profile"] and trace is None:
            raise UsageError("--timeline needs a profile.", "add --profile.")
        check_file(timeline)
    if trace is not None:
        check_file(trace)
    if no_verify and verify is not None:
        raise UsageError("--verify and --no-verify cannot be used together.", "give one of them.")
    if prompt_file is not None:
        if prompt is not None or prompt_ids is not None:
            raise UsageError(
                "--prompt-file, --prompt and --prompt-ids cannot be used together.",
                "give one of them.",
            )
        prompt = _text_of(prompt_file)
    result = shrinkc.run(
        directory,
        prompt_ids=None if prompt_ids is None else _ids(prompt_ids),
        prompt=prompt,
        verify=0 if no_verify else verify or 1,
        check=False,  # print the result even after a mismatch
        reporter=console,
        on_text=None if as_json else _Teller(),
        make_options=make_variables(make_options),
        trace=trace is not None,
        **options,
    )
    for line in result.lines():
        console.note(line)
    if timeline is not None:
        write_file(timeline, result.timeline())
    if trace is not None and result.trace is not None:
        write_file(trace, json.dumps(result.trace.to_json()) + "\n")
    if as_json:
        print_json(result.to_json())
    result.check()


def _text_of(name: str) -> str:
    """Return the text of a file or stdin, without the final newline."""
    shown = "standard input" if name == "-" else printable(name)
    try:
        data = _stdin() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise UsageError(
            f"--prompt-file: {shown} cannot be read: {error.strerror}.",
            "give a text file, or - for stdin.",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--prompt-file: {shown} is not UTF-8 text: {error.reason} at byte {error.start}.",
            "convert it, for instance with iconv.",
        ) from error


def _stdin() -> bytes:
    return b"" if sys.stdin is None else sys.stdin.buffer.read()  # None: the caller closed it


class _Teller:
    """Writer of a run's text; the first piece, the prompt, is dim if the terminal supports it."""

    def __init__(self) -> None:
        self._dim = takes_escapes(sys.stdout)

    def __call__(self, text: str) -> None:
        if self._dim:
            text, self._dim = f"\x1b[2m{text}\x1b[22m", False
        write_text(text)


def _ids(text: str) -> tuple[int, ...]:
    hint = "write for instance 1,403,407."
    try:
        ids = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise UsageError(f"--prompt-ids {text} is not a list of numbers.", hint) from None
    if not ids:
        raise UsageError(f"--prompt-ids '{text}' has no ids.", hint)
    return ids
