"""The cores as an engine: they can run every matrix, from tiles that are copied into L1.

Cycles come from the cost table of Siracusa for all targets, because they are only compared with other engines' cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shrinkc.abi import (
    PRODUCT_BLOCKS,
    ROW_BLOCK,
    SPLIT_GROUPS,
    SPLIT_WORDS,
    WIDE_WORDS,
    product_step,
)
from shrinkc.costs import Work, cost_table
from shrinkc.costs.work import share
from shrinkc.engines.engine import CORES, Engine, Features, MatrixSpec
from shrinkc.storage import BLOCKS, MatrixShape, format_of, stored_group

_CORES = 8
_TARGET = "siracusa"
# Relative time of adding the sums of a pair of rows if they have 16 bits.  GVSoC, 8 tokens, two groups: 215 instead of
# 243 cycles without offsets, 290 instead of 316 with zero points.
_FLAT = 0.9
TILE_CAP = 32 * 1024  # bytes; larger tiles save no measurable time


def cut(k: int, group_size: int | None, bits: int) -> tuple[int, int]:
    return stored_group(k, group_size), format_of(bits).inputs


def split_parts(shape: MatrixShape, blocks: int, cores: int = _CORES) -> int:
    """Return how many cores share each block of a tile of ``blocks`` blocks; 1: blocks are not split (sc_is_split)."""
    return cores // blocks if 2 * blocks <= cores and divisible(shape) else 1


def divisible(shape: MatrixShape) -> bool:
    """Return whether the blocks of a matrix are long enough to be split, and have enough groups."""
    return shape.words >= SPLIT_WORDS and (shape.wide or shape.groups >= SPLIT_GROUPS)


def _pairs(blocks: int, tokens: int) -> int:
    """Return the pairs of tokens that a core multiplies with a block.

    If a tile has fewer blocks than there are cores, the cores also share the tokens (sc_gemm.c)."""
    parts = _CORES // blocks if blocks < _CORES else 1
    twos = -(-tokens // 2)
    return -(-twos // parts)


class _Share(NamedTuple):
    """The busiest core's share of a tile: ``blocks``, ``words`` and ``groups`` of each, which ``parts`` cores split."""

    blocks: int
    words: int
    groups: int
    parts: int


def _share(shape: MatrixShape, blocks: int) -> _Share:
    parts = split_parts(shape, blocks)
    if parts == 1:
        return _Share(share(blocks, _CORES), shape.words, shape.groups, 1)
    if not shape.wide:
        groups = share(shape.groups, parts)
        words = min(shape.words, groups * shape.group_words(min(shape.group, shape.k)))
        return _Share(1, words, groups, parts)
    unit = shape.format.inputs // 4
    return _Share(1, share(shape.words // unit, parts) * unit, 1, parts)


def features(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Return the features of a product on the busiest core.

    The cores take blocks of 8 rows in turn, or split them.  Words (4 inputs of 8 rows) count separately by bit-width,
    and by whether groups have scales or offsets.  For several tokens weights are widened to 8 bits once, and multiplied
    with two vectors at a time."""
    shares = [_share(shape, n) for n in tiles]
    split = sum(s.parts > 1 for s in shares)
    if tokens > 1 and shape.sums:
        # cores without a block of their own take some of the tokens
        twos = [
            -(-tokens // 2) if s.parts > 1 else s.blocks * _pairs(n, tokens)
            for s, n in zip(shares, tiles, strict=True)
        ]
        both = 2 if shape.wide else 1
        pairs = [
            t * both * (-(-s.words // WIDE_WORDS) if shape.wide else s.groups)
            for t, s in zip(twos, shares, strict=True)
        ]
        groups = sum(t * s.groups for t, s in zip(twos, shares, strict=True))
        return {
            "tiles": len(tiles),
            "blocks_of_several": 2 * sum(twos),
            "split_of_several": tokens * split,
            f"widened_w{shape.bits}": sum(s.blocks * s.words for s in shares) * (shape.bits < 8),
            "pair_words": both * sum(t * s.words for t, s in zip(twos, shares, strict=True)),
            "pairs": sum(pairs),
            "pair_scales": groups * shape.grouped,
            "pair_offsets": groups * shape.asymmetric,
        }
    groups = tokens * sum(s.blocks * s.groups for s in shares)
    kind = "group_words" if shape.grouped or shape.asymmetric else "words"
    return {
        "tiles": len(tiles),
        "token_tiles": tokens * len(tiles),
        "blocks": tokens * sum(s.blocks for s in shares),
        "split_tiles": tokens * split,
        f"{kind}_w{shape.bits}": tokens * sum(s.blocks * s.words for s in shares),
        "groups": groups,
        "scales": groups * shape.grouped,
        "offsets": groups * shape.asymmetric,
    }


def with_products(shape: MatrixShape, tokens: int, tiles: Sequence[int]) -> Features:
    """Return the features of a product with several tokens if another engine multiplies (Engine.products)."""
    runs = [
        n // count + (at < n % count)
        for n in tiles
        for count in [-(-n // PRODUCT_BLOCKS)]
        for at in range(count)
    ]
    pairs = sum(share(4 * n, _CORES) for n in runs) * shape.groups * (_FLAT if shape.flat else 1)
    units = shape.words * 4 // shape.format.inputs
    return {
        "tiles": len(tiles),
        "blocks_of_several": sum(share(n * tokens, _CORES) for n in runs),
        "planes": tokens * share(shape.words, _CORES),
        "product_steps": len(runs) * -(-shape.groups // product_step(shape.product_words)),
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
    name=CORES, store=BLOCKS, levels=(), legal=lambda spec: None, cut=cut, cycles=cycles, reads_rows=True,
    features=features,
)  # fmt: skip
