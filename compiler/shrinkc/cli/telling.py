"""``shrinkc run``: the text on stdout while it comes, then what was measured and proved."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shrinkc
from shrinkc.build.make import OPTIONS
from shrinkc.cli.console import Console, print_json, takes_escapes, write_text
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, write_file


def run(
    directory: Path,
    *,
    machine: str,
    prompt_ids: str | None,
    no_verify: bool,
    make_options: Sequence[str],
    env: Mapping[str, str],
    console: Console,
    as_json: bool,
    timeline: Path | None,
    **options: Any,
) -> None:
    """Runs the compiled ``directory``; raises Mismatch when an integer differs."""
    if timeline is not None:
        if not options["profile"]:
            raise UsageError("--timeline is a picture of a profile.", "give --profile too.")
        check_file(timeline)
    result = shrinkc.run(
        directory,
        on=machine,
        prompt_ids=None if prompt_ids is None else _ids(prompt_ids),
        verify=not no_verify,
        check=False,  # what ran is told even where it is not what it should be
        make_options=dict(_make_option(text) for text in make_options),
        env=env,
        reporter=console,
        on_text=None if as_json else _Teller(),
        **options,
    )
    for line in result.lines():
        console.note(line)
    if timeline is not None:
        write_file(timeline, result.timeline())
    if as_json:
        print_json(result.to_json())
    result.check()


class _Teller:
    """Writes a story's pieces, the first of which, the prompt, is dim where the terminal can that."""

    def __init__(self) -> None:
        self._dim = takes_escapes(sys.stdout)

    def __call__(self, text: str) -> None:
        if self._dim:
            text, self._dim = f"\x1b[2m{text}\x1b[22m", False
        write_text(text)


def _make_option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise UsageError(f"--make {text} is not possible.", f"allowed: {'=, '.join(OPTIONS)}=.")
    return name, value


def _ids(text: str) -> tuple[int, ...]:
    hint = "write for instance 1,403,407."
    try:
        ids = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        raise UsageError(f"--prompt-ids {text} is not a list of numbers.", hint) from None
    if not ids:
        raise UsageError(f"--prompt-ids '{text}' has no ids.", hint)
    return ids
