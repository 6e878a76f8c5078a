"""Settings for all tests."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest

# before numpy is imported: the matrices of the tests are too small for several threads
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The same examples at every run: a gate that fails by chance says nothing about a change.  Shapes
# that do not fit are filtered out by the tests, at times many of them.
hypothesis.settings.register_profile(
    "shrinkc",
    derandomize=True,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)
hypothesis.settings.load_profile("shrinkc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests whose mark `libraries` names one that the base install leaves out."""
    for item in items:
        named = [name for mark in item.iter_markers("libraries") for name in mark.args]
        if missing := [name for name in named if importlib.util.find_spec(name) is None]:
            reason = f"needs {', '.join(missing)} (pip install '.[compress]')"
            item.add_marker(pytest.mark.skip(reason=reason))
