"""3 bit: 32 inputs of a row in three words, without a bit to spare.

Byte j of word i holds input 8 * i + j in bits 7..5 and input 8 * i + 4 + j in bits 4..2: a mask, or a
shift and a mask, brings each to the top of its byte.  The two bits that are left in each of the three
are inputs 24 + j and 28 + j: words 0 and 1 have the upper two bits of the one and of the other, word
2 their lowest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    import numpy as np

    v = lanes(units, 3)
    first, second = v[:, :, 6], v[:, :, 7]
    rest = (first >> 1, second >> 1, ((first & 1) << 1) | (second & 1))
    words = [(v[:, :, 2 * i] << 5) | (v[:, :, 2 * i + 1] << 2) | rest[i] for i in range(3)]
    return np.concatenate(words, axis=2)


W3 = StorageFormat(
    bits=3, inputs=32, fold=5, symmetric=(-4, 3), pack_units=pack_units,
    clip=(1.0, 0.95, 0.90, 0.85, 0.80, 0.75, 0.70, 0.65, 0.60),
)  # fmt: skip
