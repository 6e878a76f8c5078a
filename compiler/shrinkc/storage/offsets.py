"""Offsets of asymmetric groups, next to their scales."""

from __future__ import annotations

from enum import IntEnum

from shrinkc.abi import ROW_BLOCK


class Offsets(IntEnum):
    """What is subtracted from the weights of a row's group: nothing, the scale times a zero point, or any int16.

    Zero points are signed integers of ZERO_BITS bits: those of a checkpoint whose weights have as many or fewer.
    They take a quarter of what others take, and mean the same.
    """

    NONE = 0
    ZEROS = 1
    WIDE = 2

    @property
    def bytes(self) -> int:
        """Of a group of a block."""
        return (0, ROW_BLOCK * ZERO_BITS // 8, 2 * ROW_BLOCK)[self]


ZERO_BITS = 4
ZERO_MIN, ZERO_MAX = -(1 << (ZERO_BITS - 1)), (1 << (ZERO_BITS - 1)) - 1
