"""Settings for all tests."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(kib): a file system of that size, where this user may mount one."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        place = tmp_path / f"disk{kib}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small file system is not allowed here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
