"""Planning of the lower memories (all but L1): weights, KV cache, tables, and buffers that only L2 can hold.

The DMA reads L2 and weight memory at the same speed.  Flash is eight times slower, so the planner chooses the
arrangement with the fewest cycles of flash and HyperRAM per pass.  A pass reads weights completely, but only a row of
each table.
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
    interleaved_blocks,
    key_order_bytes,
    kv_layers_bytes,
    kv_shapes,
    layer_table_bytes,
    norm_weight_bytes,
    post_norm_bytes,
    table_sizes,
    tile_blocks,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import FETCHED, L2, ON_CHIP, OUTSIDE, Target, by_access, fetched

CACHE_LEVELS = (*ON_CHIP, *OUTSIDE)
"""Memories for the KV cache of single layers if it is not in L1."""

PIECE_WINDOW = 64  # bytes of the decode table per fetch
FETCH_CYCLES = 250  # a fetch of a few bytes: writing seven registers, latency, polling for the end


@dataclass(frozen=True)
class LowerNeeds:
    """Requirements of a chosen use of L1 on the lower memories.

    ``stages``: number of L2 buffers for tiles from flash.  ``interleave_matrices``: the matrices on the chip are
    spread over the pass instead of being its first ones, so that flash is busy all the time.
    ``interleave_head`` n > 0: every n-th tile of the LM head gets a place on the chip before any other matrix.
    ``kv_stage``: bytes of L2 through which every layer's KV cache streams from HyperRAM; 0: it does not stream.
    """

    kv_in_l1: bool
    logits_in_l1: bool
    chunk: int
    tile: int
    stages: int = 2
    interleave_matrices: bool = False
    interleave_head: int = 0
    kv_stage: int = 0


@dataclass(frozen=True)
class Arrangement:
    """A complete layout of the lower memories.

    ``kv_layers``: memory -> number of layers whose KV cache it holds; the first layers are in L2, the last ones in
    HyperRAM."""

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
        """Whether weights are in flash without a buffer through which tiles are copied."""
        return not self.stage_bytes and any(fetched(p.level) for p in self.placements)


@dataclass(frozen=True)
class _Strategy:
    """One possibility to try: memories for the cache in order, tables in flash, and whether there are buffers for
    weights from flash."""

    cache: tuple[str, ...]
    in_flash: frozenset[str]
    staged: bool


@dataclass(frozen=True)
class _Reserved:
    """Bytes taken before weights are placed: buffers at the end of each memory, tables at its start."""

    buffers: list[tuple[str, str, int]]  # name, level, bytes
    tables: list[Table]
    kv_layers: dict[str, int]
    stage: int
    embed: int
    table_stage: int

    def bytes(self, level: str) -> int:
        return sum(align(size) for _, where, size in self.buffers if where == level)


def _l2_only(s: ModelShape, t: Target, logits_in_l1: bool) -> list[tuple[str, int]]:
    """Return (name, bytes) of the buffers that only L2 can hold."""
    out = [
        ("code and stacks", t.l2_system),
        ("layer table", layer_table_bytes(s)),
        ("input", 4 * abi.input_words(s.context)),
        ("gains", norm_weight_bytes(s)),
        ("permutations", 2 * s.perms),
    ]
    if s.biases:
        out.append(("biases", 4 * s.biases))
    if s.head_norms:
        out.append(("head gains", 4 * s.head_dim * s.num_layers))
    if size := key_order_bytes(s):
        out.append(("key orders", size))
    if s.post_norms:
        out.append(("norms after blocks", post_norm_bytes(s)))
    if not logits_in_l1:
        out.append(("logits", 4 * s.vocab))
    return out


def _reserve(
    s: ModelShape, t: Target, needs: LowerNeeds, strategy: _Strategy
) -> _Reserved | Lack | None:
    """Reserve memory for everything but weights.

    Returns a Lack if L2 is too small, and None if even a larger L2 would not make the strategy useful."""
    fixed = _l2_only(s, t, needs.logits_in_l1)
    stage = embed = table_stage = 0
    if strategy.staged:
        # if other engines run every matrix, only rows of the embedding are copied
        stage, embed = (
            max(needs.tile, ALIGN),
            max(m.block_bytes for m in (s.head, s.embedding or s.head)),
        )
        fixed += [("flash stage", needs.stages * align(stage)), ("embedding stage", align(embed))]
    if strategy.in_flash:
        rows = 2 * needs.chunk * s.head_dim * s.rope_tables if "rope" in strategy.in_flash else 0
        table_stage = max(rows, PIECE_WINDOW if "pieces" in strategy.in_flash else 0)
        fixed.append(("table stage", table_stage))
    swapped = any(v in OUTSIDE for v in strategy.cache)
    if swapped and not needs.kv_in_l1:
        fixed.append(("kv stage", needs.kv_stage or max(kv_layers_bytes(s, needs.chunk))))
    free = {v.name: v.bytes for v in t.levels[1:]}
    free[L2] -= sum(align(size) for _, size in fixed)
    buffers = [(name, L2, size) for name, size in fixed]

    # each memory in turn takes the cache of as many layers as it can hold
    left = [] if needs.kv_in_l1 else kv_layers_bytes(s, needs.chunk)
    kv_layers: dict[str, int] = {}
    for level in strategy.cache:
        room = max(0, min(free.get(level, 0), t.written(level)))
        fit = sum(total <= room for total in itertools.accumulate(left))
        if fit:
            kv_layers[level], size, left = fit, sum(left[:fit]), left[fit:]
            free[level] -= size
            buffers.append(("kv cache", level, size))

    if left and needs.kv_stage:  # a larger L2 would not help
        (level,) = strategy.cache
        need, name = sum(kv_layers_bytes(s, needs.chunk)), t.kind(level).label
        return Lack(level, need, t.room(level), (("kv cache", need),), name=name)
    tables, missing = [], [("kv cache", sum(left))] if left else []
    at = dict.fromkeys(free, 0)
    for name, table in table_sizes(s).items():
        levels = by_access(FETCHED) if name in strategy.in_flash else ON_CHIP
        where = next((v for v in levels if free.get(v, -1) >= table), None)
        if where is None:
            missing.append((name, table))
            continue
        tables.append(Table(name, where, at[where], table))
        at[where], free[where] = at[where] + table, free[where] - table
    if left and L2 not in strategy.cache:
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


def _arrange(
    s: ModelShape, t: Target, needs: LowerNeeds, strategy: _Strategy
) -> Arrangement | Lack | None:
    """Place everything by one strategy; None or a Lack as in ``_reserve``, or a Lack of room for weights.

    Each matrix goes into the first memory with room for it: matrices of other engines first, then those of the cores
    in the order of a pass, or as ``_spread_over_pass`` orders them."""
    reserved = _reserve(s, t, needs, strategy)
    if not isinstance(reserved, _Reserved):
        return reserved
    room = {v.name: v.bytes - reserved.bytes(v.name) for v in t.stored}
    at = {v.name: 0 for v in t.levels[1:]}
    for table in reserved.tables:
        at[table.level] = max(at[table.level], table.offset + table.bytes)
    out: dict[str, Placement] = {}
    owners, missing, unplaced = dict(s.shared), dict[str, int](), set[str]()
    in_order = sorted(s.matrices, key=lambda m: m.engine == CORES)
    levels = {
        name: [v for v in engine_named(name).levels or room if v in room]
        for name in {m.engine for m in in_order}
    }
    interleaved = _interleaved_head(s.head, needs, room, at)
    spread = needs.interleave_matrices
    for m in _spread_over_pass(in_order, owners, room, at) if spread else in_order:
        owner = owners.get(m.name)
        if owner in out:
            out[m.name] = replace(out[owner], name=m.name)
        if owner in out or owner in unplaced:
            continue
        for level in levels[m.engine]:
            start = align(at[level], m.store.align)
            if start + m.bytes <= room[level]:
                break
        else:  # count the bytes by which the last memory is too small for all such matrices
            missing[level] = start + m.bytes - room[level]
            at[level] = start + align(m.bytes)
            unplaced.add(m.name)
            continue
        if interleaved is not None and m.name == s.head.name:
            p = replace(interleaved, level=level, offset=start)
        else:
            blocks = tile_blocks(m, needs.tile) if m.engine == CORES else m.blocks
            p = Placement(m.name, level, start, m.bytes, m.block_bytes, m.blocks, blocks, m.engine)
        out[m.name] = p
        at[level] = start + align(m.bytes - p.chip_bytes)
    # no user sees this refusal: the planner asks for interleaving only if it has another plan
    if needs.interleave_head and (
        interleaved is None or s.head.name not in out or _on_chip(out[s.head.name])
    ):
        whole = (s.head.name, s.head.bytes)
        return Lack("weights", s.head.bytes, 0, (whole,), tuple(v.label for v in t.stored))
    if missing:
        big = sorted(s.matrices, key=lambda m: -m.bytes)[:3]
        need, names = sum(align(m.bytes) for m in s.stored), tuple(v.label for v in t.stored)
        have = need - sum(missing.values())
        return Lack("weights", need, have, tuple((m.name, m.bytes) for m in big), names)
    always = tuple(range(len(s.steps)))
    buffers = [Buffer(name, level, align(size), always) for name, level, size in reserved.buffers]
    placements = [out[m.name] for m in in_order]
    return Arrangement(
        placements, reserved.tables, {v: reserved.kv_layers[v] for v in CACHE_LEVELS if v in reserved.kv_layers},
        buffers,
        {v: at[v] + reserved.bytes(v) for v in at},
        reserved.stage, reserved.embed, reserved.table_stage,
        _flash_cycles(s, t, placements, strategy)
        + _hyperram_cycles(s, needs, sum(reserved.kv_layers.get(v, 0) for v in OUTSIDE)),
    )  # fmt: skip


def _on_chip(p: Placement) -> bool:
    """Return whether the part in ``level`` is read without a fetch from flash."""
    return not fetched(p.level)


def _interleaved_head(
    head: MatrixShape, needs: LowerNeeds, room: dict[str, int], at: dict[str, int]
) -> Placement | None:
    """Place some tiles of the LM head on the chip, and leave ``level`` of the others open; None if there is no room."""
    if not needs.interleave_head or head.engine != CORES:
        return None
    blocks = tile_blocks(head, needs.tile)
    chip = interleaved_blocks(head.blocks, blocks, needs.interleave_head)
    if chip == head.blocks:
        return None
    size = chip * head.block_bytes
    for level in (v for v in room if not fetched(v)):
        offset = align(at[level], head.store.align)
        if offset + size <= room[level]:
            at[level] = offset + align(size)
            return Placement(
                head.name, "", 0, head.bytes, head.block_bytes, head.blocks, blocks, head.engine,
                needs.interleave_head, level, offset,
            )  # fmt: skip
    return None


def _spread_over_pass(
    in_order: list[MatrixShape], owners: dict[str, str], room: dict[str, int], at: dict[str, int]
) -> list[MatrixShape]:
    """Reorder matrices so that those for the chip come first, chosen evenly over the pass.

    Matrices with the same bytes come after the owner of the bytes."""
    in_place = [m for m in in_order if m.engine != CORES]
    taken = sum(align(m.bytes) for m in in_place if m.name not in owners)
    free = [room[v] - at[v] for v in room if not fetched(v)]
    left = sum(free) - taken
    # a pass reads only a row of an untied embedding
    streamed = [m for m in in_order if m.engine == CORES and m.name != "embedding"]
    most = min(left, max(free, default=0))
    fitting = [m for m in streamed if m.name not in owners and m.bytes <= most]
    share = left / max(1, sum(m.bytes for m in fitting))
    chosen, credit = set[str](), 0.0
    for m in fitting:
        credit += share * m.bytes
        if credit >= m.bytes / 2:
            chosen.add(m.name)
            credit -= m.bytes
    rest = [m for m in in_order if m.name == "embedding" and m.engine == CORES]
    streamed.sort(key=lambda m: (m.name in owners, m.name not in chosen))
    return in_place + streamed + rest


def _flash_cycles(
    s: ModelShape, t: Target, placements: list[Placement], strategy: _Strategy
) -> int:
    """Return the cycles of flash, one per byte, in a pass of one token."""
    slow = {v.name for v in t.stored if fetched(v.name)}
    embedding = "embedding" if s.embedding else "head"
    cycles = sum(
        p.bytes - p.chip_bytes for p in placements if p.level in slow and p.name != "embedding"
    )
    rows = [p.block_bytes for p in placements if p.level in slow and p.name == embedding]
    rows += [2 * s.head_dim * s.rope_tables] * ("rope" in strategy.in_flash)
    rows += [PIECE_WINDOW] * (2 * ("pieces" in strategy.in_flash))  # its offset, and its text
    return cycles + sum(FETCH_CYCLES + row for row in rows)


def _hyperram_cycles(s: ModelShape, needs: LowerNeeds, layers: int) -> int:
    """Return the cycles of HyperRAM to read and write the cache of the last ``layers`` layers in a pass of one token,
    at half of the context.  If it streams, keys are read twice."""
    chunk = needs.chunk
    kv = kv_shapes(s, chunk)[-1]
    written = (kv.k_block + kv.v_block) * 20 // 11  # 0.55 bytes per cycle
    last = kv_layers_bytes(s, chunk)[s.num_layers - layers :]
    blocks = -(-s.context // 4)
    half = align(blocks * (kv.k_block + kv.v_block)) // 2
    again = layers * blocks * kv.k_block // 2 if needs.kv_stage else 0
    return sum(min(size, half) for size in last) + again + layers * (written + 4 * FETCH_CYCLES)


def _strategies(s: ModelShape, t: Target, needs: LowerNeeds) -> Iterator[_Strategy]:
    """Yield the strategies worth trying, simplest first."""
    from_outside = any(fetched(v.name) for v in t.stored)
    orders: list[tuple[str, ...]] = [ON_CHIP]
    if not needs.kv_in_l1 and any(t.written(v) for v in ON_CHIP if v != L2):
        orders.append(ON_CHIP[::-1])
    if needs.kv_stage:
        orders = [OUTSIDE]
    elif not needs.kv_in_l1 and any(t.room(v) for v in OUTSIDE):
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
        yield _Strategy(order, in_flash, staged)


def _feasible(s: ModelShape, t: Target, needs: LowerNeeds, strategy: _Strategy) -> bool:
    """Return whether a strategy gives an arrangement, or lacks only room for weights."""
    found = _arrange(s, t, needs, strategy)
    if isinstance(found, Lack):
        return found.level != L2
    return found is not None and not found.unstaged


def arrange(s: ModelShape, t: Target, needs: LowerNeeds) -> Arrangement:
    """Return the arrangement with the fewest cycles of flash and HyperRAM; the simplest of equal ones.

    Raises DoesNotFit with the smallest L2, or the fewest missing bytes for weights, of all strategies.
    """
    best: Arrangement | None = None
    lacks: list[Lack] = []
    inexact: list[Lack] = []  # more L2 would change what else goes there
    for strategy in _strategies(s, t, needs):
        found = _arrange(s, t, needs, strategy)
        if isinstance(found, Lack):
            if found.level != L2 or _feasible(s, t.with_room(l2=found.need), needs, strategy):
                lacks.append(found)
            else:
                inexact.append(found)
            continue
        if found is None or found.unstaged:
            continue
        if best is None or found.fetched < best.fetched:
            best = found
        if not best.fetched:
            break
    if best is not None:
        return best
    # room for weights is the real problem if some strategy has everything else in L2
    raise DoesNotFit.of(
        min(lacks or inexact, key=lambda lack: (lack.level != "weights", lack.excess))
    )


def reserved_bytes(s: ModelShape, t: Target, needs: LowerNeeds) -> int:
    """Return the on-chip bytes not available for weights if nothing is in flash.

    Raises DoesNotFit if L2 is too small for them.
    """
    cache = OUTSIDE if needs.kv_stage else ON_CHIP
    found = _reserve(s, t, needs, _Strategy(cache, frozenset(), staged=False))
    if isinstance(found, Lack):
        raise DoesNotFit.of(found)
    assert found is not None, "L2 may hold a cache"
    buffers = sum(found.bytes(v.name) for v in t.on_chip)
    return buffers + sum(table.bytes for table in found.tables)
