"""What long-running work reports, without knowing who shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol


class Update(Protocol):
    """``update(done, total)``, in whatever unit the work counts; ``note`` says how well it goes."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Reports."""
        ...


class Reporter(Protocol):
    """Shows stages of work to somebody."""

    def stage(self, title: str) -> AbstractContextManager[Update]:
        """Within the context the work called ``title`` is going on."""
        ...

    def note(self, text: str) -> None:
        """Something to know at once."""
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
    """How far one stage is; ``total`` 0 means that nobody knows."""

    title: str
    started: float
    done: int = 0
    total: int = 0
    note: str = ""

    def line(self, now: float) -> str:
        """One line of text, such as ``loading weights: 45 % (3 s)``."""
        elapsed = f"{now - self.started:.0f} s" + (f", {self.note}" if self.note else "")
        if self.total <= 0:
            return f"{self.title}: {elapsed}"
        return f"{self.title}: {100 * self.done // self.total} % ({elapsed})"

    def bar(self, now: float, width: int = 24) -> str:
        """The same with a bar in front."""
        if self.total <= 0:
            return self.line(now)
        filled = min(width, width * self.done // self.total)
        return f"[{'#' * filled}{'.' * (width - filled)}] {self.line(now)}"
