"""What a plan is made of: buffers, matrices and tables with their places, and bytes of C structures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from shrinkc import abi
from shrinkc.engines import CORES, engine_named
from shrinkc.engines.cores import divisible
from shrinkc.ir.ops.ropecache import KvShape
from shrinkc.ir.steps import numbers_of
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import KIB

TILE_ROUND = 8  # row blocks: one per core
GAINS_L1_MAX = 8 * KIB


def align(n: int, to: int = ALIGN) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class Buffer:
    """A region of one memory, at ``offset`` in its arena; in lower memories the linker gives it its place.

    ``live``: the steps of ``Plan.steps``, rising, in which it holds something, or is worked in; in others its
    bytes are another buffer's."""

    name: str
    level: str
    bytes: int
    live: tuple[int, ...]
    offset: int = -1

    @classmethod
    def of_json(cls, *, live: Iterable[int], **fields: Any) -> Buffer:
        return cls(live=tuple(live), **fields)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each time that it is live."""
        out: list[tuple[int, int]] = []
        for at in self.live:
            begins = out.pop()[0] if out and out[-1][1] + 1 == at else at
            out.append((begins, at))
        return out


@dataclass(frozen=True)
class Placement:
    """Where one matrix is stored and how it is cut.  Equal matrices have one place (ModelShape.shared).

    ``engine`` reads it: the cores tile by tile, others whole and in place.  Where ``interleave`` is not 0, the first
    tile and each ``interleave``-th after it are in the memory ``chip_level``, one after the other from ``chip_offset``
    on, and the others so in ``level``; ``bytes`` are all of them.
    """

    name: str
    level: str
    offset: int
    bytes: int
    block_bytes: int
    blocks: int
    tile_blocks: int
    engine: str = CORES
    interleave: int = 0
    chip_level: str = ""
    chip_offset: int = 0

    @property
    def chip_bytes(self) -> int:
        """Of the tiles in ``chip_level``."""
        if not self.interleave:
            return 0
        return interleaved_blocks(self.blocks, self.tile_blocks, self.interleave) * self.block_bytes

    @property
    def pieces(self) -> tuple[tuple[str, int, int], ...]:
        """Memory, offset and bytes of what lies together."""
        rest = (self.level, self.offset, self.bytes - self.chip_bytes)
        return (
            ((self.chip_level, self.chip_offset, self.chip_bytes), rest)
            if self.interleave
            else (rest,)
        )

    def tile_on_chip(self, tile: int) -> bool:
        """Whether that tile is in ``chip_level``."""
        return self.interleave > 0 and tile % self.interleave == 0


def interleaved_blocks(blocks: int, tile_blocks: int, interleave: int) -> int:
    """Row blocks of the first tile and each ``interleave``-th after it."""
    tiles = -(-blocks // tile_blocks)
    count = -(-tiles // interleave)
    lacks = tiles * tile_blocks - blocks if (tiles - 1) % interleave == 0 else 0  # of the last tile
    return count * tile_blocks - lacks


def pieces_in(placements: Iterable[Placement], level: str) -> Iterator[tuple[Placement, int, int]]:
    """Each placement that a memory holds something of, with its offset and bytes there."""
    for p in placements:
        yield from ((p, offset, size) for where, offset, size in p.pieces if where == level)


def stored_in(placements: Iterable[Placement], level: str) -> list[tuple[str, int, int]]:
    """Name, offset and bytes of what a memory holds of matrices, equal ones once, with the name of the first."""
    found: dict[int, tuple[str, int, int]] = {}
    for p, offset, size in pieces_in(placements, level):
        found.setdefault(offset, (p.name, offset, size))
    return list(found.values())


@dataclass(frozen=True)
class Table:
    """Where a table lies that a pass or a token reads few bytes of: "rope", or "pieces", the text of
    tokens.  It is stored in its memory's blob, like a matrix."""

    name: str
    level: str
    offset: int
    bytes: int


def table_sizes(s: ModelShape) -> dict[str, int]:
    """Bytes of the tables as they are stored."""
    return {
        "rope": align(2 * s.context * s.head_dim),
        "pieces": align(4 * (s.vocab + 1) + s.piece_bytes),
    }


def kv_shape(s: ModelShape) -> KvShape:
    return KvShape.of(s.context, s.kv_heads, s.head_dim)


def kv_layer_bytes(s: ModelShape) -> int:
    """A layer's cache in a lower memory: keys, then values."""
    kv = kv_shape(s)
    return align(kv.blocks * (kv.k_block + kv.v_block))


def tile_blocks(m: MatrixShape, tile_bytes: int) -> int:
    """Row blocks per tile: a multiple of the cores where possible, tiles of a matrix alike; fewer than cores where
    these split long blocks evenly."""
    most = max(1, min(m.blocks, tile_bytes // m.block_bytes))
    if most >= m.blocks or most < TILE_ROUND:
        evenly = most < min(m.blocks, TILE_ROUND) and divisible(m)
        return 1 << most.bit_length() - 1 if evenly else most
    count = -(-m.blocks // (most // TILE_ROUND * TILE_ROUND))
    even = align(-(-m.blocks // count), TILE_ROUND)
    return even if even * m.block_bytes <= tile_bytes else most // TILE_ROUND * TILE_ROUND


def tile_sizes(m: MatrixShape, tile_bytes: int) -> list[int]:
    """Row blocks of a matrix's tiles, each number once."""
    most = tile_blocks(m, tile_bytes)
    return [n for n in (most, m.blocks % most) if n]


def gain_bytes(s: ModelShape) -> int:
    """All norms' gains."""
    return 4 * s.hidden * (2 * s.num_layers + 1)


def gains_in_l1(s: ModelShape) -> bool:
    """Few gains lie in L1, from where small models read them 1 % of a token sooner."""
    return gain_bytes(s) <= GAINS_L1_MAX


def multiplier_bytes(s: ModelShape) -> int:
    """Row multipliers that the cores apply after another engine."""
    return sum(engine_named(m.engine).multipliers(m) for m in s.matrices if m is not s.embedding)


def layer_table_bytes(s: ModelShape) -> int:
    """sizeof the tables in L1: matrices (an adapter has three) and what engines keep of them, layers,
    functions, and gains where they are few."""
    adapters = sum(1 for m in s.matrices if m.rank)
    gains = align(gain_bytes(s)) if gains_in_l1(s) else 0
    tables = abi.MATRIX_BYTES * (len(s.matrices) + 1 + adapters) + layer_bytes(s) * s.num_layers
    kept = max(engine_named(m.engine).table for m in s.matrices) * len(s.matrices)
    return tables + abi.TABLE_BYTES + gains + align(kept)


def layer_bytes(s: ModelShape) -> int:
    """sizeof(sc_layer) on the 32-bit targets: 4 matrices, the ops' numbers, permutations, biases, and the
    gains and epsilon of heads."""
    at = 16
    for kind in numbers_of(s.steps).values():
        size = next(n // 8 for n in (8, 16, 32) if f"int{n}_t" in kind)
        at = align(at, size) + size
    at = align(at, 4) + 16 * bool(s.perms) + 16 * bool(s.biases)
    return align(at + 8, 8) + 8 if s.head_norms else at
