"""A board's program in QEMU's full-system emulator: start-up, console, input, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import INPUT_WORDS, input_words, make_directory, pattern

from conftest import ENV, need
from shrinkc.build import PROGRAM, build_program
from shrinkc.core.errors import BuildFailed, RunFailed, ToolMissing, UsageError
from shrinkc.simulate import RunOutput, run_program
from shrinkc.targets import KIB, MIB, Target, board_of

BOARD = board_of(64 * KIB, 256 * KIB)
BYTES = 100_003
# by the seed of the input: an exit code, or a failure
ENDS = {"trap": 1001, "overflow": 1002, "hang": 1003, "write": 1004, "nowhere": 1005}
SOURCE = """
#include "program.h"
#include "sc_contract.h"
#include "sc_platform.h"

static uint32_t zeroed[5000], values[3] = {7, 8, 9};
static uint8_t byte = 5;
static const uint32_t constant[2] = {3, 4};

static void text(const char *s) {
    while (*s) sc_write(s++, 1);
}

static void show(const char *what, uint32_t value) {
    char digits[13] = "           \\n";
    int at = 11;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    text(what);
    text(digits + at - 1);
}

static uint32_t deeper(uint32_t depth) {
    volatile uint32_t frame[16];
    for (int i = 0; i < 16; i++) frame[i] = depth;
    return depth == 0 ? 0 : deeper(depth - 1) + frame[depth % 16];
}

int sc_program(void) {
    uint32_t *in = sc_input_words(), wrong = 0, sum = 0;
    for (uint32_t i = 0; i < 5000; i++) sum |= zeroed[i];
    show("zeroed", sum == 0);
    show("values", values[0] + values[1] + values[2] + byte);
    values[0] = 1;
    for (uint32_t i = 0; i < SC_TEST_WMEM; i++) {
        const uint32_t x = (i + 1) * 2654435761u + 40503u;
        wrong += sc_blob_wmem[i] != (uint8_t)(x >> 24 ^ x >> 13);
    }
    show("wrong", wrong);
    show("in flash", (uintptr_t)sc_blob_wmem >> 28 == 2 && (uintptr_t)constant >> 28 == 2 &&
                         (uintptr_t)sc_program >> 28 == 2);
    show("in RAM", (uintptr_t)zeroed >> 31 && (uintptr_t)values >> 31 && (uintptr_t)&wrong >> 31);
    for (uint32_t i = 0; i < SC_INPUT_WORDS; i++) show("input", in[i]);
    const uint32_t time = sc_time();
    text("and a part of a line");
    switch (in[SC_IN_SEED]) {
    case 1001: __asm__ volatile(".word 0");
    case 1002: return (int)deeper(100000);
    case 1003: for (;;) __asm__ volatile("");
    case 1004: *(volatile uint32_t *)0x100u = 1; break; /* on this board nothing is there */
    case 1005: ((void (*)(void))0x40)();
    }
    return sc_time() - time > 100 ? (int)in[SC_IN_SEED] : 99;
}
"""


def make(folder: Path, target: Target = BOARD, size: int = BYTES) -> Path:
    return make_directory(folder / "out", sizes={"wmem": size}, source=SOURCE, target=target)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("virt")
    out = make(tmp_path_factory.mktemp("board"))
    build_program(out, "virt", env=ENV)
    return out


def run(out: Path, end: int = 0, timeout_s: float = 60, target: Target = BOARD) -> RunOutput:
    return run_program(out, "qemu", input_words(end), env=ENV, timeout_s=timeout_s, target=target)


def test_memory_input_and_console(out: Path) -> None:
    done = run(out)
    assert (done.exit_code, done.errors) == (0, [])
    assert done.lines[:5] == ["zeroed 1", "values 29", "wrong 0", "in flash 1", "in RAM 1"]
    assert done.lines[5:-1] == [f"input {word}" for word in input_words()]
    assert done.lines[-1] == "and a part of a line"
    assert len(pattern(1, BYTES)) == BYTES and len(input_words()) == INPUT_WORDS


def test_the_exit_code_is_the_programs(out: Path) -> None:
    assert run(out, 42).exit_code == 42


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("trap", "a core trapped .* on qemu(.|\n)*trap, cause 0x00000002"),
        (
            "overflow",
            "a stack overflowed on qemu(.|\n)*platform: stack overflow, cause 0x00000007 address 0x7fff",
        ),
        ("write", "trap, cause 0x00000007 address 0x00000100 pc 0x2000"),
        ("nowhere", "trap, cause 0x00000001 address 0x00000040"),
    ],
)
def test_a_trap_is_reported(out: Path, end: str, said: str) -> None:
    with pytest.raises(RunFailed, match=said):
        run(out, ENDS[end])


@pytest.mark.slow
def test_a_hang_is_ended(out: Path) -> None:
    with pytest.raises(RunFailed, match="did not end within 2 s(.|\n)*and a part of a line"):
        run(out, ENDS["hang"], timeout_s=2)


@pytest.mark.slow
def test_same_bytes_in_another_directory(out: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "another name")
    program = build_program(other, "virt", env={**ENV, "CCACHE_DISABLE": "1"})
    assert program.read_bytes() == (out / PROGRAM["virt"]).read_bytes()


@pytest.mark.parametrize(
    ("ram", "flash", "said"),
    [(8 * KIB, 256 * KIB, "`RAM' overflowed by"), (64 * KIB, 98 * KIB, "`FLASH' overflowed by")],
)
def test_the_linker_refuses_what_does_not_fit(
    tmp_path: Path, ram: int, flash: int, said: str
) -> None:
    need("virt")
    with pytest.raises(BuildFailed, match=said):
        build_program(make(tmp_path, board_of(ram, flash)), "virt", env=ENV)


def test_a_program_for_a_larger_flash_than_the_emulators(out: Path, tmp_path: Path) -> None:
    large = tmp_path / PROGRAM["virt"]
    large.parent.mkdir(parents=True)
    with large.open("wb") as file:
        file.truncate(65 * MIB)
    with pytest.raises(UsageError, match="more bytes than the flash of QEMU's board, 67108864"):
        run(tmp_path, target=board_of(64 * KIB, 128 * MIB))


def test_a_missing_emulator_is_named(out: Path) -> None:
    with pytest.raises(ToolMissing, match="qemu-system-riscv32.*not found") as missing:
        run_program(out, "qemu", input_words(), env={"PATH": ""}, timeout_s=9, target=BOARD)
    assert "apt-get install qemu-system-riscv" in str(missing.value.hint)
