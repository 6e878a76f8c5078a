"""A directory for a board as an external module of Zephyr.  Needs a Zephyr tree in ZEPHYR_BASE, with its Python
packages and dtc on PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from threading import Timer

import pytest

from shrinkc.targets import RV32

from .programs import ENV
from .test_cmake import BOARD, CROSS, need_cmake
from .test_firmware import ANSWER, FIRMWARE, LINES, compile_story, expected_bytes

SAMPLE = FIRMWARE.parent / "zephyr"


def test_the_files_of_the_module(tmp_path: Path) -> None:
    compile_story(BOARD, tmp_path / "board")
    module = (tmp_path / "board/zephyr/module.yml").read_text()
    kconfig = re.search("kconfig: (.*)", module)
    assert "name: stories\n" in module and kconfig
    assert "config LLM_STORIES\n" in (tmp_path / "board" / kconfig[1]).read_text()
    assert "CONFIG_LLM_STORIES" in (tmp_path / "board/CMakeLists.txt").read_text()
    assert "CONFIG_LLM_STORIES=y" in (SAMPLE / "prj.conf").read_text()
    compile_story(RV32, tmp_path / "linux")
    assert not (tmp_path / "linux/zephyr").exists()


def build(module: Path, to: Path) -> Path:
    """Build the sample with Debian's compiler, if the environment names no other; returns the program."""
    prefix = (shutil.which(f"{CROSS}objcopy") or "").removesuffix("objcopy")
    env = {"ZEPHYR_TOOLCHAIN_VARIANT": "cross-compile", "CROSS_COMPILE": prefix, **ENV}
    options = [
        "-DBOARD=qemu_riscv32", "-DBUILD_VERSION=0", f"-DZEPHYR_MODULES={module}", f"-DANSWER={ANSWER}",
    ]  # fmt: skip
    for command in (["-S", SAMPLE, "-B", to, *options], ["--build", to, "-j2"]):
        done = subprocess.run(
            ["cmake", *command], capture_output=True, text=True, env=env, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return to / "zephyr/zephyr.elf"


@pytest.mark.slow
def test_a_conversation(tmp_path: Path) -> None:
    if not os.environ.get("ZEPHYR_BASE"):
        pytest.skip("ZEPHYR_BASE is not set: no Zephyr tree")
    need_cmake("qemu", BOARD)
    model, program = compile_story(BOARD, tmp_path / "out")
    told = expected_bytes(program.graph, model.tokenizer, ANSWER)
    machine = [
        "qemu-system-riscv32", "-nographic", "-M", "virt", "-bios", "none", "-m", "256", "-net", "none",
        "-icount", "shift=0", "-kernel", build(program.out, tmp_path / "build"),
    ]  # fmt: skip
    with subprocess.Popen(
        machine, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as emulator:
        assert emulator.stdin and emulator.stdout
        stop = Timer(300, emulator.kill)
        stop.start()
        said = emulator.stdout.readline()
        assert b"Booting Zephyr" in said
        emulator.stdin.write("".join(f"{line}\n" for line in LINES).encode())
        while not said.endswith(told) and (more := emulator.stdout.read(4096)):
            said += more.replace(b"\r", b"")
        stop.cancel()
        emulator.kill()
    assert said.endswith(told), (said, told)
