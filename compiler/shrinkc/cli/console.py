"""Output: results on stdout, everything else on stderr."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from shrinkc.cli.stopping import check
from shrinkc.core.errors import OutputError, ShrinkcError
from shrinkc.core.progress import Stage, Update
from shrinkc.core.shell import printable

QUIET_SECONDS = 2.0  # shorter work is not reported
BAR_SECONDS = 0.2  # between two updates of a bar
LINE_SECONDS = 2.0  # between two lines if stderr is not a terminal, at first
LINE_GROWTH = 0.2  # later, this fraction of the stage's time so far
LINE_SECONDS_MAX = 300.0
VERBOSITY = "shrinkc.verbosity"  # in the context's meta: -1 with --quiet, 1 with --verbose
WIDTH = 100


def is_terminal(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal on which lines can be overwritten."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def takes_escapes(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal and the user allows escape sequences."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def verbosity() -> int:
    """Return the verbosity of the current command: -1, 0 or 1."""
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get(VERBOSITY, 0))


class Console:
    """Reporter on stderr: a bar on a terminal, otherwise lines at growing intervals.  ``quiet``: no progress.
    ``verbose``: stages are shown at once and with their times."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = is_terminal(self.stream)
        self._escapes = takes_escapes(self.stream)
        self.quiet = verbosity() < 0
        self.verbose = verbosity() > 0
        self._bar = False  # whether the terminal shows a bar now

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        """Report until the context ends.  A thread prints, so that work without updates is shown too.

        A signal that Python lost ends the work at its next update.
        """
        check()
        state = Stage(title, time.monotonic())
        ended = threading.Event()
        reporter = threading.Thread(target=self._report, args=(state, ended), daemon=True)

        def update(done: int, total: int, note: str = "", /) -> None:
            check()
            state.update(done, total, note, time.monotonic())

        if not self.quiet:
            reporter.start()
        try:
            yield update
        finally:
            ended.set()
            if not self.quiet:
                reporter.join()
            self.detail(f"{title}: {time.monotonic() - state.started:.1f} s")

    def _report(self, state: Stage, ended: threading.Event) -> None:
        if ended.wait(BAR_SECONDS if self.verbose else QUIET_SECONDS):
            return
        while True:
            now = time.monotonic()
            if self.terminal:
                room = shutil.get_terminal_size().columns - 1
                self._write(self._erase(room) + state.bar(now, room))
                self._bar = True
            else:
                self._write(f"{state.line(now)}\n")
            rare = max(LINE_SECONDS, min(LINE_GROWTH * (now - state.started), LINE_SECONDS_MAX))
            if ended.wait(BAR_SECONDS if self.terminal else rare):
                break
        if self.terminal:
            self._bar = False
            self._write(self._erase(shutil.get_terminal_size().columns - 1))

    def _erase(self, room: int) -> str:
        return "\r\x1b[K" if self._escapes else "\r" + " " * room + "\r"

    def note(self, text: str) -> None:
        """Print a line for the user."""
        if not self.quiet:
            over = self._erase(shutil.get_terminal_size().columns - 1) if self._bar else ""
            self._write(f"{over}{printable(text)}\n")

    def detail(self, text: str) -> None:
        """Print a line if ``verbose``."""
        if self.verbose:
            self.note(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a closed pipe must not stop the work
            pass


def error_text(error: ShrinkcError) -> str:
    """Return a wrapped paragraph; quoted output of tools is not wrapped."""
    first, *quoted = printable(str(error)).split("\n")
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    head = textwrap.fill(
        f"shrinkc: {error.title}: {first}", width, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([head, *quoted])


class StandardOutput:
    """Wrapper of ``sys.stdout`` whose errors name standard output (the system's errors do not).

    A closed pipe still raises BrokenPipeError.  ``used``: whether something was written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None if the caller closed it
        self.used = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``.  Raises OutputError."""
        with _as_output_error():
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            self.used = True
            return self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream.  Raises OutputError."""
        if self._stream is not None:
            with _as_output_error():
                self._stream.flush()


@contextmanager
def _as_output_error() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"standard output cannot be written: {error.strerror}.",
            "the results go there; redirect it to another place.",
        ) from error


def drop_unwritten(stream: TextIO | None) -> None:
    """Empty the buffer of a standard stream at the end of the process.

    The buffer still has text that a full disk or a closed pipe did not accept.  The interpreter would write it
    again, print an error, and exit with 120 instead of our exit code.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def print_json(content: object) -> None:
    """Print the object of a ``--json`` run."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # bytes of a path that are not UTF-8 become JSON escapes, from which they can be recovered
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    sys.stdout.flush()


def write_text(text: str) -> None:
    """Write a piece of a program's text at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
