"""The cores: they run every matrix, from tiles that are copied into L1.

Cycles are fitted to measurements on GVSoC, 8 cores.  docs/results/profile.md, decode: o, qkv, down and
head of examples/stories (96, 160, 96 and 512 rows; 96, 96, 256 and 96 inputs) take 2562, 2867, 3943 and
7244 cycles, the fit says 2470, 3260, 3830 and 7250.  What other widths and groups of 32 cost more is from
docs/results/cycles.md, mean of decode against that at 8 bit, over the words of all three models.
"""

from __future__ import annotations

from shrinkc.abi import ROW_BLOCK
from shrinkc.engines.engine import CORES, Engine, MatrixSpec
from shrinkc.storage import BLOCKS, format_of, segment_size

_CORES = 8
_START = 870  # barriers, the first tile
_BLOCK = 390  # 8 rows of one core: rescaled and stored
_WORDS = {8: 17, 4: 29, 2: 34, 3: 52}  # 8 rows of 4 inputs
_TABLE = (
    58  # scales of 8 rows of a segment; offsets were not measured and are taken to cost the same
)


def legal(spec: MatrixSpec) -> str | None:
    return None


def cut(k: int, group: int | None, bits: int) -> tuple[int, int]:
    return segment_size(k, group), format_of(bits).inputs


def cycles(spec: MatrixSpec, tokens: int) -> int:
    shape = ENGINE.shape(spec)
    # a width that was not measured is taken for the slowest that was
    per_word = _WORDS.get(spec.bits, max(_WORDS.values()))
    tables = int(spec.grouped) + int(spec.asymmetric)
    block = _BLOCK + shape.words * per_word + shape.nseg * tables * _TABLE
    rounds = -(-spec.rows // (ROW_BLOCK * _CORES))
    return _START + tokens * rounds * block


ENGINE = Engine(
    name=CORES, store=BLOCKS, levels=(), legal=legal, cut=cut, cycles=cycles, reads_rows=True
)
