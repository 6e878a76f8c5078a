"""The CMakeLists.txt of a compiled directory: a firmware's own CMake project builds and links the library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shrinkc.targets import KIB, PULP_OPEN, RV32, SIRACUSA, Target, board_of

from .programs import ENV, Program, need
from .test_firmware import ANSWER, FIRMWARE, compile_story, talk, write_lines
from .test_library import ARCH, CROSS, compile_two, make_library, write_expected

TOOLCHAIN = FIRMWARE / "rv32.cmake"
BOARD = board_of(150 * KIB, 700 * KIB)
# The processor is in the project, not in a toolchain file. The flags of other languages are not for the library.
PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(two_models LANGUAGES C ASM)
add_compile_options({flags} $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
add_link_options({flags})
add_subdirectory({first} first)
add_subdirectory({second} second)
add_executable(two_models {sources})
target_include_directories(two_models PRIVATE {folder})
target_link_libraries(two_models PRIVATE first second)
"""


def need_cmake(on: str, target: Target = SIRACUSA) -> None:
    need(on, target)
    if shutil.which("cmake") is None:
        pytest.skip("cmake: not found on PATH; apt-get install cmake")


def build(source: Path, to: Path, *options: str | Path) -> None:
    """Configure and build a CMake project."""
    for command in (["-S", source, "-B", to, *options], ["--build", to, "-j2"]):
        done = subprocess.run(
            ["cmake", *command], capture_output=True, text=True, env=ENV, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert "warning" not in done.stderr.lower(), done.stderr


def build_example(program: Program, to: Path, *options: str | Path) -> Path:
    """examples/firmware with the story model; returns the folder of the library."""
    build(FIRMWARE, to, f"-DOUT={program.out}", f"-DANSWER={ANSWER}", *options)
    return to / "model"


@pytest.mark.parametrize("board", ["host", "virt"])
def test_a_conversation(board: str, tmp_path: Path) -> None:
    need_cmake("host" if board == "host" else "qemu", BOARD)
    model, program = compile_story(BOARD, tmp_path / "out")
    cross = [] if board == "host" else ["--toolchain", TOOLCHAIN]
    build_example(program, tmp_path / "build", *cross)
    firmware = tmp_path / "build/firmware"
    run = ("{}",) if board == "host" else BOARD.program.emulator
    command = [part.format(firmware) for part in run]
    talk(command, model, program.graph, write_lines(tmp_path / "lines", board), ANSWER)


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["host", "virt", "siracusa", "pulp-open"])
def test_the_library_is_that_of_make(goal: str, tmp_path: Path) -> None:
    need_cmake("host" if goal == "host" else "qemu")
    target = {"siracusa": SIRACUSA, "pulp-open": PULP_OPEN}.get(goal, BOARD)
    _, program = compile_story(target, tmp_path / "out")
    cross = [] if goal == "host" else ["--toolchain", TOOLCHAIN]
    board = "virt" if target is BOARD else "pulp"
    library = build_example(program, tmp_path / "build", f"-DBOARD={board}", *cross)
    made = make_library(program, goal)
    ar = "ar" if goal == "host" else f"{CROSS}ar"
    member = subprocess.run([ar, "p", made, "stories_model.o"], capture_output=True, check=True)
    assert member.stdout == (library / "stories_model.o").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("on", ["host", "qemu"])
def test_two_models_in_one_project(on: str, tmp_path: Path) -> None:
    need_cmake(on)
    models = compile_two(tmp_path, RV32)
    write_expected(models, tmp_path)
    sources: list[Path] = [Path(__file__).with_name("two_models.c")]
    flags: tuple[str, ...] = ("-g",)
    options = []
    if on == "qemu":
        sources.append(models[0].out / "src/platform/freestanding/mem.c")
        flags = (*ARCH, "-O1", "-ffreestanding", "-fno-tree-loop-distribute-patterns", "-nostdlib",
                 "-Wl,--no-warn-rwx-segments", "-Wl,--no-relax")  # fmt: skip
        options = ["-DCMAKE_SYSTEM_NAME=Generic", f"-DCMAKE_C_COMPILER={CROSS}gcc",
                   "-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]  # fmt: skip
    (tmp_path / "CMakeLists.txt").write_text(
        PROJECT.format(
            flags=" ".join(flags),
            first=models[0].out,
            second=models[1].out,
            sources=" ".join(map(str, sources)),
            folder=tmp_path,
        )
    )
    build(tmp_path, tmp_path / "build", *options)
    command = [*(["qemu-riscv32"] if on == "qemu" else []), tmp_path / "build/two_models"]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_page_shows_the_toolchain_file() -> None:
    page = (FIRMWARE.parents[1] / "docs/how-to/firmware.md").read_text()
    _, settings = TOOLCHAIN.read_text().split("compiler.\n")
    assert f"```cmake\n{settings}```" in page
