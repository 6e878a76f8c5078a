"""Places in the lower memories (all but L1): of weights, the KV cache, tables, and what only L2 can hold.

L2 and weight memory are copied from at one speed; flash, eight times slower, delays a pass by what it has to
deliver.  So the arrangement is taken of which the least comes from flash in a pass: weights are streamed whole, of
tables a row, and a cache in weight memory costs nothing unless weights have to make room for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from shrinkc import abi
from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.engines import CORES, engine_named
from shrinkc.memory.parts import (
    Buffer,
    Placement,
    Table,
    align,
    gain_bytes,
    interleaved_blocks,
    kv_layer_bytes,
    kv_shape,
    layer_table_bytes,
    table_sizes,
    tile_blocks,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import FETCHED, L2, ON_CHIP, OUTSIDE, Target, by_access, fetched

CACHE_LEVELS = (*ON_CHIP, *OUTSIDE)
"""Where the cache may lie that is not in L1, a layer here and a layer there."""

PIECE_WINDOW = 64  # bytes of the decode table that are fetched together
FETCH_CYCLES = 250  # a fetch of few bytes: seven registers, the latency, and asking for its end


@dataclass(frozen=True)
class Asked:
    """What the use of L1 that was decided asks of the lower memories.

    ``stages``: buffers that tiles from flash come through.  ``interleave_matrices``: the matrices on the chip are
    not the first of a pass but every few, so that flash works all along.  ``interleave_head``: each so many-th tile
    of the head is on the chip before anything else; 0: none.
    """

    kv_in_l1: bool
    logits_in_l1: bool
    chunk: int
    tile: int
    stages: int = 2
    interleave_matrices: bool = False
    interleave_head: int = 0


@dataclass(frozen=True)
class Arrangement:
    """A way to lay out the lower memories; ``kv_layers``: memory -> the layers whose cache it holds, the
    first ones in L2, the last ones in HyperRAM."""

    placements: list[Placement]
    tables: list[Table]
    kv_layers: dict[str, int]
    buffers: list[Buffer]
    used: dict[str, int]
    stage_bytes: int
    embed_stage: int
    table_stage: int
    fetched: int  # cycles per pass that flash and HyperRAM take

    @property
    def unstaged(self) -> bool:
        """Whether weights are in flash and there is no buffer for them to come through."""
        return not self.stage_bytes and any(fetched(p.level) for p in self.placements)


@dataclass(frozen=True)
class _Way:
    """What an arrangement tries: the memories of the cache in their order, the tables in flash, and whether
    there are buffers for weights from there."""

    cache: tuple[str, ...]
    in_flash: frozenset[str]
    staged: bool


@dataclass(frozen=True)
class _Reserved:
    """What is taken before weights are placed: bytes at the end of every memory, and tables at its begin."""

    buffers: list[tuple[str, str, int]]  # name, level, bytes
    tables: list[Table]
    kv_layers: dict[str, int]
    stage: int
    embed: int
    table_stage: int

    def bytes(self, level: str) -> int:
        return sum(align(size) for _, where, size in self.buffers if where == level)


def _fixed(s: ModelShape, t: Target, logits_in_l1: bool) -> list[tuple[str, int]]:
    """(name, bytes) of what only L2 can hold."""
    out = [
        ("code and stacks", t.l2_system),
        ("layer table", layer_table_bytes(s)),
        ("input", 4 * abi.input_words(s.context)),
        ("gains", gain_bytes(s)),
        ("permutations", 2 * s.perms),
    ]
    if s.biases:
        out.append(("biases", 4 * s.biases))
    if s.head_norms:
        out.append(("head gains", 4 * s.head_dim * s.num_layers))
    if not logits_in_l1:
        out.append(("logits", 4 * s.vocab))
    return out


def _reserve(s: ModelShape, t: Target, asked: Asked, way: _Way) -> _Reserved | Lack | None:
    """The places of everything but weights; None: a larger L2 would not make that way of use."""
    fixed = _fixed(s, t, asked.logits_in_l1)
    stage = embed = table_stage = 0
    if way.staged:
        # where engines run every matrix nothing travels but the embedding
        stage, embed = (
            max(asked.tile, ALIGN),
            max(m.block_bytes for m in (s.head, s.embedding or s.head)),
        )
        fixed += [("flash stage", asked.stages * align(stage)), ("embedding stage", align(embed))]
    if way.in_flash:
        rows = 2 * asked.chunk * s.head_dim if "rope" in way.in_flash else 0
        table_stage = max(rows, PIECE_WINDOW if "pieces" in way.in_flash else 0)
        fixed.append(("table stage", table_stage))
    swapped = any(v in OUTSIDE for v in way.cache)
    if swapped and not asked.kv_in_l1:
        fixed.append(("kv stage", kv_layer_bytes(s)))
    free = {v.name: v.bytes for v in t.levels[1:]}
    free[L2] -= sum(align(size) for _, size in fixed)
    buffers = [(name, L2, size) for name, size in fixed]

    # the cache: whole layers, as many as the memories hold in that order
    size, left = kv_layer_bytes(s), 0 if asked.kv_in_l1 else s.num_layers
    kv_layers: dict[str, int] = {}
    for level in way.cache:
        fit = min(left, max(0, min(free.get(level, 0), t.written(level))) // size)
        if fit:
            kv_layers[level], left = fit, left - fit
            free[level] -= fit * size
            buffers.append(("kv cache", level, fit * size))

    tables, missing = [], [("kv cache", left * size)] if left else []
    at = dict.fromkeys(free, 0)
    for name, table in table_sizes(s).items():
        levels = by_access(FETCHED) if name in way.in_flash else ON_CHIP
        where = next((v for v in levels if free.get(v, -1) >= table), None)
        if where is None:
            missing.append((name, table))
            continue
        tables.append(Table(name, where, at[where], table))
        at[where], free[where] = at[where] + table, free[where] - table
    if left and L2 not in way.cache:
        return None
    if not left and swapped and not any(v in OUTSIDE for v in kv_layers):
        return None
    if missing or free[L2] < 0:
        held = [(name, size) for name, level, size in buffers if level == L2]
        held += [(x.name, x.bytes) for x in tables if x.level == L2] + missing
        total: dict[str, int] = {}
        for name, size in held:
            total[name] = total.get(name, 0) + align(size)
        largest = sorted(total.items(), key=lambda f: -f[1])[:3]
        return Lack(L2, sum(total.values()), t.l2, tuple(largest))
    return _Reserved(buffers, tables, kv_layers, stage, embed, table_stage)


def _arrange(s: ModelShape, t: Target, asked: Asked, way: _Way) -> Arrangement | Lack | None:
    """Everything placed that way: weights in the order in which they are read, or some of those before all others,
    each in the first memory that still holds it; those first that an engine reads in place."""
    reserved = _reserve(s, t, asked, way)
    if not isinstance(reserved, _Reserved):
        return reserved
    room = {v.name: v.bytes - reserved.bytes(v.name) for v in t.stored}
    at = {v.name: 0 for v in t.levels[1:]}
    for table in reserved.tables:
        at[table.level] = max(at[table.level], table.offset + table.bytes)
    out: dict[str, Placement] = {}
    owners, short, without = dict(s.shared), dict[str, int](), set[str]()
    usual = sorted(s.matrices, key=lambda m: m.engine == CORES)
    levels = {
        name: [v for v in engine_named(name).levels or room if v in room]
        for name in {m.engine for m in usual}
    }
    interleaved = _interleaved_head(s.head, asked, room, at)
    for m in _interleaved(usual, owners, room, at) if asked.interleave_matrices else usual:
        owner = owners.get(m.name)
        if owner in out:
            out[m.name] = replace(out[owner], name=m.name)
        if owner in out or owner in without:
            continue
        for level in levels[m.engine]:
            start = align(at[level], m.store.align)
            if start + m.bytes <= room[level]:
                break
        else:  # the last memory would have to be larger, by what all such matrices take of it
            short[level] = start + m.bytes - room[level]
            at[level] = start + align(m.bytes)
            without.add(m.name)
            continue
        if interleaved is not None and m.name == s.head.name:
            p = replace(interleaved, level=level, offset=start)
        else:
            blocks = tile_blocks(m, asked.tile) if m.engine == CORES else m.blocks
            p = Placement(m.name, level, start, m.bytes, m.block_bytes, m.blocks, blocks, m.engine)
        out[m.name] = p
        at[level] = start + align(m.bytes - p.chip_bytes)
    # nobody is told: whoever asks has another plan
    if asked.interleave_head and (
        interleaved is None or s.head.name not in out or _on_chip(out[s.head.name])
    ):
        whole = (s.head.name, s.head.bytes)
        return Lack("weights", s.head.bytes, 0, (whole,), tuple(v.label for v in t.stored))
    if short:
        big = sorted(s.matrices, key=lambda m: -m.bytes)[:3]
        need, names = sum(align(m.bytes) for m in s.stored), tuple(v.label for v in t.stored)
        have = need - sum(short.values())
        return Lack("weights", need, have, tuple((m.name, m.bytes) for m in big), names)
    always = tuple(range(len(s.steps)))
    buffers = [Buffer(name, level, align(size), always) for name, level, size in reserved.buffers]
    placements = [out[m.name] for m in usual]
    return Arrangement(
        placements, reserved.tables, {v: reserved.kv_layers[v] for v in CACHE_LEVELS if v in reserved.kv_layers},
        buffers,
        {v: at[v] + reserved.bytes(v) for v in at},
        reserved.stage, reserved.embed, reserved.table_stage,
        _fetched(s, t, placements, way) + _swapped(s, sum(reserved.kv_layers.get(v, 0) for v in OUTSIDE)),
    )  # fmt: skip


def _on_chip(p: Placement) -> bool:
    """Whether the cores read it without a fetch."""
    return not fetched(p.level)


def _interleaved_head(
    head: MatrixShape, asked: Asked, room: dict[str, int], at: dict[str, int]
) -> Placement | None:
    """The head with some of its tiles on the chip, its others nowhere yet; None where these have no room there."""
    if not asked.interleave_head or head.engine != CORES:
        return None
    blocks = tile_blocks(head, asked.tile)
    chip = interleaved_blocks(head.blocks, blocks, asked.interleave_head)
    if chip == head.blocks:
        return None
    size = chip * head.block_bytes
    for level in (v for v in room if not fetched(v)):
        offset = align(at[level], head.store.align)
        if offset + size <= room[level]:
            at[level] = offset + align(size)
            return Placement(
                head.name, "", 0, head.bytes, head.block_bytes, head.blocks, blocks, head.engine,
                asked.interleave_head, level, offset,
            )  # fmt: skip
    return None


def _interleaved(
    usual: list[MatrixShape], owners: dict[str, str], room: dict[str, int], at: dict[str, int]
) -> list[MatrixShape]:
    """Another order: matrices that are to be on the chip come first.  They are chosen evenly along a pass, as far as
    whole matrices allow.  A matrix that shares bytes comes after their owner."""
    in_place = [m for m in usual if m.engine != CORES]
    taken = sum(align(m.bytes) for m in in_place if m.name not in owners)
    free = [room[v] - at[v] for v in room if not fetched(v)]
    left = sum(free) - taken
    # an embedding of its own does not travel: of it a row is read
    travels = [m for m in usual if m.engine == CORES and m.name != "embedding"]
    most = min(left, max(free, default=0))
    fitting = [m for m in travels if m.name not in owners and m.bytes <= most]
    share = left / max(1, sum(m.bytes for m in fitting))
    chosen, owed = set[str](), 0.0
    for m in fitting:
        owed += share * m.bytes
        if owed >= m.bytes / 2:
            chosen.add(m.name)
            owed -= m.bytes
    rest = [m for m in usual if m.name == "embedding" and m.engine == CORES]
    return in_place + sorted(travels, key=lambda m: (m.name in owners, m.name not in chosen)) + rest


def _fetched(s: ModelShape, t: Target, placements: list[Placement], way: _Way) -> int:
    """Cycles of a pass of one token in which flash, a byte per cycle, delivers."""
    slow = {v.name for v in t.stored if fetched(v.name)}
    table = "embedding" if s.embedding else "head"
    cycles = sum(
        p.bytes - p.chip_bytes for p in placements if p.level in slow and p.name != "embedding"
    )
    rows = [p.block_bytes for p in placements if p.level in slow and p.name == table]
    rows += [2 * s.head_dim] * ("rope" in way.in_flash)
    rows += [PIECE_WINDOW] * (2 * ("pieces" in way.in_flash))  # where a piece is, and the piece
    return cycles + sum(FETCH_CYCLES + row for row in rows)


def _swapped(s: ModelShape, layers: int) -> int:
    """Cycles of a pass of one token in which HyperRAM takes and delivers the cache of so many layers, in the
    middle of a full context."""
    kv = kv_shape(s)
    written = (kv.k_block + kv.v_block) * 20 // 11  # 0.55 bytes per cycle
    return layers * (kv_layer_bytes(s) // 2 + written + 4 * FETCH_CYCLES)


def _ways(s: ModelShape, t: Target, asked: Asked) -> Iterator[_Way]:
    """Those worth trying, simplest first."""
    from_outside = any(fetched(v.name) for v in t.stored)
    orders: list[tuple[str, ...]] = [ON_CHIP]
    if not asked.kv_in_l1 and any(t.written(v) for v in ON_CHIP if v != L2):
        orders.append(ON_CHIP[::-1])
    if not asked.kv_in_l1 and any(t.room(v) for v in OUTSIDE):
        orders += [CACHE_LEVELS, OUTSIDE]
    tables = list(table_sizes(s)) if from_outside else []
    subsets = [
        frozenset(some)
        for count in range(len(tables) + 1)
        for some in itertools.combinations(tables, count)
    ]
    for in_flash, staged, order in itertools.product(
        subsets, (False, True)[: 1 + from_outside], orders
    ):
        yield _Way(order, in_flash, staged)


def _would_do(s: ModelShape, t: Target, asked: Asked, way: _Way) -> bool:
    """Whether that way would do, or lack only weights, with all of L2 that it asked for."""
    found = _arrange(s, t, asked, way)
    return isinstance(found, Lack) or (found is not None and not found.unstaged)


def arrange(s: ModelShape, t: Target, asked: Asked) -> Arrangement:
    """The arrangement of which the least is fetched in a pass, the simplest of several.

    Raises DoesNotFit, of L2 with the least that any takes, of weights with the fewest bytes that are short.
    """
    best: Arrangement | None = None
    lacks: list[Lack] = []
    for way in _ways(s, t, asked):
        found = _arrange(s, t, asked, way)
        if isinstance(found, Lack):
            if found.level != L2 or _would_do(s, t.with_room(l2=found.need), asked, way):
                lacks.append(found)
            continue
        if found is None or found.unstaged:
            continue
        if best is None or found.fetched < best.fetched:
            best = found
        if not best.fetched:
            break
    if best is not None:
        return best
    # weights are missing only where L2 holds the rest
    raise DoesNotFit.of(min(lacks, key=lambda lack: (lack.level != "weights", lack.excess)))


def without_weights(s: ModelShape, t: Target, asked: Asked) -> int:
    """Bytes on the chip that no weights can have, where nothing comes from flash.

    Raises DoesNotFit where there are too few.
    """
    found = _reserve(s, t, asked, _Way(ON_CHIP, frozenset(), staged=False))
    if isinstance(found, Lack):
        raise DoesNotFit.of(found)
    assert found is not None, "L2 may hold a cache"
    buffers = sum(found.bytes(v.name) for v in t.on_chip)
    return buffers + sum(table.bytes for table in found.tables)
