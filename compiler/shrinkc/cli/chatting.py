"""``shrinkc chat``: messages from a terminal, or line by line from anywhere, and their answers."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli import stopping
from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.cli.options import PATH, command, make_variables, run_options
from shrinkc.core.errors import UsageError

PROMPT = "> "


@command(
    "chat",
    "Chat with a compiled model.",
    "shrinkc chat out",
    "shrinkc chat out --system 'Answer in one sentence.' --temperature 0.7",
)
@click.argument("directory", type=PATH)
@click.option(
    "--system", metavar="TEXT", help="System message, which tells the model how to answer."
)
@run_options("what the context leaves", "an answer")
@click.option("--verify", is_flag=True, help="Verify every answer bit for bit.")
def chat_command(directory: Path, as_json: bool, verify: bool, **options: Any) -> None:
    """Chat with the compiled model in DIRECTORY, which needs a chat template.

    Ctrl-C stops an answer, Ctrl-D ends the chat.  If stdin is a pipe, each line is a message.  When the
    context is full, shrinkc drops the oldest messages and says so.
    """
    console = Console()
    variables = make_variables(options.pop("make_options"))
    with shrinkc.chat(
        directory, verify=verify, make_options=variables, reporter=console, **options
    ) as talk:
        proof = (
            "every answer is verified" if verify else "answers are not verified without --verify"
        )
        console.note(
            f"{talk.model} on {options['on']}, context {talk.context} tokens; {proof}; "
            "Ctrl-C ends an answer, Ctrl-D the chat"
        )
        told = _converse(talk, console, as_json)
    if as_json:
        print_json({"model": talk.model, "answers": [answer.to_json() for answer in told]})


def _converse(talk: Any, console: Console, as_json: bool) -> list[Any]:
    """Return the answers to all messages; without ``as_json`` write them as well."""
    told = []
    while (message := _message(console)) is not None:
        if not message.strip():
            continue
        try:
            answer = talk.ask(message, None if as_json else write_text)
        except KeyboardInterrupt:
            stopping.forget()
            begun = bool(talk.exchanges) and talk.exchanges[-1][0] is message
            if begun and not as_json:
                write_text("\n")
            console.note(
                "note: stopped; what was said of the answer counts"
                if begun
                else "note: stopped before anything was said; the message does not count"
            )
            continue
        except UsageError as error:
            if not sys.stdin.isatty():
                raise
            console.note(f"note: {error}")
            continue
        told.append(answer)
        for line in answer.result.lines()[:-1]:
            console.detail(line)
        for note in _notes(answer, talk.context):
            console.note(note)
        answer.result.check()
    return told


def _notes(answer: Any, context: int) -> list[str]:
    notes = []
    if answer.forgotten:
        many = answer.forgotten > 1
        oldest = f"the {answer.forgotten} oldest messages" if many else "the oldest message"
        notes.append(
            f"note: the context of {context} tokens was full: {oldest} and "
            f"{'their answers' if many else 'its answer'} are forgotten"
        )
    if answer.ended == "context":
        notes.append(
            f"note: the context of {context} tokens is full, the answer ends here; with the next "
            "message the oldest ones are forgotten"
        )
    elif answer.ended == "tokens":
        notes.append("note: the answer ends here by --tokens")
    if answer.result.verdict is not None:
        notes.append(answer.result.lines()[-1])
    return notes


def _message(console: Console) -> str | None:
    """The next one; None at the end.  Ctrl-C drops a line that is being typed."""
    while True:
        try:
            return _line(console)
        except KeyboardInterrupt:
            if sys.stdin is None or not sys.stdin.isatty():
                raise
            stopping.forget()
            console.note("\nCtrl-D ends the chat")


def _line(console: Console) -> str | None:
    if sys.stdin is None:  # the caller closed it
        return None
    try:
        if not sys.stdin.isatty():
            return _of_pipe()
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then has a history, and keys that edit
        return input(PROMPT if sys.stdout.isatty() else "")
    except EOFError:
        console.note("")
        return None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"a message is not UTF-8 text: {error.reason} at byte {error.start}.",
            "convert it, for instance with iconv.",
        ) from error


def _of_pipe() -> str | None:
    raw = sys.stdin.buffer.readline()
    return raw.decode("utf-8").rstrip("\r\n") if raw else None
