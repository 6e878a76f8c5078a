"""A RISC-V core under Linux, for qemu: runs the kernels without a memory hierarchy, so every model fits
and tiles are as large as is useful."""

from __future__ import annotations

from shrinkc.targets.target import MIB, Level, Program, Target

RV32 = Target(
    name="rv32",
    title="RV32",
    cores=8,
    levels=(Level("l1", 1024 * MIB), Level("wmem", 1024 * MIB), Level("l2", 1024 * MIB)),
    l1_system=0,
    l2_system=0,
    programs={"host": "host", "qemu": "rv32"},
    program=Program(
        folders=("rv32", "one_core"), isa="rv32imc_zicsr", emulator=("qemu-riscv32", "{}")
    ),
)
