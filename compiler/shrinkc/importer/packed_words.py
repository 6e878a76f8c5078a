"""Packing of unsigned 2-, 3-, 4- and 8-bit integers without gaps, lowest bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# rows unpacked at a time to one byte per bit, which limits memory
_ROWS = 1024


def words_for(count: int, bits: int) -> int:
    """Return how many 32-bit words hold ``count`` values; 3-bit values come in blocks of 32."""
    return -(-count // 32) * 3 if bits == 3 else -(-count * bits // 32)


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Return little-endian words [rows, …] of ``values`` uint8 [rows, count], which must fill whole words."""
    if values.shape[1] * bits % 32:
        raise ValueError(f"{values.shape[1]} values of {bits} bit do not fill 32-bit words")
    return pack_bytes(values, bits).view("<u4")


def pack_bytes(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return bytes [rows, …] of ``values`` uint8 [rows, count], which must fill whole bytes."""
    rows, count = values.shape
    if count * bits % 8:
        raise ValueError(f"{count} values of {bits} bit do not fill bytes")
    out = np.empty((rows, count * bits // 8), dtype=np.uint8)
    for start in range(0, rows, _ROWS):
        part = values[start : start + _ROWS, :, None]
        fields = np.unpackbits(part, axis=2, count=bits, bitorder="little")
        out[start : start + _ROWS] = np.packbits(
            fields.reshape(len(part), count * bits), axis=1, bitorder="little"
        )
    return out


def unpack(words: NDArray[np.integer], bits: int, count: int) -> NDArray[np.uint8]:
    """Return uint8 [rows, count] from little-endian ``words`` [rows, …] of any integer type.

    A value may cross a word border, as 3-bit values do.
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        per_byte = 8 // bits
        values = np.empty((len(raw), raw.shape[1] * per_byte), dtype=np.uint8)
        for place in range(per_byte):
            values[:, place::per_byte] = (raw >> (place * bits)) & ((1 << bits) - 1)
        return values[:, :count]
    out = np.empty((len(raw), count), dtype=np.uint8)
    for start in range(0, len(raw), _ROWS):
        stream = np.unpackbits(raw[start : start + _ROWS], axis=1, bitorder="little")
        fields = stream[:, : count * bits].reshape(-1, count, bits)
        out[start : start + _ROWS] = np.packbits(fields, axis=2, bitorder="little")[:, :, 0]
    return out
