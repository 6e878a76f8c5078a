"""Deferral of Ctrl-C, SIGTERM and SIGHUP until the current work is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shrinkc.core.progress import Reporter

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """Deferred signal.  :meth:`act` runs its original handler.  A second signal runs it at once."""

    def __init__(self, reporter: Reporter) -> None:
        self.came = False
        self._reporter = reporter
        self._number = 0
        # signals without a Python handler (ignored or default) are not changed
        found = {number: signal.getsignal(number) for number in _SIGNALS}
        self._usual: dict[int, Callable[[int, FrameType | None], object]] = {
            number: handler for number, handler in found.items() if callable(handler)
        }

    def act(self) -> None:
        """Run the handler of a deferred signal, which raises for example KeyboardInterrupt."""
        if self.came:
            self.came = False
            self._usual[self._number](self._number, None)

    def _hold(self) -> None:
        for number in self._usual:
            signal.signal(number, self._came)

    def _release(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: object) -> None:
        self.came, self._number = True, number
        self._release()
        self._reporter.note("stopping as soon as this step is saved; Ctrl-C again stops at once")


@contextmanager
def deferred(reporter: Reporter) -> Iterator[Deferred]:
    """Defer signals within the context: ``reporter`` is told, and they wait for :meth:`Deferred.act` or the end of
    the context.  Has no effect in other threads than the main thread, since they get no signals."""
    held = Deferred(reporter)
    main = threading.current_thread() is threading.main_thread()
    if main:
        held._hold()
    try:
        yield held
    finally:
        if main:
            held._release()
        held.act()
