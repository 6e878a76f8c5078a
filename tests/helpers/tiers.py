"""Cases of a test that builds programs, in the two tiers: sanitizers take the compiler six times as long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

SANITIZED = {"SAN": "1"}


def in_tiers(cases: Iterable[str], *fast: str) -> list[Any]:
    """Parameters (name, options of the build): those named ``fast`` without sanitizers in the fast
    tier, and all of them with sanitizers in the slow one."""
    every = list(cases)
    assert fast and set(fast) <= set(every), f"not among the cases: {set(fast) - set(every)}"
    slow = [
        pytest.param(name, SANITIZED, id=f"{name}, sanitized", marks=pytest.mark.slow)
        for name in every
    ]
    return [pytest.param(name, {}, id=name) for name in fast] + slow


def slow_but(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """The cases as parameters, of which all but ``fast`` are slow."""
    every = list(cases)
    assert all(case in every for case in fast), f"not among the cases: {fast}"
    return [c if c in fast else pytest.param(c, marks=pytest.mark.slow) for c in every]
