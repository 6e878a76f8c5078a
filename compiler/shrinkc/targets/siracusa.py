"""The Siracusa SoC: 8 workers and a controller, memory for weights beside L2, off-chip flash."""

from __future__ import annotations

from dataclasses import replace

from shrinkc.targets.pulp_open import PULP_OPEN
from shrinkc.targets.target import KIB, MIB, Level

# the decode path's, of a program with all that there is 33.4 KiB; the linker refuses more than this
CODE = 34 * KIB

SIRACUSA = replace(
    PULP_OPEN,
    name="siracusa",
    title="Siracusa",
    engines=("cores", "neureka_1x1", "neureka_3x3", "neureka_both"),
    levels=(
        Level("l1", 256 * KIB),
        # 4 MiB MRAM and, behind them, 4 MiB SRAM in one address range, less the hot code and a word that
        # hardware reads past the last weight
        Level("wmem", 8 * MIB - CODE - 32, writable=4 * MIB),
        Level("l2", 2 * MIB),
        Level("flash", 512 * MIB),
        Level("hyperram", 64 * MIB),
    ),
    programs={"host": "host", "qemu": "rv32", "gvsoc": "siracusa"},
    program=replace(PULP_OPEN.program, folders=("siracusa", "pulp")),
    gvsoc="siracusa",
    # a line of code comes sooner from the weight memory than from L2
    code=("wmem", "l2"),
    code_bytes=CODE,
)
