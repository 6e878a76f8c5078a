"""2 bit: byte j of a word holds inputs j, 4 + j, 8 + j and 12 + j, the first in its lowest bits.

Inputs 0..15 of a row that hold 1,-1,0,-2 four times are the bytes 55 ff 00 aa.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat, lanes

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    v = lanes(units, 2)
    out: np.ndarray = v[:, :, 0] | (v[:, :, 1] << 2) | (v[:, :, 2] << 4) | (v[:, :, 3] << 6)
    return out


W2 = StorageFormat(
    bits=2, inputs=16, fold=6, symmetric=(-2, 1), pack_units=pack_units,
    clip=(1.0, 0.90, 0.80, 0.70, 0.60, 0.55, 0.50, 0.45, 0.40, 0.35, 0.30),
)  # fmt: skip
