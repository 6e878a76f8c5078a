"""6 bit: 16 inputs of a row in three words.

Byte j of word i holds input 4 * i + j in bits 7..2; input 12 + j lies in the two bits that are left
in each of the three, its upper ones in word 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    import numpy as np

    v = lanes(units, 6)
    words = [(v[:, :, i] << 2) | ((v[:, :, 3] >> (4 - 2 * i)) & 3) for i in range(3)]
    return np.concatenate(words, axis=2)


W6 = StorageFormat(bits=6, inputs=16, fold=2, symmetric=(-32, 31), pack_units=pack_units)
