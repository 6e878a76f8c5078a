"""4 bit: byte j of a word holds input j in its low nibble and input 4 + j in its high one.

Inputs 0..7 of a row that hold 1,2,3,4,5,6,7,-1 are the bytes 51 62 73 f4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    v = lanes(units, 4)
    out: np.ndarray = v[:, :, 0] | (v[:, :, 1] << 4)
    return out


W4 = StorageFormat(
    bits=4, inputs=8, fold=4, symmetric=(-8, 7), pack_units=pack_units,
    clip=(1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.75),
)  # fmt: skip
