"""Everything that is printed: results on stdout, all the rest on stderr."""

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

QUIET_SECONDS = 2.0  # work that takes less is not reported
BAR_SECONDS = 0.2  # between two pictures of a bar
LINE_SECONDS = 2.0  # between two lines where there is no terminal, at first
LINE_GROWTH = 0.2  # of the time that a stage has taken, when that is more
LINE_SECONDS_MAX = 300.0
VERBOSITY = "shrinkc.verbosity"  # in the context's meta: -1 with --quiet, 1 with --verbose
WIDTH = 100


def is_terminal(stream: TextIO) -> bool:
    """Whether what was written to ``stream`` can be written over: a terminal that is not dumb."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def takes_escapes(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal and the user has nothing against escape sequences on it."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def verbosity() -> int:
    """What the command line that is being executed asks for."""
    context = click.get_current_context(silent=True)
    return 0 if context is None else int(context.meta.get(VERBOSITY, 0))


class Console:
    """A Reporter on stderr: a bar on a terminal, elsewhere a line now and then, the less often the longer
    it takes.  ``quiet``: nothing of that; ``verbose``: stages at once, and how long each took."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = is_terminal(self.stream)
        self._escapes = takes_escapes(self.stream)
        self.quiet = verbosity() < 0
        self.verbose = verbosity() > 0
        self._bar = False  # there is one on the terminal now

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        """Reports until the context ends; a thread does it, so that silent work is seen too.

        A signal that came and was lost ends the work at its next sign of progress.
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
        """One line for the user."""
        if not self.quiet:
            over = self._erase(shutil.get_terminal_size().columns - 1) if self._bar else ""
            self._write(f"{over}{printable(text)}\n")

    def detail(self, text: str) -> None:
        """One line for a user who wants to know more."""
        if self.verbose:
            self.note(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a closed pipe is no reason to stop the work
            pass


def error_text(error: ShrinkcError) -> str:
    """One wrapped paragraph; lines that a message quotes from a tool stay as they are."""
    first, *quoted = printable(str(error)).split("\n")
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    head = textwrap.fill(
        f"shrinkc: {error.title}: {first}", width, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([head, *quoted])


class StandardOutput:
    """``sys.stdout`` whose errors say so: the system's own name no file.

    A pipe that nobody reads any more stays a BrokenPipeError.  ``used``: something was written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None where the caller closed it
        self.used = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """OutputError when that is not possible."""
        with _as_output_error():
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            self.used = True
            return self._stream.write(text)

    def flush(self) -> None:
        """OutputError when that is not possible."""
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
    """Empties the buffer of a standard stream, at the end of the process.

    What a full disk or a pipe without a reader did not take is still in it.  The interpreter would
    try once more, complain, and exit with 120 whatever our exit code is.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def print_json(content: object) -> None:
    """The one object of a ``--json`` run."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # bytes of a path that are not UTF-8 come as escapes of JSON, from which they can be had again
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    sys.stdout.flush()


def write_text(text: str) -> None:
    """A piece of the text that a program tells, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
