"""The cores: they run every matrix, from tiles that are copied into L1.

What a product takes is what the cost model of Siracusa says of it (costs/siracusa.json), for all targets:
it is compared with other engines' cycles only.
"""

from __future__ import annotations

from collections.abc import Sequence

from shrinkc.abi import PRODUCT_BLOCKS, ROW_BLOCK, WIDE_WORDS
from shrinkc.costs import Work, cost_table
from shrinkc.costs.work import share
from shrinkc.engines.engine import CORES, Engine, Features, MatrixSpec
from shrinkc.storage import BLOCKS, MatrixShape, format_of, segment_size

_CORES = 8
_TARGET = "siracusa"
TILE_CAP = 32 * 1024  # bytes: beyond this a larger tile saves nothing measurable


def legal(spec: MatrixSpec) -> str | None:
    return None


def cut(k: int, group: int | None, bits: int) -> tuple[int, int]:
    return segment_size(k, group), format_of(bits).inputs


def _pairs(blocks: int, tokens: int) -> int:
    """Of tokens, which a core has of a block: where a tile has fewer blocks than there are cores, the tokens
    are shared out as well (sc_gemm.c)."""
    parts = _CORES // blocks if blocks < _CORES else 1
    twos = -(-tokens // 2)
    return -(-twos // parts)


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Of the core that has most: blocks of 8 rows, which the cores take in turn from every tile, and
    in each the words of 4 inputs of 8 rows, by width and by whether segments have tables, and these
    segments.  Of several tokens weights are made 8 bit once, and two vectors meet them at a time."""
    each = sum(share(n, _CORES) for n in tiles)
    if tokens > 1 and shape.sums:
        twos = sum(share(n, _CORES) * _pairs(n, tokens) for n in tiles)
        pairs = twos * (2 if shape.wide else 1)
        return {
            "tiles": len(tiles),
            "blocks_of_several": 2 * twos,
            f"widened_w{shape.bits}": each * shape.words * (shape.bits < 8),
            "pair_words": pairs * shape.words,
            "pairs": pairs * (-(-shape.words // WIDE_WORDS) if shape.wide else shape.nseg),
            "pair_scales": pairs * shape.nseg * shape.grouped,
            "pair_offsets": pairs * shape.nseg * shape.asymmetric,
        }
    blocks = tokens * each
    segments = blocks * shape.nseg
    kind = "group_words" if shape.grouped or shape.asymmetric else "words"
    return {
        "tiles": len(tiles),
        "token_tiles": tokens * len(tiles),
        "blocks": blocks,
        f"{kind}_w{shape.bits}": blocks * shape.words,
        "segments": segments,
        "scales": segments * shape.grouped,
        "offsets": segments * shape.asymmetric,
    }


def with_neureka(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """The same of several tokens where N-EUREKA multiplies (sc_products.c): jobs, what is added up of pairs of
    rows, units of what is widened, and what is done with a block of a token."""
    runs = [
        n // count + (at < n % count)
        for n in tiles
        for count in [-(-n // PRODUCT_BLOCKS)]
        for at in range(count)
    ]
    pairs = sum(share(4 * n, _CORES) for n in runs) * shape.nseg
    units = shape.words * 4 // shape.format.inputs
    return {
        "tiles": len(tiles),
        "blocks_of_several": sum(share(n * tokens, _CORES) for n in runs),
        "planes": tokens * share(shape.words, _CORES),
        "jobs": len(runs) * shape.nseg,
        "added_pairs": pairs * tokens,
        "offset_pairs": pairs * tokens * shape.asymmetric,
        f"row_units_w{shape.bits}": sum(share(n * units, _CORES) for n in runs),
    }


def cycles(spec: MatrixSpec, tokens: int) -> int:
    shape, table = ENGINE.shape(spec), cost_table(_TARGET)
    assert table is not None
    per_tile = max(_CORES, TILE_CAP // shape.block_bytes // _CORES * _CORES)
    blocks = -(-spec.rows // ROW_BLOCK)
    tiles = [min(per_tile, blocks - at) for at in range(0, blocks, per_tile)]
    work = Work({"calls": 1, **features(shape, tokens, tiles)})
    return round(max(table.cycles("linear", work).whole - table.probe, shape.bytes / table.dma))


ENGINE = Engine(
    name=CORES, store=BLOCKS, levels=(), legal=legal, cut=cut, cycles=cycles, reads_rows=True,
    features=features,
)  # fmt: skip
