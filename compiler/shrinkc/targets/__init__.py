"""Frozen descriptions of what a program can be compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from shrinkc.core.errors import UsageError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Target:
    """Sizes in bytes.  ``l1_system`` and ``l2_system`` are what the runtime itself takes:
    stacks, small state and layer-independent tables in L1; code, stacks and console in L2.
    ``engines`` are the names of those that multiply matrices (shrinkc/engines)."""

    name: str
    cores: int
    l1: int
    l2: int
    wmem: int
    flash: int
    cl_stack: int
    l1_system: int
    l2_system: int
    runs_on: tuple[str, ...]
    engines: tuple[str, ...] = ("cores",)


SIRACUSA = Target(
    name="siracusa",
    cores=8,
    l1=256 * KIB,
    l2=2 * MIB,
    # 4 MiB MRAM and 4 MiB SRAM in one address range, less the hot code and a word that hardware
    # reads past the last weight
    wmem=8 * MIB - 16 * KIB - 32,
    flash=512 * MIB,
    # 16 more than a multiple of 64, so that the cores' stacks start in different L1 banks
    cl_stack=1040,
    l1_system=9 * 1040 + 1024,
    l2_system=80 * KIB,
    runs_on=("host", "qemu", "gvsoc"),
)

# The same engine without a memory hierarchy: everything "fits", tiles are as large as is useful.
RV32 = Target(
    name="rv32", cores=8, l1=1024 * MIB, l2=1024 * MIB, wmem=1024 * MIB, flash=0,
    cl_stack=0, l1_system=0, l2_system=0, runs_on=("qemu", "host"),
)  # fmt: skip
HOST = Target(
    name="host", cores=8, l1=1024 * MIB, l2=1024 * MIB, wmem=8192 * MIB, flash=0,
    cl_stack=0, l1_system=0, l2_system=0, runs_on=("host",),
)  # fmt: skip

TARGETS = {t.name: t for t in (SIRACUSA, RV32, HOST)}


def target_named(name: str) -> Target:
    """The target of that name; UsageError lists the allowed ones."""
    if name not in TARGETS:
        raise UsageError(f"target '{name}' is not known.", f"allowed: {', '.join(TARGETS)}.")
    return TARGETS[name]
