"""Parts of a memory plan: places of buffers, matrices and tables, and sizes of C structures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from shrinkc import abi
from shrinkc.engines import CORES, engine_named
from shrinkc.engines.choice import PROMPT
from shrinkc.engines.cores import divisible
from shrinkc.ir.ops.ropecache import KvShape
from shrinkc.ir.steps import cached_positions, numbers_of
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, KV_BITS, MatrixShape
from shrinkc.targets import KIB, Target

KV_POSITIONS = 4  # of a block of the KV cache
TILE_ROUND = 8  # row blocks: one per core
NORM_WEIGHTS_L1_MAX = 8 * KIB
POST_NORM_BYTES = 24  # of sc_post_norm


def align(n: int, to: int = ALIGN) -> int:
    return -(-n // to) * to


@dataclass(frozen=True)
class Buffer:
    """A region of one memory, at byte ``offset`` of the L1 arena; in lower memories the linker places it.

    ``live``: ascending indices into ``Plan.steps`` of the steps that need the buffer.  In other steps its bytes can
    belong to other buffers."""

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
        """(first, last) step of each contiguous lifetime."""
        out: list[tuple[int, int]] = []
        for at in self.live:
            begins = out.pop()[0] if out and out[-1][1] + 1 == at else at
            out.append((begins, at))
        return out


@dataclass(frozen=True)
class Placement:
    """Place and tiles of one matrix.  Equal matrices share one place (ModelShape.shared).

    The cores copy the matrix into L1 in tiles of ``tile_blocks`` row blocks; other engines read it in place.
    With ``interleave`` n > 0, tiles 0, n, 2n … are in the on-chip memory ``chip_level``, contiguous from
    ``chip_offset``; the other tiles are contiguous in ``level``.  ``bytes`` counts both parts.
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
        """Bytes of the tiles in ``chip_level``."""
        if not self.interleave:
            return 0
        return interleaved_blocks(self.blocks, self.tile_blocks, self.interleave) * self.block_bytes

    @property
    def pieces(self) -> tuple[tuple[str, int, int], ...]:
        """(memory, offset, bytes) of each contiguous part."""
        rest = (self.level, self.offset, self.bytes - self.chip_bytes)
        return (
            ((self.chip_level, self.chip_offset, self.chip_bytes), rest)
            if self.interleave
            else (rest,)
        )

    def tile_on_chip(self, tile: int) -> bool:
        """Return whether a tile is in ``chip_level``."""
        return self.interleave > 0 and tile % self.interleave == 0


