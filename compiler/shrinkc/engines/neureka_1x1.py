"""N-EUREKA in 1x1 mode: Siracusa's neural engine, which reads weights directly from weight memory.

The 1x1 mode multiplies blocks of 32 outputs by 32 inputs with up to 36 vectors ("pixels" of an image) at once.  Low and
high bytes of a token are two pixels.  If there are too many tokens for that, low and high bytes get separate jobs, and
the engine adds the low sums to 256 times the high sums.  Weights of all bit-widths are stored as 8 bit planes.
The cores add the two sums of a row, if there are two, and rescale the result.

Cycles measured on GVSoC: 32 rows take 161, 216, 491 and 1041 cycles with one token's vectors of 64, 96, 256 and 576
inputs, and 311 and 1188 with 36 vectors of 64 and 576 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shrinkc.engines.engine import Engine, Features, MatrixSpec
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

BLOCK = 32  # inputs and outputs of a block; bytes of a row for a block of inputs
# Rows per job, doubled for up to 4 pixels or one sum per row.  The cores finish one job during the next.
JOB_ROWS = 64
JOBS = 3  # jobs whose results are kept: two in the engine, one being finished by the cores
PIXELS = 36  # per tile
IMAGE = 116  # bytes per matrix for prepared jobs, without remainders (neureka_3x3.py)
_ZERO = 128  # stored value of weight 0
OVERREAD = 32  # bytes that the engine reads past the last weight
START = 350  # cycles: writing two jobs, latency of the first, finishing the last


def _input_blocks(k: int) -> int:
    return -(-k // BLOCK)


def block_bytes(m: MatrixShape) -> int:
    return 8 * BLOCK * _input_blocks(m.k)


def with_multipliers(weights: np.ndarray, w: StoredRows) -> np.ndarray:
    """Append the trailer (``trailer_bytes``), the row multipliers, to weights uint8 [bytes]."""
    import numpy as np

    r = w.r.astype("<u2").view(np.uint8)
    return np.concatenate([weights, r, np.zeros(max(OVERREAD - len(r), 0), np.uint8)])


def trailer_bytes(m: MatrixShape) -> int:
    """Return the bytes of the row multipliers, at least as many as the engine reads past the weights."""
    return max(multipliers(m), OVERREAD)


def multipliers(m: MatrixShape) -> int:
    return 2 * 8 * m.blocks


def pack(w: StoredRows) -> np.ndarray:
    """Pack 8 words per row and 32 inputs; nibble b of word m has bit b of inputs 4 m .. 4 m + 3."""
    import numpy as np

    rows, k = w.q.shape
    stored = np.full((rows, _input_blocks(k) * BLOCK), _ZERO, np.uint8)
    stored[:, :k] = w.q.astype(np.int16) + _ZERO
    # [rows, words, 4 inputs, 8 bits] -> bit 4 b + j of a word
    bits = np.unpackbits(stored.reshape(rows, -1, 4, 1), axis=3, bitorder="little")
    words = bits.transpose(0, 1, 3, 2).reshape(rows, -1)
    return with_multipliers(np.packbits(words, axis=1, bitorder="little").reshape(-1), w)


def legal(spec: MatrixSpec) -> str | None:
    if spec.grouped:
        return "has scales per group, which N-EUREKA does not apply"
    return None


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    return k, 4


def cycles(spec: MatrixSpec, tokens: int) -> int:
    at_once = min(tokens, PIXELS // 2)
    tile = 55 * _input_blocks(spec.k) + 50 + 8 * (at_once - 1)
    return START + -(-tokens // at_once) * -(-spec.rows // BLOCK) * tile


def _pixels(tokens: int) -> int:
    """Return the pixels of the image: up to 6 in one row, otherwise whole rows of 6."""
    vectors = min(2 * tokens, PIXELS)
    return vectors if vectors <= 6 else -(-vectors // 6) * 6


def sums(tokens: int) -> bool:
    """Return whether low and high bytes have separate jobs, because a tile has too few pixels for both."""
    return 2 * tokens > PIXELS


def _job_rows(tokens: int) -> int:
    """Return the rows per job: more if the cores have less work per row."""
    return JOB_ROWS * (2 if sums(tokens) else 1)


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Return the bytes of L1 for multipliers and sums of JOBS jobs."""
    return JOBS * max(_job_rows(tokens) * (4 * _pixels(tokens) + 2), 2 * JOB_ROWS * (4 * 4 + 2))


def jobs_of_one(rows: int) -> int:
    """Return the jobs for one token.

    The last two or three have half the rows, because the engine is idle while the cores finish the last one."""
    halves = -(-rows // JOB_ROWS)
    return halves - (halves // 2 - 1 if halves > 3 else 0)


def jobs_name(tokens: int) -> str:
    """Return the feature that counts jobs: those of one token are prepared once, so they cost less."""
    return "jobs" if tokens == 1 else "jobs_of_several"


def _jobs(rows: int, tokens: int) -> int:
    """Return the number of jobs; for several tokens the first jobs are short, because the cores wait for them."""
    if tokens == 1:
        return jobs_of_one(rows)
    if tokens == 2:
        return -(-rows // (2 * JOB_ROWS))
    less = BLOCK if rows > BLOCK else 0
    if sums(tokens):
        less *= 5
    return -(-(rows + less) // _job_rows(tokens))


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Return the features of a product: jobs, blocks of rows and inputs, and additional pixels.

    Names differ for several tokens, where the cores may take as long as the engine, and if the engine adds low and high
    sums."""
    rows = -(-shape.rows // BLOCK)
    blocks = "blocks" if tokens == 1 else "blocks_of_several"
    found = {"rows": rows, blocks: rows * _input_blocks(shape.k), "pixels": rows * (tokens - 1)}
    if sums(tokens):
        found = {f"{name}_summed": count for name, count in found.items()}
    return {"calls": 1, jobs_name(tokens): _jobs(8 * shape.blocks, tokens), **found}


ENGINE = Engine(
    name="neureka_1x1",
    unit="N-EUREKA",
    mode="1x1",
    store=Store("bit planes of 32", 8, block_bytes, pack, trailer_bytes),
    levels=("wmem",),
    legal=legal,
    cut=cut,
    cycles=cycles,
    scratch=scratch,
    table=IMAGE,
    multipliers=multipliers,
    reads_rows=True,
    features=features,
    any_pitch=True,
    sums=sums,
    products=True,
    # multiples of a team of 9 that fill tiles
    chunks=(PIXELS, PIXELS // 2),
)
