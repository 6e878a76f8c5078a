"""Interface through which long-running work reports progress."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from shrinkc.core.words import show_time


class Update(Protocol):
    """Function ``update(done, total)``, in any unit; ``note`` is a short status such as the loss.

    The first call gives the starting point, from which the remaining time is estimated.
    """

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Report progress."""
        ...


class Reporter(Protocol):
    """Receives progress: any object with these two methods."""

    def stage(self, title: str) -> AbstractContextManager[Update]:
        """Return a context for the work called ``title``.  Entering it gives ``update(done, total)``."""
        ...

    def note(self, text: str) -> None:
        """Show a sentence to the user at once."""
        ...


class Silent:
    """Reporter that shows nothing."""

    def stage(self, title: str) -> AbstractContextManager[Update]:
        """See :class:`Reporter`."""
        return nullcontext(lambda done, total, note="": None)

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""


@dataclass
class Stage:
    """Progress of a stage.  ``total`` 0: unknown.

    ``begun``: time and amount done when the counted work began; a resumed run does not begin at 0.
    """

    title: str
    started: float
    done: int = 0
    total: int = 0
    note: str = ""
    begun: tuple[float, int] | None = None

    def update(self, done: int, total: int, note: str, now: float) -> None:
        """Record progress.  A lower ``done`` or another ``total`` means new work."""
        if self.begun is None or done < self.done or total != self.total:
            self.begun = (now, done)
        self.done, self.total, self.note = done, total, note

    def left(self, now: float) -> float | None:
        """Return the remaining seconds at the speed so far; None: unknown."""
        if self.begun is None:
            return None
        then, before = self.begun
        if not before < self.done < self.total:
            return None
        return (now - then) * (self.total - self.done) / (self.done - before)

    def line(self, now: float) -> str:
        """Return a line of text, such as ``loading weights: 45 % (3 s, about 4 s left)``."""
        return self._line(self.title, self._details(now))

    def bar(self, now: float, room: int = 100, width: int = 24) -> str:
        """Return a line with a progress bar, in at most ``room`` characters.

        To fit, it drops first the bar, then the details from the last to the first, then the end of the title,
        but never the percentage.
        """
        details = self._details(now)
        line = self._line(self.title, details)
        if self.total > 0:
            filled = min(width, width * self.done // self.total)
            whole = f"[{'#' * filled}{'.' * (width - filled)}] {line}"
            if len(whole) <= room:
                return whole
        while len(line) > room and details[self.total <= 0 :]:
            details.pop()
            line = self._line(self.title, details)
        if len(line) > room:
            rest = line[len(self.title) :]
            line = self.title[: max(0, room - len(rest) - 1)] + "…" + rest
        return line[max(0, len(line) - room) :]

    def _line(self, title: str, details: Sequence[str]) -> str:
        said = ", ".join(details)
        if self.total <= 0:
            return f"{title}: {said}"
        percent = f"{100 * self.done // self.total} %"
        return f"{title}: {percent} ({said})" if said else f"{title}: {percent}"

    def _details(self, now: float) -> list[str]:
        """Return details after the percentage, the most important first."""
        left = self.left(now)
        about = [] if left is None else [f"about {show_time(left)} left"]
        return [f"{now - self.started:.0f} s", *about, *([self.note] if self.note else [])]
