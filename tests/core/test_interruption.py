"""A signal waits until the work at hand is saved, and a second one does not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from helpers.interrupting import Recorder
from shrinkc.core.interruption import deferred

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """All three signals end the process with their exit code, until the test is over."""
    before = {number: signal.signal(number, stop) for number in KINDS}
    yield
    assert [signal.getsignal(number) for number in KINDS] == [stop] * 3
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", KINDS)
def test_it_waits_until_the_work_is_saved(number: int) -> None:
    reporter, seen = Recorder(), []
    with pytest.raises(SystemExit) as raised, deferred(reporter) as held:
        for step in range(9):
            if step == 3:
                send(number)
            seen.append((step, held.came))
            held.act()
    assert raised.value.code == 128 + number
    assert seen == [(0, False), (1, False), (2, False), (3, True)]
    assert len(reporter.notes) == 1 and "Ctrl-C again stops at once" in reporter.notes[0]


def test_it_acts_at_the_latest_when_the_work_ends() -> None:
    seen = []
    with pytest.raises(SystemExit), deferred(Recorder()):
        send(signal.SIGTERM)
        seen.append("the end")
    with pytest.raises(SystemExit), deferred(Recorder()):
        send(signal.SIGTERM)
        raise ValueError("what goes wrong meanwhile does not hide it")
    assert seen == ["the end"]


def test_a_second_one_acts_at_once() -> None:
    with pytest.raises(SystemExit) as raised, deferred(Recorder()) as held:
        send(signal.SIGINT)
        assert held.came
        send(signal.SIGTERM)
        raise AssertionError("it goes on")
    assert raised.value.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred(Recorder()) as held:
            send(signal.SIGHUP)
            assert not held.came
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, stop)


def test_another_thread_goes_on_as_it_is() -> None:
    seen = []

    def work() -> None:
        with deferred(Recorder()) as held:
            seen.append(held.came)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
