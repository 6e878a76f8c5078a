"""The generated headers are what the package states, C holds sizes to its structs, and nobody else states them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from end_to_end.programs import compile_model, need
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import (
    HASH_MULTIPLIER,
    INPUT_MAGIC,
    Exit,
    InputWord,
    Line,
    input_block,
    input_words,
)
from shrinkc.core import resources
from shrinkc.core.resources import resource
from shrinkc.importer import load_model
from shrinkc.targets import SIRACUSA, TARGETS

from .header import headers

CONTEXT = 16


@pytest.mark.parametrize("name", headers())
def test_a_header_is_made_of_the_contract(name: str, request: pytest.FixtureRequest) -> None:
    """It is no generated file of a program: C can be read, and platforms tried, without a model."""
    path, text = resource("runtime_c") / name, headers()[name]
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "python -m pytest tests/abi --update-golden"


def test_an_input_has_every_word_in_its_place() -> None:
    values = {
        word: 100 + word for word in InputWord if word.name not in ("MAGIC", "PROMPT", "TOKENS")
    }
    words = input_block(CONTEXT, (7, 8, 9), values)
    assert len(words) == input_words(CONTEXT) == 16 + CONTEXT
    assert words[:2] == [INPUT_MAGIC, 3]
    assert words[2:13] == list(range(102, 113))
    assert words[13:16] == [0] * 3 and words[16:20] == [7, 8, 9, 0]
    assert INPUT_MAGIC.to_bytes(4, "little") == b"SCI1"  # the host's platform looks for it in files


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """src of a compiled directory."""
    need("host")
    folder = tmp_path_factory.mktemp("sizes")
    write_tiny_llama(folder / "model")
    return compile_model(load_model(folder / "model"), folder / "out", context=CONTEXT).out / "src"


def compiles(src: Path, on: str) -> bool:
    """Whether the files that hold sizes compile; no other fault than a wrong size may be found."""
    compiler, flags = {
        "host": ("cc", ()),
        "rv32": (
            "riscv64-unknown-elf-gcc",
            ("-march=rv32imc_zicsr", "-mabi=ilp32", "-ffreestanding"),
        ),
    }[on]
    platforms = (f"platform/{folder}" for folder in TARGETS[on].program.folders)
    includes = [f"-I{src / folder}" for folder in (".", "runtime", "program", *platforms)]
    files = [src / "forward.c", *(src / f"runtime/sc_{name}.c" for name in ("tables", "session"))]
    files.append(src / "program/program.c")
    given = [
        f"-DSC_INPUT_WORDS={input_words(CONTEXT)}",
        "-DSC_MODEL=test_model",
        "-DSC_TEXT_BYTES=8",
        *(f"-DSC_HAS_{level.name.upper()}" for level in SIRACUSA.stored),
    ]
    command = [compiler, "-std=c11", "-fsyntax-only", "-w", *given, *flags, *includes]
    done = subprocess.run(
        [*map(str, command), *map(str, files)], capture_output=True, text=True, check=False
    )
    wrong = "static assertion" in done.stderr or "is negative" in done.stderr
    assert done.returncode == 0 or wrong, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("QVEC_BYTES", "host"),
        ("PART_BYTES", "host"),
        ("MATRIX_BYTES", "rv32"),
        ("TABLE_BYTES", "rv32"),
        ("LAYER_BYTES", "rv32"),
        ("HEAD_SCRATCH_BYTES", "host"),
        ("HEAD_STATE_BYTES", "host"),
        ("K_BLOCK_BYTES", "host"),
        ("V_BLOCK_BYTES", "host"),
    ],
)
def test_a_size_that_is_not_that_of_c_does_not_compile(sources: Path, name: str, on: str) -> None:
    need("host" if on == "host" else "qemu")
    assert compiles(sources, on)
    stated = [
        path
        for path in (sources / "model.h", sources / "runtime" / "sc_abi.h")
        if f"#define SC_{name} " in path.read_text()
    ]
    assert len(stated) == 1
    text = stated[0].read_text()
    stated[0].write_text(re.sub(rf"(#define SC_{name}) \d+", r"\1 8", text))
    try:
        assert not compiles(sources, on)
    finally:
        stated[0].write_text(text)


def test_nobody_else_states_it() -> None:
    """Lines, magic, multiplier and the platforms' exit codes are written down in one file of each kind."""
    package = Path(resources.__file__).parents[1]
    files = [*package.rglob("*.py"), *resource("runtime_c").rglob("*.[chS]")]
    numbers = "|".join(f"{n:x}" for n in (HASH_MULTIPLIER, INPUT_MAGIC, Exit.PLATFORM, Exit.STACK))
    stated = re.compile(
        rf"[\"'](\\n)?@[A-Z][ \"']|0x0*({numbers})u?\b|0x{HASH_MULTIPLIER:08x}", re.IGNORECASE
    )
    found = {
        f.relative_to(package.parents[1]).as_posix() for f in files if stated.search(f.read_text())
    }
    stated_in = {f"runtime_c/{name}" for name in headers()}
    assert found == {"compiler/shrinkc/abi/contract.py", *stated_in}
    assert all(re.fullmatch("@[A-Z]", line) for line in Line)
