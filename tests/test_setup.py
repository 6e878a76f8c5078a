"""The files that set everything up agree with each other."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYTHONS = ("3.11", "3.12", "3.13")


def locked(python: str) -> dict[str, str]:
    """Name -> version that the lock gives a Linux with that Python."""
    versions: dict[str, str] = {}
    place = {k: str(v) for k, v in default_environment().items()}
    place |= {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
    }
    for line in (ROOT / ".ci/requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(place):
            (version,) = pin.specifier
            assert version.operator == "==", line
            assert canonicalize_name(pin.name) not in versions, f"{line}: twice for {python}"
            versions[canonicalize_name(pin.name)] = version.version
    return versions


def test_the_lock_has_a_version_of_everything_that_is_asked_for() -> None:
    """`make lock` after a change of pyproject.toml makes this pass again."""
    asked = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    wanted = [r for r in map(Requirement, asked) if r.name != PROJECT["name"]]
    assert len(wanted) > 20
    for python in PYTHONS:
        versions = locked(python)
        for requirement in wanted:
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} is locked to {version}"


def test_the_pythons_of_the_classifiers_are_locked() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tuple(named) == PYTHONS


def test_the_hooks_are_the_checks_of_the_gate() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    called = re.findall(r"entry: make --silent (\S+)", hooks)
    (checks,) = re.findall(r"^lint: (.*)$", MAKEFILE, re.MULTILINE)
    assert called == checks.split()
    assert re.search(r"^test: lint$", MAKEFILE, re.MULTILINE)
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\S+)", ci, re.MULTILINE) == ["test", "test-slow"]


def test_the_tiers_are_all_tests() -> None:
    """Each test is in one of them, and `make test-all` is both."""
    assert re.findall(r"^TIER_\w+ = (.*)$", MAKEFILE, re.MULTILINE) == ['-m "not slow"', "-m slow"]
    assert re.search(r"^test-all: test test-slow$", MAKEFILE, re.MULTILINE)


def test_every_target_that_the_makefile_offers_exists() -> None:
    offered = re.findall(r"^# make (\S+)", MAKEFILE, re.MULTILINE)
    assert len(offered) > 10
    for target in offered:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")
def test_the_tests_run_on_all_cores() -> None:
    """The Makefile exports OMP_NUM_THREADS, which nproc takes for the number of cores."""
    env = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "JOBS")
    }
    asked = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert f" -n {min(len(os.sched_getaffinity(0)), 4)} " in asked.stdout


def test_the_image_installs_from_the_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)
    installing = [stage for stage in stages if re.search(r"\bpip (--python \S+ )?install", stage)]
    assert len(installing) >= 4
    for stage in installing:
        inherits = stage.startswith(("build ", "tests "))  # from where the variable is set
        assert inherits or "PIP_CONSTRAINT=/src/.ci/requirements.lock" in stage, stage
    for line in dockerfile.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert source.startswith("--") or (ROOT / source).exists(), line
