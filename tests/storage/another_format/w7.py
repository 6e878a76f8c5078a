"""7 bit: 32 inputs of a row in seven words.

Byte j of word i holds input 4 * i + j in bits 7..1; input 28 + j lies in the bit that is left in each of the seven, its
uppermost in word 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    import numpy as np

    v = lanes(units, 7)
    words = [(v[:, :, i] << 1) | ((v[:, :, 7] >> (6 - i)) & 1) for i in range(7)]
    return np.concatenate(words, axis=2)


W7 = StorageFormat(bits=7, inputs=32, fold=1, symmetric=(-64, 63), pack_units=pack_units)
