"""Ctrl-C, SIGTERM and SIGHUP: they end the work where it is, and are not forgotten.

Python drops an exception that comes up while it runs the callback of a weak reference or a
``__del__`` ("Exception ignored in ..."), and torch and databases have many of both.  A signal that
comes just then would be lost.  So it is noted, and :func:`check` raises it again: at every sign of
progress (:class:`shrinkc.cli.console.Console`) and between the trials of a search.
"""

from __future__ import annotations

import signal

TERMINATED = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended

_came: list[int] = []


def install() -> None:
    """From now on the signals end the work; not those that the caller has this process ignore
    (``nohup``, a background job)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def finish() -> None:
    """After :func:`install`: from now on Ctrl-C changes nothing, for what it would stop has ended.

    The interpreter puts back the system's own handler while it shuts down; the process would be
    killed by the signal after it has said with which exit code it ends.
    """
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def forget() -> None:
    """After a Ctrl-C that ended what it was meant for: the work goes on."""
    _came.clear()


def check() -> None:
    """Raises KeyboardInterrupt or SystemExit if a signal has come."""
    if _came:
        _raise(_came[0])


def _stop(number: int, frame: object) -> None:
    _came.append(number)
    _raise(number)


def _raise(number: int) -> None:
    """SIGTERM and SIGHUP end like Ctrl-C, so that nothing is left half-written."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
