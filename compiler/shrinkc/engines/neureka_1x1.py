"""N-EUREKA: Siracusa's neural engine, which reads weights where they lie in weight memory.

Its 1x1 mode multiplies blocks of 32 outputs by 32 inputs with up to 36 vectors at once, "pixels" of an
image: of a token the low and the high bytes are two, where it has room for those of all.  Else both have jobs of their
own, and the engine adds low sums to 256 times the high ones.  Whatever their width, weights are stored as 8 bit planes.
The cores join the two sums of a row, or have one, and rescale it.

Cycles are of GVSoC: 32 rows take 161, 216, 491 and 1041 with one token's vectors of 64, 96, 256 and 576
inputs, 311 and 1188 with 36 vectors of 64 and 576.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shrinkc.engines.engine import Engine, Features, MatrixSpec
from shrinkc.storage import MatrixShape, Store, StoredRows

if TYPE_CHECKING:
    import numpy as np

BLOCK = 32  # inputs and outputs of a block; a row's bytes for a block of inputs
# of a job, twice as many of up to 4 pixels, or where there is one sum of a row: what the cores bring to its place while
# the engine is at the next
JOB_ROWS = 64
JOBS = 3  # whose results are kept: two are under way, one is at hand
PIXELS = 36  # of a tile
IMAGE = 116  # bytes that a matrix's jobs are kept in, but for their remainders (neureka_3x3.py)
_ZERO = 128  # how a weight of 0 is stored
AHEAD = 32  # bytes that the engine reads past the last weight
START = 350  # two jobs written, the first one's way in and the last one's way out


def _input_blocks(k: int) -> int:
    return -(-k // BLOCK)


def block_bytes(m: MatrixShape) -> int:
    return 8 * BLOCK * _input_blocks(m.k)


def with_multipliers(weights: np.ndarray, w: StoredRows) -> np.ndarray:
    """Weights uint8 [bytes], followed by the trailer (``trailer_bytes``): the rows' multipliers."""
    import numpy as np

    r = w.r.astype("<u2").view(np.uint8)
    return np.concatenate([weights, r, np.zeros(max(AHEAD - len(r), 0), np.uint8)])


def trailer_bytes(m: MatrixShape) -> int:
    """Row multipliers, which the engine may read as weights."""
    return max(multipliers(m), AHEAD)


def multipliers(m: MatrixShape) -> int:
    return 2 * 8 * m.blocks


def pack(w: StoredRows) -> np.ndarray:
    """Per row and 32 inputs 8 words; nibble b of word m has bit b of inputs 4 m .. 4 m + 3."""
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
    """Those of the image: up to 6 in a row, else whole rows of 6."""
    vectors = min(2 * tokens, PIXELS)
    return vectors if vectors <= 6 else -(-vectors // 6) * 6


def sums(tokens: int) -> bool:
    """A tile has not room for all low and high bytes: both have jobs of their own, and the engine adds low sums to 256
    times the high ones."""
    return 2 * tokens > PIXELS


def _job_rows(tokens: int) -> int:
    """Twice as many where the cores have less to do with each."""
    return JOB_ROWS * (2 if sums(tokens) else 1)


def scratch(shape: MatrixShape, tokens: int) -> int:
    """Multipliers and sums of JOBS jobs."""
    return JOBS * max(_job_rows(tokens) * (4 * _pixels(tokens) + 2), 2 * JOB_ROWS * (4 * 4 + 2))


def jobs_of_one(rows: int) -> int:
    """Jobs of one token: the last two or three have half as many rows, since the cores join the sums of the last one
    when the engine is done."""
    halves = -(-rows // JOB_ROWS)
    return halves - (halves // 2 - 1 if halves > 3 else 0)


def jobs_name(tokens: int) -> str:
    """Those of one token are made once and then only written."""
    return "jobs" if tokens == 1 else "jobs_of_several"


def _jobs(rows: int, tokens: int) -> int:
    """Of all tokens: the first ones of those that many tokens share are short, since the cores wait for them."""
    if tokens == 1:
        return jobs_of_one(rows)
    if tokens == 2:
        return -(-rows // (2 * JOB_ROWS))
    less = BLOCK if rows > BLOCK else 0
    if sums(tokens):
        less *= 5
    return -(-(rows + less) // _job_rows(tokens))


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Blocks of rows and of inputs, and what more tokens at once add; jobs are what has to be written.  All
    else where it adds high sums to low ones.  Of several tokens the cores may have as long with what blocks sum
    as the engine with these, of one they have not."""
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
    # rounds of a team of 9, and tiles, which take no more
    chunks=(PIXELS, PIXELS // 2),
)