def interleaved_blocks(blocks: int, tile_blocks: int, interleave: int) -> int:
    """Return the row blocks of tiles 0, ``interleave``, 2 * ``interleave`` …"""
    tiles = -(-blocks // tile_blocks)
    count = -(-tiles // interleave)
    missing_in_last = tiles * tile_blocks - blocks if (tiles - 1) % interleave == 0 else 0
    return count * tile_blocks - missing_in_last


def pieces_in(placements: Iterable[Placement], level: str) -> Iterator[tuple[Placement, int, int]]:
    """Yield each placement with bytes in a memory, with its offset and bytes there."""
    for p in placements:
        yield from ((p, offset, size) for where, offset, size in p.pieces if where == level)


def stored_in(placements: Iterable[Placement], level: str) -> list[tuple[str, int, int]]:
    """Return (name, offset, bytes) of the matrices in a memory; equal matrices once, with the first one's name."""
    found: dict[int, tuple[str, int, int]] = {}
    for p, offset, size in pieces_in(placements, level):
        found.setdefault(offset, (p.name, offset, size))
    return list(found.values())


@dataclass(frozen=True)
class Table:
    """Place of a lookup table: "rope", or "pieces" (the text of each token).  A pass reads few bytes of it.

    It is stored in the blob of its memory, like a matrix."""

    name: str
    level: str
    offset: int
    bytes: int


def table_sizes(s: ModelShape) -> dict[str, int]:
    """Return the stored bytes of each lookup table."""
    return {
        "rope": align(2 * s.context * s.head_dim * s.rope_tables),
        "pieces": align(4 * (s.vocab + 1) + s.piece_bytes),
    }


def kv_shapes(s: ModelShape, chunk: int) -> list[KvShape]:
    """Return the shape of each layer's KV cache, in a plan with prefill chunks of ``chunk`` tokens."""
    windows = s.windows or (0,) * s.num_layers
    return [KvShape.of(cached_positions(s.context, window, chunk), s) for window in windows]


def kv_shape(s: ModelShape, chunk: int) -> KvShape:
    """Return the shape of the longest KV cache of a layer."""
    return max(kv_shapes(s, chunk), key=lambda kv: kv.blocks)


def kv_layers_bytes(s: ModelShape, chunk: int) -> list[int]:
    """Return the bytes of each layer's KV cache in a lower memory: keys, then values."""
    return [align(kv.blocks * (kv.k_block + kv.v_block)) for kv in kv_shapes(s, chunk)]


def kv_stage_bytes(s: ModelShape, chunk: int, tile: int) -> int:
    """Return the bytes of L2 with which a layer's KV cache streams from HyperRAM.

    They hold two pieces of ``tile`` blocks, and the blocks that a pass writes, whose first position may be the last
    one of a block."""
    kv = kv_shape(s, chunk)
    new = (chunk + 2 * KV_POSITIONS - 2) // KV_POSITIONS
    return (2 * tile + new) * (kv.k_block + kv.v_block)


def rings_can_stream(windows: Sequence[int]) -> bool:
    """Return whether caches of layers with these windows (0: none) can stream from HyperRAM.

    A pass writes whole blocks, and a ring must not have two parts of a pass in one block."""
    return all(window >= KV_POSITIONS for window in windows if window)


def tile_blocks(m: MatrixShape, tile_bytes: int) -> int:
    """Return the row blocks per tile of at most ``tile_bytes``.

    It is a multiple of the cores if possible, and such that the tiles of a matrix are equally large.  With fewer
    blocks than cores it is a power of two if the cores can split long blocks."""
    most = max(1, min(m.blocks, tile_bytes // m.block_bytes))
    if most >= m.blocks or most < TILE_ROUND:
        evenly = most < min(m.blocks, TILE_ROUND) and divisible(m)
        return 1 << most.bit_length() - 1 if evenly else most
    count = -(-m.blocks // (most // TILE_ROUND * TILE_ROUND))
    even = align(-(-m.blocks // count), TILE_ROUND)
    return even if even * m.block_bytes <= tile_bytes else most // TILE_ROUND * TILE_ROUND


def tile_sizes(m: MatrixShape, tile_bytes: int) -> list[int]:
    """Return the different tile sizes of a matrix in row blocks: that of full tiles, and of a smaller last one."""
    most = tile_blocks(m, tile_bytes)
    return [n for n in (most, m.blocks % most) if n]


def key_order_bytes(s: ModelShape) -> int:
    """Return the bytes of the orders of key channels, which a KV cache of 4 bits has."""
    return 0 if s.kv_bits == KV_BITS[0] else s.num_layers * s.kv_heads * s.head_dim


def norm_weight_bytes(s: ModelShape) -> int:
    """Return the bytes of all RMSNorm weights."""
    return 4 * s.hidden * (2 * s.num_layers + 1)


def post_norm_bytes(s: ModelShape) -> int:
    """Return the bytes of the norms after attention and MLP: an sc_post_norm and weights for each."""
    return s.num_layers * s.post_norms * (POST_NORM_BYTES + 4 * s.hidden)


def norm_weights_in_l1(s: ModelShape) -> bool:
    """Return whether the RMSNorm weights are in L1: small models decode 1 % faster then."""
    return norm_weight_bytes(s) <= NORM_WEIGHTS_L1_MAX


def multiplier_bytes(s: ModelShape) -> int:
    """Return the bytes of the row multipliers that the cores apply to results of other engines."""
    return sum(engine_named(m.engine).multipliers(m) for m in s.matrices if m is not s.embedding)


def layer_table_bytes(s: ModelShape) -> int:
    """Return the bytes of the tables in L1: matrices, layers, functions, engines' entries per matrix, and the RMSNorm
    weights if they are in L1.  A matrix with an adapter has three entries."""
    adapters = sum(1 for m in s.matrices if m.rank)
    norms = align(norm_weight_bytes(s)) if norm_weights_in_l1(s) else 0
    tables = abi.MATRIX_BYTES * (len(s.matrices) + 1 + adapters) + layer_bytes(s) * s.num_layers
    kept = max(engine_named(m.engine).table for m in s.matrices) * len(s.matrices)
    return tables + abi.TABLE_BYTES + norms + align(kept)


def fixed_in_l1(s: ModelShape, t: Target) -> int:
    """Return the bytes of L1 besides the arena.

    On a board L1 is the RAM.  It also holds the tokens of a run and the hashes of layers, but no tables.
    """
    if t.board:
        return (
            t.l1_system + align(4 * abi.input_words(s.context)) + align(4 * s.num_layers * PROMPT)
        )
    return t.l1_system + layer_table_bytes(s)


def layer_bytes(s: ModelShape) -> int:
    """Return sizeof(sc_layer) on 32-bit targets: 4 matrices, the ops' numbers, biases, and the weights
    and epsilon of head norms."""
    at = 16
    for kind in numbers_of(s.steps).values():
        size = next(n // 8 for n in (8, 16, 32) if f"int{n}_t" in kind)
        at = align(at, size) + size
    at = align(at, 4) + 16 * bool(s.biases)
    return align(at + 8, 8) + 8 if s.head_norms else at
