"""8 bit: byte j of a word is input j."""

from __future__ import annotations

import numpy as np

from shrinkc.storage.format import StorageFormat


def pack_units(units: np.ndarray) -> np.ndarray:
    return units.view(np.uint8)


# symmetric: -128 would make one more product that does not fit 16 bits twice
W8 = StorageFormat(bits=8, inputs=4, fold=0, symmetric=(-127, 127), pack_units=pack_units)
