"""Targets: frozen descriptions of the chips and machines to compile for, one per file."""

from __future__ import annotations

from shrinkc.core.errors import UsageError
from shrinkc.targets.board import BOARD, EMULATED_FLASH, board_of
from shrinkc.targets.host import HOST
from shrinkc.targets.pulp_open import PULP_OPEN
from shrinkc.targets.rv32 import RV32
from shrinkc.targets.siracusa import SIRACUSA
from shrinkc.targets.sizes import MOST, SIZES, sizes_of, with_sizes
from shrinkc.targets.target import (
    COPIED,
    FETCHED,
    KIB,
    L1,
    L2,
    MACHINES,
    MAPPED,
    MEMORIES,
    MIB,
    ON_CHIP,
    OUTSIDE,
    Level,
    Target,
    by_access,
    fetched,
    memory_kind,
)

__all__ = [
    "BOARD", "CHIPS", "COPIED", "DEFAULT", "EMULATED_FLASH", "FETCHED", "HOST", "KIB", "L1", "L2", "MACHINES",
    "MAPPED", "MEMORIES", "MIB", "MOST", "ON_CHIP", "OUTSIDE", "PROGRAMS", "PULP_OPEN", "RV32", "SIRACUSA", "SIZES",
    "TARGETS", "Level", "Target", "board_of", "by_access", "fetched", "memory_kind", "sizes_of", "target_named",
    "with_sizes",
]  # fmt: skip

TARGETS = {t.name: t for t in (SIRACUSA, RV32, HOST, PULP_OPEN)}
"""Name -> target."""

PROGRAMS = {t.program.name: t for t in (*TARGETS.values(), BOARD)}
"""Name of a program -> its target; for boards one of a usual size."""

CHIPS = tuple(t.name for t in TARGETS.values() if t.gvsoc)
"""Targets with the limited memories of a chip."""

DEFAULT = SIRACUSA
"""Default target."""


def target_named(name: str) -> Target:
    """Return the target called ``name``.  Raises UsageError, which lists the allowed names."""
    if name not in TARGETS:
        raise UsageError(f"target '{name}' is not known.", f"allowed: {', '.join(TARGETS)}.")
    return TARGETS[name]
