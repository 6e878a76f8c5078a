"""The lock of a run's directory: only one process has it, and the next one finds a whole run or an empty directory."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shrinkc.compression.recipe import Recipe, parse_recipe
from shrinkc.compression.run import compress
from shrinkc.core.errors import OutputError
from shrinkc.core.progress import Silent

pytest.importorskip("peft")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


def test_two_at_once(stories: Path, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    with (tmp_path / "o" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "o" / "run.json").write_text('{"format": "shrinkc-run"}')
        with pytest.raises(OutputError, match="another shrinkc is working on"):
            compress(str(stories), tmp_path / "o", recipe, reporter=Silent())


def test_two_at_once_in_the_first_second(stories: Path, recipe: Recipe, tmp_path: Path) -> None:
    """The other process has the lock, and at most a part of its first step."""
    out = tmp_path / "o"
    (out / ".00-source.1234.partial").mkdir(parents=True)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for force in (False, True):
            with pytest.raises(OutputError, match="another shrinkc is working on"):
                compress(str(stories), out, recipe, reporter=Silent(), force=force)
    assert sorted(p.name for p in out.iterdir()) == [".00-source.1234.partial", ".lock"]
    # the other process was killed, and its files do not prevent a run
    short = parse_recipe({"depth": {"layers": [2]}})
    compress(str(stories), out, short, reporter=Silent())
    assert not list(out.glob(".*"))


def test_a_real_second_process(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[depth]\nlayers = [1]\n")
    command = [
        sys.executable, "-m", "shrinkc", "compress", str(stories), "-o", str(tmp_path / "o"),
        "--recipe", str(tmp_path / "r.toml"),
    ]  # fmt: skip
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [" ".join(process.communicate()[1].split()) for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    for code, words in zip(codes, said, strict=True):
        # on a busy machine, one may end before the other starts
        assert code == 0 or (code == 40 and "another shrinkc is working on" in words), words
    assert not (tmp_path / "o" / ".lock").exists()


def test_a_lock_that_its_owner_has_just_removed_does_not_count(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    lock, tries = fcntl.flock, []

    def late(file: Any, how: int) -> None:
        tries.append(file)
        if len(tries) == 1:
            shutil.rmtree(out)  # the other process ends between our open and our lock
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    compress(str(stories), out, parse_recipe({"depth": {"layers": [2]}}), reporter=Silent())
    assert len(tries) == 2


def test_a_file_system_without_locks_is_not_called_busy(
    stories: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OutputError, match="No locks available"):
        compress(str(stories), tmp_path / "o", recipe, reporter=Silent())
