"""Work that is interrupted where a test wants it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from shrinkc.core.progress import Update


class Recorder:
    """A Reporter that keeps what it is told: ``notes``, and ``heard``, (title, done, total) of every sign of
    progress."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.heard: list[tuple[str, int, int]] = []

    def note(self, text: str) -> None:
        """See :class:`shrinkc.core.progress.Reporter`."""
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        """See :class:`shrinkc.core.progress.Reporter`."""
        yield lambda done, total, note="": self.heard.append((title, done, total))


class SignalAt(Recorder):
    """The same, with a user who presses Ctrl-C once ``done`` of ``title`` are done."""

    def __init__(self, title: str, done: int) -> None:
        super().__init__()
        self.at = title, done

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        """See :class:`shrinkc.core.progress.Reporter`."""

        def update(done: int, total: int, note: str = "", /) -> None:
            self.heard.append((title, done, total))
            if (title, done) == self.at:
                os.kill(os.getpid(), signal.SIGINT)

        yield update


class InterruptAt:
    """A Reporter that raises KeyboardInterrupt at the ``count``-th sign of progress in ``title``."""

    def __init__(self, title: str, count: int) -> None:
        self.title, self.count, self.seen = title, count, 0

    def note(self, text: str) -> None:
        """Not a sign of progress."""

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        def update(done: int, total: int, note: str = "", /) -> None:
            if self.title in title:
                self.seen += 1
                if self.seen == self.count:
                    raise KeyboardInterrupt

        yield update
