"""6 bit: 16 inputs of a row in three words.

Byte j of word i holds input 4 * i + j in bits 7..2.  The six free bits hold input 12 + j such that it is the exclusive
or of the three bytes, shifted left by 6, 4 and 2 bits: a kernel then needs no masks to put it together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    import numpy as np

    v = lanes(units, 6)
    b, last = [v[:, :, i] << 2 for i in range(3)], v[:, :, 3]
    b[2] |= last & 3
    b[1] |= (last >> 2 ^ b[2] >> 2) & 3
    b[0] |= (last >> 4 ^ b[2] >> 4 ^ b[1] >> 2) & 3
    return np.concatenate(b, axis=2)


W6 = StorageFormat(bits=6, inputs=16, fold=2, symmetric=(-32, 31), pack_units=pack_units)
