"""`make lib`: what a firmware links is one archive and one header, and two models fit one program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import load_model
from shrinkc.simulate.proof import Request, reference
from shrinkc.targets import SIRACUSA, Target

from .programs import ENV, Program, compile_model, need

CONTEXT, TURNS, TEXT = 32, 8, "the sea"
PROMPTS = ((5, 9, 17), (7, 3, 60))
ENCODED: dict[str, list[int]] = {}  # ids of TEXT by model
FROM_C = {"memcpy", "memmove", "memset", "memcmp"}
FROM_LIBGCC = {"__ashldi3", "__lshrdi3", "__ashrdi3", "__clzsi2", "__udivdi3", "__muldi3"}
CROSS = "riscv64-unknown-elf-"
ARCH = ("-march=rv32imc_zicsr", "-mabi=ilp32")


def make_library(program: Program, goal: str, *options: str) -> Path:
    """The archive of a compiled directory."""
    subprocess.run(["make", "-s", "-C", program.out, f"lib-{goal}", *options], check=True, env=ENV)
    return next((program.out / "build" / goal).glob("lib*.a"))


def compile_two(folder: Path, target: Target = SIRACUSA) -> tuple[Program, Program]:
    """Two models of different shapes."""
    write_tiny_llama(folder / "first", layers=2, vocab=384, tokenizer="bytelevel")
    write_tiny_llama(
        folder / "second", layers=1, vocab=400, hidden=48, tokenizer="bytelevel", seed=3
    )
    programs = []
    for name in ("first", "second"):
        model = load_model(folder / name)
        ENCODED[name] = model.tokenizer.encode(TEXT)
        programs.append(
            compile_model(model, folder / f"{name}-out", context=CONTEXT, target=target, name=name)
        )
    return programs[0], programs[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Program]:
    need("host")
    return compile_two(tmp_path_factory.mktemp("library"))


def write_expected(models: tuple[Program, Program], folder: Path) -> None:
    """expected.h: prompts, and the interpreter's tokens after them."""
    told = [
        reference(program.graph, Request(prompt, TURNS, ignore_eos=True)).tokens
        for program, prompt in zip(models, PROMPTS, strict=True)
    ]

    def rows(values: object) -> str:
        return str(values).replace("[", "{").replace("]", "}").replace("(", "{").replace(")", "}")

    (folder / "expected.h").write_text(
        "#include <stdint.h>\n"
        f"#define CONTEXT {CONTEXT}\n#define TURNS {TURNS}\n#define PROMPT {len(PROMPTS[0])}\n"
        f'#define TEXT "{TEXT}"\n'
        f"static const int encoded[2] = {rows([len(ids) for ids in ENCODED.values()])};\n"
        f"static const uint32_t last_id[2] = {rows([ids[-1] for ids in ENCODED.values()])};\n"
        f"static const uint32_t prompts[2][PROMPT] = {rows(PROMPTS)};\n"
        f"static const int expected[2][TURNS] = {rows(told)};\n"
    )


def link(
    models: tuple[Program, Program], folder: Path, goal: str, *command: str | Path, san: str = ""
) -> Path:
    """two_models.c with both libraries and the header of one."""
    options = [f"SAN={san}"] if goal == "host" else []
    archives = [make_library(program, goal, *options) for program in models]
    write_expected(models, folder)
    subprocess.run(
        [*command, f"-I{folder}", f"-I{archives[0].parent}", Path(__file__).with_name("two_models.c"),
         *archives, *(["-lgcc"] if goal == "rv32" else []), "-o", folder / goal],
        check=True,
    )  # fmt: skip
    return folder / goal


@pytest.mark.parametrize("san", ["1", ""], ids=["sanitized", "optimised"])
def test_two_models_in_one_program_on_the_host(
    models: tuple[Program, Program], san: str, tmp_path: Path
) -> None:
    flags = ["-fsanitize=address,undefined"] if san else []
    program = link(models, tmp_path, "host", "cc", "-g", *flags, "-pthread", san=san)
    assert subprocess.run([program], check=False).returncode == 0


def test_two_models_in_one_program_on_rv32(models: tuple[Program, Program], tmp_path: Path) -> None:
    need("qemu")
    mem = models[0].out / "src/platform/freestanding/mem.c"
    program = link(
        models, tmp_path, "rv32", f"{CROSS}gcc", *ARCH, "-O1", "-ffreestanding", "-nostdlib", "-static",
        "-fno-tree-loop-distribute-patterns", mem, "-Wl,--no-warn-rwx-segments", "-Wl,--no-relax",
    )  # fmt: skip
    assert subprocess.run(["qemu-riscv32", program], check=False).returncode == 0


@pytest.mark.parametrize("goal", ["rv32", "siracusa"])
def test_a_library_has_one_symbol_and_needs_no_c_library(
    models: tuple[Program, Program], goal: str
) -> None:
    need("qemu")
    archive = make_library(models[0], goal)
    listed = subprocess.run(
        [f"{CROSS}nm", "-g", archive], check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split() for line in listed.splitlines() if line and not line.endswith(":")]
    defined = {words[-1] for words in symbols if words[-2] != "U"}
    needed = {words[-1] for words in symbols if words[-2] == "U"}
    name = archive.stem.removeprefix("lib")
    assert defined == {f"{name}_model", f"{name}_tokenizer", "llm_encode", "llm_encode_room"}
    assert needed <= FROM_C | FROM_LIBGCC
