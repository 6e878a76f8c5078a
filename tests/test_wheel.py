"""Wheel and sdist, installed where no checkout is in reach: packaged data folders exist only there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build import find_tool

ROOT = Path(__file__).resolve().parents[1]
DATA = ("templates", "runtime_c", "toolchain")

pytestmark = pytest.mark.slow


def build(kind: str, source: Path, out: Path) -> Path:
    """The file that ``source`` becomes as a ``kind`` ("wheel" or "sdist"), with the backend at hand."""
    script = f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(out)]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module", params=["from the checkout", "from the sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = ROOT, tmp_path_factory.mktemp("wheel")
    if request.param == "from the sdist":
        with tarfile.open(request.getfixturevalue("sdist")) as archive:
            archive.extractall(out, filter="data")
        (source,) = out.glob("shrinkc-*")
    return build("wheel", source, out)


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
    assert {"shrinkc/py.typed", "shrinkc/lm_eval_tasks/triviaqa.yaml"} <= names


def test_the_licence_travels_along(wheel: Path, sdist: Path) -> None:
    text = (ROOT / "LICENSE").read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (
            n.removesuffix("/METADATA") for n in archive.namelist() if n.endswith("/METADATA")
        )
        assert archive.read(f"{info}/licenses/LICENSE") == text
        assert b"License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").splitlines()
    with tarfile.open(sdist) as archive:
        (name,) = (n for n in archive.getnames() if n.endswith("/LICENSE"))
        file = archive.extractfile(name)
        assert file is not None
        assert file.read() == text


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
    assert "verified bit for bit" in done.stderr


@pytest.mark.slow  # the harness indexes all its tasks
def test_the_command_of_lm_eval_knows_our_model(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    command = (
        "-m",
        "lm_eval",
        "--model",
        "shrinkc",
        "--model_args",
        "path=./nowhere",
        "--tasks",
        "piqa",
    )
    done = outside(installed, "python", *command, cwd=tmp_path)
    assert "./nowhere does not exist" in done.stderr
    script = "from importlib.metadata import entry_points as e; e(group='lm_eval.models')['shrinkc'].load()"
    done = outside(installed, "python", "-c", script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
