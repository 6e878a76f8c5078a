"""The wheel, installed where no checkout is in reach: packaged data folders exist only there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool

ROOT = Path(__file__).resolve().parents[1]
DATA = ("templates", "runtime_c", "toolchain")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--wheel-dir",
        str(out),
    ]
    subprocess.run(
        [*command, "--no-build-isolation", "--quiet", "--disable-pip-version-check"], check=True
    )
    (file,) = out.glob("shrinkc-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; the libraries come from PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    return folder


def outside(folder: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of ``folder``.

    Folders on PYTHONPATH lend their packages, but their .pth files, through which an editable
    install is found, are not read.
    """
    env = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    program = [str(folder / "bin" / command[0]), *command[1:]]
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_carries_every_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in DATA:
        files = {p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert files
        assert {f"shrinkc/_data/{f.as_posix()}" for f in files} <= names
    package = ROOT / "compiler"
    modules = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    assert modules <= names
    assert not [n for n in names if "__pycache__" in n or "/tests/" in n]


def test_it_compiles_and_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    where = outside(
        installed, "python", "-c", "import shrinkc; print(shrinkc.__file__)", cwd=tmp_path
    )
    assert str(installed) in where.stdout, where.stderr
    done = outside(installed, "shrinkc", "compile", "model", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/src/toolchain/siracusa/link.ld").is_file()
    for tool in ("cc", "make"):
        if not find_tool(tool, dict(os.environ)).usable:
            pytest.skip(f"{tool} is missing: compiled but not run")
    done = outside(
        installed, "shrinkc", "run", "out", "--prompt", "a", "--tokens", "4", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "0 mismatched" in done.stderr
