"""What long-running work reports, without knowing who shows it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from shrinkc.core.words import show_time


class Update(Protocol):
    """``update(done, total)``, in whatever unit the work counts; ``note`` says how well it goes.

    The first one says where the work begins, which is what the time that is left is reckoned from.
    """

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Reports."""
        ...


class Reporter(Protocol):
    """Receives progress: any object with these two methods."""

    def stage(self, title: str) -> AbstractContextManager[Update]:
        """A context in which the work called ``title`` goes on.  It gives ``update(done, total)``."""
        ...

    def note(self, text: str) -> None:
        """A sentence that the user should see at once."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, title: str) -> AbstractContextManager[Update]:
        """See :class:`Reporter`."""
        return nullcontext(lambda done, total, note="": None)

    def note(self, text: str) -> None:
        """See :class:`Reporter`."""


@dataclass
class Stage:
    """How far one stage is; ``total`` 0 means that nobody knows.

    ``begun``: when the work that is counted began, and how much was done by then: an interrupted
    run goes on from there.
    """

    title: str
    started: float
    done: int = 0
    total: int = 0
    note: str = ""
    begun: tuple[float, int] | None = None

    def update(self, done: int, total: int, note: str, now: float) -> None:
        """What the work says of itself; less than before, or another total, is other work."""
        if self.begun is None or done < self.done or total != self.total:
            self.begun = (now, done)
        self.done, self.total, self.note = done, total, note

    def left(self, now: float) -> float | None:
        """Seconds that the rest will take if it goes on as it went so far; None: nobody knows."""
        if self.begun is None:
            return None
        then, before = self.begun
        if not before < self.done < self.total:
            return None
        return (now - then) * (self.total - self.done) / (self.done - before)

    def line(self, now: float) -> str:
        """One line of text, such as ``loading weights: 45 % (3 s, about 4 s left)``."""
        return self._line(self.title, self._details(now))

    def bar(self, now: float, room: int = 100, width: int = 24) -> str:
        """The same with a bar in front, in at most ``room`` characters.

        What does not fit goes: first the bar, then the details from the last to the first, then the
        end of the title.  How far it is stays.
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
        """What is said beside the share that is done; the last is dropped first."""
        left = self.left(now)
        about = [] if left is None else [f"about {show_time(left)} left"]
        return [f"{now - self.started:.0f} s", *about, *([self.note] if self.note else [])]
