"""Execution of a child process: streams its lines, and ends it at a time-out and on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import termios
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_CHUNK = 65536
_POLL_SECONDS = 3600.0  # the operating system limits the length of a wait


@dataclass(frozen=True)
class Finished:
    """Result of a process; ``code`` is negative for a signal, as in subprocess, and None after a time-out."""

    code: int | None
    lines: list[str]
    errors: list[str]
    seconds: float


@dataclass
class _Lines:
    """Lines of a byte stream, split at newlines only: a token's text may contain other control characters."""

    on_line: Callable[[str], None] | None
    lines: list[str] = field(default_factory=list)
    rest: bytes = b""

    def add(self, data: bytes) -> None:
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            self._emit(line)

    def close(self) -> None:
        if self.rest:
            self._emit(self.rest)
            self.rest = b""

    def _emit(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace")
        self.lines.append(text)
        if self.on_line is not None:
            self.on_line(text)


def run_streaming(
    command: list[str],
    *,
    env: Mapping[str, str],
    directory: Path,
    stdin: IO[bytes] | int,
    timeout_s: float,
    on_line: Callable[[str], None] | None,
    terminal: bool,
) -> Finished:
    """Run ``command`` in its own process group until it ends or ``timeout_s`` seconds have passed (inf: no limit).

    ``terminal`` gives it a pseudo-terminal as stdout, for a program that buffers lines when it writes to a pipe.  All
    processes of the group are ended in any case, also after an exception.
    """
    reader, writer = _output(terminal)
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=directory,
            stdin=stdin,
            stdout=writer,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    assert process.stderr is not None
    out, errors = _Lines(on_line), _Lines(None)
    ended = False
    try:
        with process.stderr:
            streams = {reader: out, process.stderr.fileno(): errors}
            _pump(streams, started + timeout_s)
        process.wait(max(0.0, started + timeout_s - time.monotonic()))
        ended = True
    except (TimeoutError, subprocess.TimeoutExpired):
        pass
    finally:
        os.close(reader)
        if not ended:
            _end_group(process)
    out.close()
    errors.close()
    code = process.returncode if ended else None
    return Finished(code, out.lines, errors.lines, time.monotonic() - started)


class KeptProcess:
    """A child process in its own process group that answers one input after the other."""

    def __init__(
        self, command: list[str], *, env: Mapping[str, str], directory: Path, terminal: bool
    ) -> None:
        """Start ``command`` in ``directory``.  ``terminal``: see :func:`run_streaming`."""
        reader, writer = _output(terminal)
        try:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=directory,
                stdin=subprocess.PIPE,
                stdout=writer,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._output = reader
        self._errors = _Lines(None)
        self._finalizer = weakref.finalize(self, _end, self._process, reader)

    def ask(
        self,
        content: bytes,
        is_last: Callable[[str], bool],
        *,
        timeout_s: float,
        on_line: Callable[[str], None] | None,
    ) -> Finished:
        """Write ``content`` and read lines up to the one that ``is_last``; ``code`` is then 0.

        Without such a line, ``code`` is that of the process, which has ended.  After ``timeout_s`` seconds it is
        None, and the process is ended.
        """
        started = time.monotonic()
        answered = False

        def hear(line: str) -> None:
            nonlocal answered
            answered = answered or is_last(line)
            if on_line is not None:
                on_line(line)

        out = _Lines(hear)
        code: int | None = 0
        try:
            self._exchange(content, out, lambda: answered, started + timeout_s)
            if not answered:
                out.close()
                self._errors.close()
                code = self._process.wait(max(0.0, started + timeout_s - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            code = None
            self.close()
        return Finished(code, out.lines, self._errors.lines, time.monotonic() - started)

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def _exchange(
        self, content: bytes, out: _Lines, answered: Callable[[], bool], deadline: float
    ) -> None:
        """Write and read until there is an answer or stdout and stderr end.  Raises TimeoutError at the deadline."""
        stdin, stderr = self._process.stdin, self._process.stderr
        assert stdin is not None and stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(self._output, selectors.EVENT_READ, out)
            selector.register(stderr, selectors.EVENT_READ, self._errors)
            reading = 2
            while reading and not answered():
                left = deadline - time.monotonic()
                ready = selector.select(min(left, _POLL_SECONDS)) if left > 0 else []
                if not ready and time.monotonic() >= deadline:
                    raise TimeoutError
                for key, _ in ready:
                    if key.data is None:
                        content = content[_write(key.fd, content) :]
                        if not content:
                            selector.unregister(key.fd)
                        continue
                    data = _read(key.fd)
                    key.data.add(data)
                    if not data:
                        selector.unregister(key.fd)
                        reading -= 1


def _write(stream: int, content: bytes) -> int:
    """Return the number of bytes that are done; all, if the process does not read any more."""
    try:
        return os.write(stream, content)
    except BrokenPipeError:
        return len(content)


def _end(process: subprocess.Popen[bytes], output: int) -> None:
    _end_group(process)
    os.close(output)
    for stream in (process.stdin, process.stderr):
        if stream is not None:
            stream.close()


def _output(terminal: bool) -> tuple[int, int]:
    """Return the two ends of a pipe or of a pseudo-terminal."""
    if not terminal:
        return os.pipe()
    reader, writer = os.openpty()
    _make_transparent(writer)
    return reader, writer


def _make_transparent(terminal: int) -> None:
    """Switch off the translation of newlines in the output."""
    settings = termios.tcgetattr(terminal)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, settings)


def _pump(streams: Mapping[int, _Lines], deadline: float) -> None:
    """Read all streams to their ends.  Raises TimeoutError at the deadline."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(min(left, _POLL_SECONDS)) if left > 0 else []
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError
            for key, _ in ready:
                data = _read(key.fd)
                streams[key.fd].add(data)
                if not data:
                    selector.unregister(key.fd)


def _read(stream: int) -> bytes:
    try:
        return os.read(stream, _CHUNK)
    except OSError:  # a pseudo-terminal ends with EIO
        return b""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and its children: gvsoc is a script that starts the simulator."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
