"""8 bit: byte j of a word is input j."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.storage.format import StorageFormat

if TYPE_CHECKING:
    import numpy as np


def pack_units(units: np.ndarray) -> np.ndarray:
    return units.view("uint8")


# symmetric: -128 would make one more product that does not fit 16 bits twice
W8 = StorageFormat(
    bits=8, inputs=4, fold=0, symmetric=(-127, 127), pack_units=pack_units, grouped_embeddings=False
)
