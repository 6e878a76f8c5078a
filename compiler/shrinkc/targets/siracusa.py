"""The Siracusa SoC: 8 workers and a controller, memory for weights beside L2, off-chip flash."""

from __future__ import annotations

from shrinkc.targets.target import KIB, MIB, Level, Program, Target

# 16 more than a multiple of 64, so that the cores' stacks start in different L1 banks
STACK = 1040

# the decode path's, of a program with all that there is 33.4 KiB; the linker refuses more than this
CODE = 34 * KIB

SIRACUSA = Target(
    name="siracusa",
    title="Siracusa",
    cores=8,
    controller=True,
    engines=("cores", "neureka", "neureka_3x3", "neureka_twice"),
    levels=(
        Level("l1", 256 * KIB),
        # 4 MiB MRAM and, behind them, 4 MiB SRAM in one address range, less the hot code and a word that
        # hardware reads past the last weight
        Level("wmem", 8 * MIB - CODE - 32, writable=4 * MIB),
        Level("l2", 2 * MIB),
        Level("flash", 512 * MIB),
        Level("hyperram", 64 * MIB),
    ),
    l1_system=9 * STACK + 1024,
    l2_system=80 * KIB,
    programs={"host": "host", "qemu": "rv32", "gvsoc": "siracusa"},
    program=Program(
        folders=("siracusa", "pulp"),
        isa="rv32imc_zicsr",
        defines=("SC_XPULP=1",),
        options={"STACKS": "SC_STACK_REPORT", "PROFILE": "SC_PROFILE"},
        symbols={"SC_CL_STACK": STACK},
        sections=True,
    ),
    gvsoc="siracusa",
    # a line of code comes sooner from the weight memory than from L2
    code=("wmem", "l2"),
    code_bytes=CODE,
)
