"""The engine of these tests, known to the compiler while a test runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shrinkc.engines import ENGINES, Engine

from .plain import PLAIN


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], None]:
    """register(engine): it is one of ENGINES until the test ends."""
    return lambda engine: monkeypatch.setitem(ENGINES, engine.name, engine)


@pytest.fixture(autouse=True)
def _plain(register: Callable[[Engine], None]) -> None:
    register(PLAIN)
