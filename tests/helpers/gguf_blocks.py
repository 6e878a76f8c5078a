"""Random blocks of GGUF tensor types that the ``gguf`` package reads and does not write."""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

# type -> byte of each 16-bit number of a block: scale, minimum
HALVES = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# type -> (largest weight without offset, largest minimum) of a block whose 16-bit numbers are 1
_LARGEST = {
    "Q8_0": (128, 0), "Q4_0": (8, 0), "Q4_1": (15, 1), "Q5_0": (16, 0), "Q5_1": (31, 1), "IQ4_NL": (127, 0),
    "Q2_K": (45, 15), "Q3_K": (128, 0), "Q4_K": (945, 63), "Q5_K": (1953, 63), "Q6_K": (4096, 0),
}  # fmt: skip


def random_blocks(
    kind: str, rows: int, inputs: int, rng: np.random.Generator, largest: float = 0.1
) -> NDArray[np.uint8]:
    """Return a tensor uint8 [rows, bytes] with any integers and scales; weights reach ``largest``."""
    values, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows, inputs // values, width), np.uint8)
    top, minimum = _LARGEST[kind]
    for at, size in zip(HALVES[kind], (top, 2 * minimum), strict=False):
        number = largest / size * rng.uniform(0.3, 1, blocks.shape[:2])
        if kind in ("Q4_1", "Q5_1") and at:
            number = -number  # these add their minimum, K-quants subtract it
        if len(HALVES[kind]) == 1 and kind != "Q8_0":  # either sign is in use
            number *= rng.choice([-1, 1], blocks.shape[:2])
        blocks[:, :, at : at + 2] = number.astype("<f2")[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)
