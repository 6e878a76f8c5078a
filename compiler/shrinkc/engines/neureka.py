"""N-EUREKA: Siracusa's neural engine, which reads weights where they lie in weight memory.

Its 1x1 mode multiplies blocks of 32 outputs by 32 inputs with up to 36 vectors at once, "pixels" of an
image: of a token the low and the high bytes are two.  Whatever their width, weights are stored as 8 bit
planes.  It only multiplies; the cores join the two sums of a row and rescale them.

Cycles are of GVSoC, where one vector takes 56 to 60 per block, 16 take 71 and 36 take 78.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shrinkc.engines.engine import Engine, MatrixSpec
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

BLOCK = 32  # inputs and outputs of a block; a row's bytes for a block of inputs
# of a job, twice as many of up to 4 pixels: what the cores bring to its place while the engine is at the next
JOB_ROWS = 64
JOBS = 3  # results that are kept: two jobs under way, one at hand
TOKENS_MAX = 18  # 36 pixels
_ZERO = 128  # how a weight of 0 is stored
_AHEAD = 32  # bytes that the engine reads past the last weight
_START = 350  # two jobs written, the first one's way in and the last one's way out


def _input_blocks(k: int) -> int:
    return -(-k // BLOCK)


def block_bytes(m: MatrixShape) -> int:
    return 8 * BLOCK * _input_blocks(m.k)


def beside_bytes(m: MatrixShape) -> int:
    """Row multipliers, which the engine may read as weights."""
    return max(2 * 8 * m.blocks, _AHEAD)


def pack(w: StoredRows) -> np.ndarray:
    """Per row and 32 inputs 8 words; nibble b of word m has bit b of inputs 4 m .. 4 m + 3."""
    import numpy as np

    rows, k = w.q.shape
    stored = np.full((rows, _input_blocks(k) * BLOCK), _ZERO, np.uint8)
    stored[:, :k] = w.q.astype(np.int16) + _ZERO
    # [rows, words, 4 inputs, 8 bits] -> bit 4 b + j of a word
    bits = np.unpackbits(stored.reshape(rows, -1, 4, 1), axis=3, bitorder="little")
    words = bits.transpose(0, 1, 3, 2).reshape(rows, -1)
    weights = np.packbits(words, axis=1, bitorder="little").reshape(-1)
    r = w.r.astype("<u2").view(np.uint8)
    return np.concatenate([weights, r, np.zeros(max(_AHEAD - len(r), 0), np.uint8)])


def legal(spec: MatrixSpec) -> str | None:
    if spec.grouped:
        return "has scales per group, which neureka does not apply"
    return None


def cut(k: int, group: int | None, bits: int) -> tuple[int, int]:
    return k, 4


def cycles(spec: MatrixSpec, tokens: int) -> int:
    blocks = -(-spec.rows // BLOCK) * _input_blocks(spec.k)
    passes = -(-tokens // TOKENS_MAX)
    return _START + passes * blocks * (58 + min(tokens, TOKENS_MAX))


def _pixels(tokens: int) -> int:
    """Those of the image: up to 6 in a row, else whole rows of 6."""
    vectors = 2 * min(tokens, TOKENS_MAX)
    return vectors if vectors <= 6 else -(-vectors // 6) * 6


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Multipliers of all rows, and the sums of JOBS jobs."""
    sums = max(JOB_ROWS * _pixels(tokens), 2 * JOB_ROWS * min(_pixels(tokens), 4))
    return -(-2 * 8 * shape.blocks // 16) * 16 + JOBS * 4 * sums


ENGINE = Engine(
    name="neureka",
    store=Store("bit planes", 8, block_bytes, pack, beside_bytes),
    levels=("wmem",),
    legal=legal,
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    reads_rows=True,
)
