"""A format is three files: a 7-bit one that no product has is added to a copy of the package by its two
files and its lines in formats.py, and is then offered, planned, packed, compiled, run and proved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from end_to_end.programs import need
from helpers.product import copy_with
from helpers.tiny_llama import write_tiny_llama

TESTS = Path(__file__).resolve().parents[1]
OWN = Path(__file__).parent / "another_format"
ADDED = {
    "compiler/shrinkc/storage/w7.py": OWN / "w7.py",
    "runtime_c/include/sc_dot_w7.h": OWN / "sc_dot_w7.h",
}
PROMPT = "abc"

pytestmark = pytest.mark.slow  # processes of a copied package

Run = Callable[..., str]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel carries, with three files more or changed."""
    return copy_with(
        tmp_path_factory.mktemp("product"),
        {file: source.read_text() for file, source in ADDED.items()},
        "compiler/shrinkc/storage/formats.py",
        {
            "from shrinkc.storage.w8": "from shrinkc.storage.w7 import W7\nfrom shrinkc.storage.w8",
            "(W8, W6, W5, W4, W3, W2)": "(W8, W7, W6, W5, W4, W3, W2)",
        },
        "W7",
    )


@pytest.fixture(scope="module")
def python(product: Path) -> Run:
    """python(...): runs Python with the copy as its shrinkc, and gives what it printed."""

    def run(*arguments: object, code: int = 0) -> str:
        paths = (product / "compiler", TESTS)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, cwd=product, check=False
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    where = run("-c", "import shrinkc; print(shrinkc.__file__)")
    assert Path(where.strip()).is_relative_to(product)
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    # rows of whole units of 7 bits
    write_tiny_llama(folder, tied=False, hidden=32, intermediate=96)
    return folder


def test_it_is_offered_and_refused_by_name(python: Run) -> None:
    for command in ("plan", "compile"):
        assert "--bits [8|7|6|5|4|3|2]" in python("-m", "shrinkc", command, "--help")
    code = "from shrinkc.quantize import QuantOptions\ntry: QuantOptions(bits=1)\n"
    allowed = python("-c", f"{code}except Exception as error: print(error)")
    assert "allowed: 8, 7, 6, 5, 4, 3, 2." in allowed


def test_its_bytes_are_those_of_its_bits(python: Run, model: Path) -> None:
    def plan(bits: int) -> int:
        options = ("--bits", bits, "--embedding-bits", bits, "--context", 16, "--json")
        return int(json.loads(python("-m", "shrinkc", "plan", model, *options))["weight_bytes"])

    assert plan(6) < plan(7) < plan(8)


MIXED = ("--bits", 7)  # with a head of 8 bit
PER_ROW = ("--bits", 7, "--embedding-bits", 7)
GROUPS = (*PER_ROW, "--group-size", 16, "--short-last-group", "--asymmetric")


@pytest.mark.parametrize(
    ("on", "options", "make"),
    [
        ("host", MIXED, "SAN=1"),
        ("host", GROUPS, "SAN=1"),
        ("qemu", PER_ROW, "OPT=-O2"),
        pytest.param("gvsoc", MIXED, "OPT=-O2", marks=pytest.mark.gvsoc),
    ],
)
def test_its_programs_are_the_interpreters_equals(
    python: Run, model: Path, tmp_path: Path, on: str, options: tuple[object, ...], make: str
) -> None:
    need(on)
    out = tmp_path / "out"
    command = ("compile", model, "-o", out, "--context", 16, "--engines", "cores")
    python("-m", "shrinkc", *command, *options)
    assert any("X(7, 32, 1)" in file.read_text() for file in out.rglob("*.h"))
    asked = ("--prompt", PROMPT, "--tokens", 6, "--ignore-eos", "--make", make, "--json")
    verdict = json.loads(python("-m", "shrinkc", "run", out, "--on", on, *asked))["verdict"]
    assert verdict["compared"] > 850 and verdict["mismatched"] == 0, verdict


def test_the_tests_of_packing_and_kernels_take_it_up(python: Run) -> None:
    """Extreme integers and embedding rows, with the sanitizers."""
    need("host")
    kernels = TESTS / "kernels" / "test_matrices.py"
    packing = TESTS / "storage" / "test_formats.py"
    # the project's setting would put its own package before the copy
    options = ("-q", "-p", "no:cacheprovider", "-o", "pythonpath=")
    some = "test_formats or (sanitized and hd6 and not hd64 and not edge)"
    said = python("-m", "pytest", *options, "-k", some, packing, kernels)
    assert " passed" in said and "skipped" not in said


def test_a_number_that_c_and_python_state_differently_does_not_compile(
    product: Path, python: Run, model: Path, tmp_path: Path
) -> None:
    need("host")
    header = product / "runtime_c/include/sc_dot_w7.h"
    text = header.read_text()
    header.write_text(text.replace("SC_W7_FOLD = 1", "SC_W7_FOLD = 2"))
    try:
        compiled = ("compile", model, "-o", tmp_path / "out", "--engines", "cores")
        python("-m", "shrinkc", *compiled, "--bits", 7)
        python("-m", "shrinkc", "run", tmp_path / "out", "--prompt", PROMPT, code=51)
    finally:
        header.write_text(text)
