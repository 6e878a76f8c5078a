"""The open PULP SoC as GVSoC models it: 8 workers and a controller, L1 and L2, off-chip flash."""

from __future__ import annotations

from shrinkc.targets.target import KIB, MIB, Image, Level, Program, Target

# 16 more than a multiple of 64, so that stacks of the cores start in different L1 banks
STACK = 1040
CONTROL_STACK = 1024  # SC_FC_STACK of link.ld

PULP_OPEN = Target(
    name="pulp-open",
    title="PULP open",
    cores=8,
    controller=True,
    levels=(
        Level("l1", 64 * KIB),
        # 64 KiB of two private banks, 1536 KiB of shared ones
        Level("l2", 1600 * KIB),
        Level("flash", 512 * MIB),
        Level("hyperram", 64 * MIB),
    ),
    l1_system=9 * STACK + 1024,
    l2_system=80 * KIB,
    programs={"host": "host", "qemu": "rv32", "gvsoc": "pulp-open"},
    program=Program(
        folders=("pulp-open", "pulp"),
        isa="rv32imc_zicsr",
        defines=("SC_XPULP=1",),
        options={"STACKS": "SC_STACK_REPORT", "PROFILE": "SC_PROFILE", "TRACE": "SC_SPANS"},
        symbols={"SC_CL_STACK": STACK},
        stacks={"cluster core": STACK, "fabric controller": CONTROL_STACK},
        sections=True,
        images=(
            Image("l2-private", "code, in the private banks of L2", (".text", ".data")),
            Image(
                "l2", "constants, input and weights, in L2", (".rodata", ".sc_input", ".sc_l2_blob")
            ),
            Image("l1", "tables, in L1", (".sc_l1_data",)),
        ),
    ),
    gvsoc="pulp-open",
)
