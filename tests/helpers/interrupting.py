"""Work that is interrupted where a test wants it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shrinkc.core.progress import Update


class InterruptAt:
    """A Reporter like a user who presses Ctrl-C at the ``count``-th sign of progress in ``title``."""

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
