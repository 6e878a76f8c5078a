"""Ctrl-C, SIGTERM and SIGHUP that wait until the work at hand is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shrinkc.core.progress import Reporter

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Deferred:
    """A signal that may have come: it does what it would have done when :meth:`act` is called.  A second one
    does so at once."""

    def __init__(self, reporter: Reporter) -> None:
        self.came = False
        self._reporter = reporter
        self._number = 0
        # a signal that is ignored, or that ends the process without a word, is left as it is
        found = {number: signal.getsignal(number) for number in _SIGNALS}
        self._usual: dict[int, Callable[[int, FrameType | None], object]] = {
            number: handler for number, handler in found.items() if callable(handler)
        }

    def act(self) -> None:
        """Raises what the signal that came stands for, such as KeyboardInterrupt; nothing when none came."""
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
    """Within the context a signal is told to ``reporter`` and waits for :meth:`Deferred.act`, at the latest until
    the context ends.  Of a thread that is not the main one, which gets no signals, nothing changes."""
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
