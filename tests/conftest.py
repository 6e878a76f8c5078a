"""Settings for all tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from helpers import compiler_cache
from helpers import small_disk as small_disks

# before numpy is imported: the matrices of the tests are too small for several threads
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# before others copy the environment; one cache for all processes of a run, which have that of the first
CACHE = compiler_cache.put_in_front()

# what a shell without job control has a background job ignore, and its children with it
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)

# With it, and users do not have it, nothing waits in a buffer when a process ends.
os.environ.pop("PYTHONUNBUFFERED", None)

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


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, what in (
        ("--update-golden", "generated text, plans and cycles"),
        (
            "--update-golden-outputs",
            "pinned tokens and logits, for a change of numerics that is meant",
        ),
    ):
        parser.addoption(option, action="store_true", help=f"Write tests/golden anew: {what}.")


def pytest_configure(config: pytest.Config) -> None:
    if CACHE is not None:
        config.add_cleanup(lambda: shutil.rmtree(CACHE, ignore_errors=True))


# the one run of compress of the fast tier
ONE_RUN = "test_one_run.py"
_SLOW_FILE = re.compile(r"^pytestmark = .*\bmark\.slow\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In the fast tier, files of which every test is slow are not even imported: most import torch, which takes
    seconds in each process."""
    if "not slow" not in (config.option.markexpr or "") or collection_path.suffix != ".py":
        return None
    return True if _SLOW_FILE.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests whose mark `libraries` names one that the base install leaves out; those with torch,
    of which each process takes seconds to load it, and those on the simulator are slow."""
    for item in items:
        if item.get_closest_marker("gvsoc"):
            item.add_marker(pytest.mark.slow)
        named = [name for mark in item.iter_markers("libraries") for name in mark.args]
        if missing := [name for name in named if importlib.util.find_spec(name) is None]:
            reason = f"needs {', '.join(missing)} (make setup)"
            item.add_marker(pytest.mark.skip(reason=reason))
        if "torch" in named and item.path.name != ONE_RUN:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests with small disks run in a process of their own where mounting is not allowed."""
    if (
        "small_disk" not in pyfuncitem.fixturenames
        or small_disks.PRELOADED in os.environ
        or small_disks.may_mount()
    ):
        return None
    small_disks.run_preloaded(pyfuncitem, pyfuncitem.funcargs["tmp_path"])
    return True


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """small_disk(kib): a file system of that size, or a folder that acts as one."""
    made: list[Path] = []
    folder = os.environ.get(small_disks.PRELOADED)
    is_mount = os.path.ismount

    def make(kib: int) -> Path:
        place = tmp_path / f"disk{kib}" if folder is None else Path(folder, str(kib))
        place.mkdir()
        if folder is None:
            assert small_disks.mount(kib, place)
        made.append(place)
        return place

    if folder is not None:
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) in made or is_mount(path))
    yield make
    if folder is None:
        for place in made:
            small_disks.unmount(place)
