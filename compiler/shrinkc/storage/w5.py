"""5 bit: 32 inputs of a row in five words.

Byte j of word i holds input 4 * i + j in bits 7..3.  The 15 free bits of byte j of the words b0..b4 hold three more
inputs, each in the upper five bits of an exclusive or: a kernel then needs no masks to put it together.

    20 + j    b0 << 5 ^ b1 << 3
    24 + j    b1 << 5 ^ b2 << 3 ^ b3 << 4
    28 + j    b4 << 5 ^ b3 << 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    import numpy as np

    v = lanes(units, 5)
    b = [v[:, :, i] << 3 for i in range(5)]
    first, middle, last = (v[:, :, i] for i in (5, 6, 7))
    b[1] |= first & 3
    b[3] |= last & 3
    b[1] |= (middle >> 2 ^ b[2] >> 2 ^ b[3] >> 1) & 4
    b[3] |= (middle >> 1 ^ b[2] >> 1 ^ b[1] << 1) & 4
    b[2] |= (middle ^ b[1] << 2 ^ b[3] << 1) & 7
    b[0] |= (first ^ b[1]) >> 2 & 7
    b[4] |= (last ^ b[3]) >> 2 & 7
    return np.concatenate(b, axis=2)


W5 = StorageFormat(bits=5, inputs=32, fold=3, symmetric=(-16, 15), pack_units=pack_units)
