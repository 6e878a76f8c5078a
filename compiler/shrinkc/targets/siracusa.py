"""The Siracusa SoC: 8 workers and a controller, memory for weights beside L2, off-chip flash."""

from __future__ import annotations

from dataclasses import replace

from shrinkc.targets.pulp_open import PULP_OPEN
from shrinkc.targets.target import KIB, MIB, Image, Level

# of the decode path: 38.8 KiB in a program with all kernels, profiled; the linker refuses larger code
CODE = 39 * KIB

SIRACUSA = replace(
    PULP_OPEN,
    name="siracusa",
    title="Siracusa",
    engines=("cores", "neureka_1x1", "neureka_3x3", "neureka_both"),
    levels=(
        Level("l1", 256 * KIB),
        # 4 MiB MRAM followed by 4 MiB SRAM in one address range, less the hot code and the 32 bytes that
        # hardware reads past the last weight
        Level("wmem", 8 * MIB - CODE - 32, writable=4 * MIB),
        Level("l2", 2 * MIB),
        Level("flash", 512 * MIB),
        Level("hyperram", 64 * MIB),
    ),
    programs={"host": "host", "qemu": "rv32", "gvsoc": "siracusa"},
    program=replace(
        PULP_OPEN.program,
        folders=("siracusa", "pulp"),
        images=(
            Image("hot-code", "code of decode steps, in weight memory or L2", (".sc_hot",)),
            Image("weight-memory", "weights, in weight memory", (".sc_wmem",)),
            *PULP_OPEN.program.images,
        ),
    ),
    gvsoc="siracusa",
    # fetching code is faster from the weight memory than from L2
    code=("wmem", "l2"),
    code_bytes=CODE,
)
