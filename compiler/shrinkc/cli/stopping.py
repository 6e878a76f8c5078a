"""Handling of Ctrl-C, SIGTERM and SIGHUP, so that no signal is lost.

Python drops an exception raised during the callback of a weak reference or a ``__del__``
("Exception ignored in ..."), and torch and databases have many of both.  A signal at such a moment would be
lost.  So the handler records it, and :func:`check` raises it again: at every progress update
(:class:`shrinkc.cli.console.Console`) and between the trials of a search.
"""

from __future__ import annotations

import signal

TERMINATED = 128 + signal.SIGTERM  # exit code that a shell reports after SIGTERM

_came: list[int] = []


def install() -> None:
    """Install the handlers, except for signals that the caller made this process ignore
    (``nohup``, a background job)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def finish() -> None:
    """Ignore Ctrl-C from now on, because the work has ended.

    While shutting down, the interpreter restores the default handler, which would kill the process after it
    has reported its exit code.
    """
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def forget() -> None:
    """Forget a Ctrl-C that has been handled, so that the work continues."""
    _came.clear()


def check() -> None:
    """Raise KeyboardInterrupt or SystemExit if a signal was received."""
    if _came:
        _raise(_came[0])


def _stop(number: int, frame: object) -> None:
    _came.append(number)
    _raise(number)


def _raise(number: int) -> None:
    """Raise an exception for any of the signals, so that nothing is left half-written."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
