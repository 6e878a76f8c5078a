"""Sizes of memories that a board decides: RAM and flash of a processor's board, flash and HyperRAM beside a chip."""

from __future__ import annotations

from collections.abc import Mapping

from shrinkc.core.errors import UsageError
from shrinkc.targets.board import board_of
from shrinkc.targets.rv32 import RV32
from shrinkc.targets.target import MIB, Target

SIZES = ("ram", "flash", "hyperram")
"""Names of the options that give the sizes of memories."""
MOST = 1024 * MIB
"""Bytes of the largest flash or HyperRAM that GVSoC can have: a power of two below 2^31."""


def sizes_of(target: Target) -> tuple[str, ...]:
    """Return the memories of ``target`` whose sizes can be given."""
    if target.name == RV32.name:
        return ("ram", "flash")
    return tuple(name for name in SIZES if target.has(name))


def with_sizes(target: Target, sizes: Mapping[str, int | None]) -> Target:
    """Return ``target`` with these sizes in bytes, by names of SIZES; None: the target's own.

    Raises UsageError for a memory that the target does not have, an impossible size, or half the sizes of a board.
    """
    given = {name: size for name, size in sizes.items() if size is not None}
    possible = sizes_of(target)
    if others := [f"--{name}" for name in given if name not in possible]:
        allowed = ", ".join(f"--{name}" for name in possible)
        raise UsageError(
            f"{' and '.join(others)} {'is' if len(others) == 1 else 'are'} not possible with --target {target.name}.",
            f"allowed: {allowed}." if allowed else "its memories have fixed sizes; leave it out.",
        )
    if not given:
        return target
    if target.name != RV32.name:
        for name, size in given.items():
            if not 0 < size <= MOST or size % 4:
                raise UsageError(
                    f"--{name} {size} is not possible.",
                    f"allowed: multiples of 4 bytes up to {MOST}.",
                )
        return target.with_room(**given)
    if missing := [name for name in possible if name not in given]:
        raise UsageError(
            f"--{next(iter(given))} needs --{missing[0]}.",
            "give both sizes of the board, such as --ram 520KiB --flash 4MiB.",
        )
    return board_of(given["ram"], given["flash"])
