"""File systems that are soon full, for users who may mount one and for those who may not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PRELOADED = "SMALL_DISKS"  # set in a process in which small_disk.c watches this folder
SOURCE = Path(__file__).with_suffix(".c")


def mount(kib: int, place: Path) -> bool:
    """Whether a file system of that size could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(place: Path) -> None:
    """Also where a file is still open."""
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@functools.cache
def may_mount() -> bool:
    """Whether this user may mount file systems here."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = mount(4, Path(folder))
        if mounted:
            unmount(Path(folder))
    return mounted


def run_preloaded(test: pytest.Function, folder: Path) -> None:
    """Runs ``test`` in a process of its own, in which folders of ``folder`` act as small disks."""
    library, disks = folder / "small_disk.so", folder / "disks"
    disks.mkdir()
    compiler = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    try:
        subprocess.run([*compiler, str(SOURCE), "-o", str(library)], check=True)
    except OSError as error:
        pytest.skip(f"neither may a small file system be mounted here, nor is there a cc: {error}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.nodeid]
    ran = subprocess.run(
        [*command, "--basetemp", str(folder / "files")],
        cwd=test.config.rootpath,
        env={**os.environ, PRELOADED: str(disks.resolve()), "LD_PRELOAD": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ran.returncode != 0 or "1 passed" not in ran.stdout:
        pytest.fail(ran.stdout, pytrace=False)
