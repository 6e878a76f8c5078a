"""Offsets of asymmetric groups, next to their scales."""

from __future__ import annotations

from enum import IntEnum

from shrinkc.abi import ROW_BLOCK


class Offsets(IntEnum):
    """Kind of offset that is subtracted from the weights of a group: none, scale * zero point, or any int16.

    Zero points are signed integers of ZERO_BITS bits, a quarter of the size of an int16 offset.
    """

    NONE = 0
    ZEROS = 1
    WIDE = 2

    @property
    def bytes(self) -> int:
        """Bytes per group of a block of rows."""
        return (0, ROW_BLOCK * ZERO_BITS // 8, 2 * ROW_BLOCK)[self]


ZERO_BITS = 4
ZERO_MIN, ZERO_MAX = -(1 << (ZERO_BITS - 1)), (1 << (ZERO_BITS - 1)) - 1
