"""An RV32IMC board with RAM and mapped flash of any size: code runs in flash, and weights are read there."""

from __future__ import annotations

from dataclasses import replace

from shrinkc.core.errors import UsageError
from shrinkc.targets.rv32 import RV32
from shrinkc.targets.target import KIB, L1, MAPPED, MIB, Image, Level, Program, Target

STACK = 4 * KIB  # in RAM; the linker script reserves it
VARIABLES = 2 * KIB  # of the runtime and of start-up code, in RAM
# with strings and small tables, in flash: 48.9 KiB with weights of all widths in one model; the linker refuses more
CODE = 52 * KIB
# The emulated machine has 64 MiB of flash. It places a device tree at the end of its RAM, after the RAM of the board.
# Its cycle counter counts instructions.
EMULATOR = (
    "qemu-system-riscv32", "-M", "virt", "-bios", "none", "-nodefaults", "-display", "none",
    "-icount", "shift=0", "-chardev", "stdio,id=uart,signal=off", "-serial", "chardev:uart",
)  # fmt: skip
EMULATED_FLASH = 64 * MIB
MOST = 1024 * MIB  # of each memory: both have to lie in one address space


def board_of(ram: int, flash: int) -> Target:
    """Return the target for a board of these sizes in bytes.  Raises UsageError for an impossible size."""
    for option, size in (("--ram", ram), ("--flash", flash)):
        if not 0 < size <= MOST:
            raise UsageError(f"{option} {size} is not possible.", f"allowed: 1 to {MOST} bytes.")
    return replace(
        RV32,
        title="RV32 board",
        cores=1,
        levels=(Level(L1, ram), Level(MAPPED, flash)),
        l1_system=STACK + VARIABLES,
        l2_system=CODE,
        programs={"host": "host", "qemu": "virt"},
        program=Program(
            folders=("virt", "one_core"),
            isa=RV32.program.isa,
            defines=("SC_CYCLE_COUNTER=1",),
            symbols={"SC_RAM": ram, "SC_FLASH": flash, "SC_STACK": STACK},
            stacks={"core": STACK},
            sections=True,
            images=(Image("flash", "all of flash", (".text", ".rodata", ".sc_wmem", ".data")),),
            emulator=(
                *EMULATOR,
                "-m",
                f"{ram // MIB + 16}M",
                "-device",
                "loader,cpu-num=0,file={}",
            ),
        ),
        board=True,
    )


BOARD = board_of(520 * KIB, 4 * MIB)
"""A board of a usual size, for code that needs no particular one."""
