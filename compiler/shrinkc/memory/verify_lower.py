"""Checks of the lower memories (all but L1): weights, tables, KV cache and other buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shrinkc.abi import InputWord
from shrinkc.engines import CORES, ENGINES
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan
from shrinkc.memory.verify_sizes import (
    group_lengths,
    layer_caches_bytes,
    norm_weight_bytes,
    norm_weights_outside_l1,
    post_norm_bytes,
    streamed_bytes,
    table_bytes,
    vector_words,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import L1, L2, MAPPED, MEMORIES, ON_CHIP, OUTSIDE, Target, fetched


def _l2_needs(plan: Plan, s: ModelShape, t: Target) -> dict[str, int]:
    """Return name -> bytes of the buffers that only L2 can hold."""
    needs = {
        "code and stacks": t.l2_system,
        "layer table": table_bytes(s),
        "input": 4 * (InputWord.TOKENS + s.context),
        "gains": norm_weight_bytes(s),
        "permutations": 2 * s.perms,
    }
    if s.biases:
        needs["biases"] = 4 * s.biases
    if s.kv_bits == 4:
        needs["key orders"] = s.num_layers * s.kv_heads * s.head_dim
    if s.head_norms:
        needs["head gains"] = 2 * s.num_layers * 2 * s.head_dim
    if s.post_norms:
        needs["norms after blocks"] = post_norm_bytes(s)
    if not plan.logits_in_l1:
        needs["logits"] = 4 * s.vocab
    if plan.stage_bytes:
        needs["flash stage"] = plan.stages * plan.stage_bytes
        needs["embedding stage"] = plan.embed_stage
    if plan.kv_streamed:
        needs["kv stage"] = streamed_bytes(s, plan.chunk, plan.kv_tile_blocks)
    elif any(level in OUTSIDE for level in plan.kv_layers):
        needs["kv stage"] = max(layer_caches_bytes(s, plan.chunk))
    if plan.table_stage:
        needs["table stage"] = plan.table_stage
    return needs


def _cache_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Report layers whose KV cache is neither in L1 nor in a lower memory that a program may write."""
    layers = 0 if plan.kv_in_l1 else s.num_layers
    if sum(plan.kv_layers.values()) != layers or any(n < 1 for n in plan.kv_layers.values()):
        yield f"the cache of {layers} layers lies in the lower memories, planned are {plan.kv_layers}"
    if plan.kv_streamed and (plan.kv_window_blocks or {*plan.kv_layers} - {*OUTSIDE}):
        yield f"kv cache: streamed from {sorted(plan.kv_layers)}, of which L1 holds {plan.kv_window_blocks} blocks"
    if plan.kv_streamed and any(0 < window < 4 for window in s.windows):
        yield f"kv cache: rings of windows of {min(filter(None, s.windows))} positions cannot be streamed"
    if plan.kv_streamed < 0 or (plan.kv_streamed and plan.kv_tile_blocks < 1):
        yield f"kv cache: {plan.kv_streamed} tokens at a time, in pieces of {plan.kv_tile_blocks} blocks"
    sizes = iter(layer_caches_bytes(s, plan.chunk))
    have = {b.level: b.bytes for b in plan.lower_buffers if b.name == "kv cache"}
    if sorted(have) != sorted(plan.kv_layers):
        yield f"kv cache: bytes in {sorted(have)}, layers in {sorted(plan.kv_layers)}"
    for level, count in plan.kv_layers.items():  # in the order of the layers
        need = sum(size for _, size in zip(range(count), sizes, strict=False))
        if have.get(level, -1) < need:
            yield f"{level} kv cache: {have.get(level, 'no')} bytes for {need}"
        if level not in (*ON_CHIP, *OUTSIDE):
            yield f"kv cache: nothing is copied from and to {level}"
        elif need > t.written(level):
            yield f"{level} kv cache: {need} bytes, a program may write {t.written(level)}"


def _table_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Report tables that are missing, doubled, too short or without a buffer to read them through."""
    needs = {
        "rope": 2 * s.context * s.head_dim * s.rope_tables,
        "pieces": 4 * (s.vocab + 1) + s.piece_bytes,
    }
    windows = {"rope": 2 * plan.chunk * s.head_dim * s.rope_tables, "pieces": 64}
    if sorted(table.name for table in plan.tables) != sorted(needs):
        yield f"tables {[table.name for table in plan.tables]}, there have to be {list(needs)}"
    for table in plan.tables:
        if table.bytes < needs.get(table.name, 0) or table.bytes % 4 or table.offset % 4:
            yield f"{table.name}: {table.bytes} bytes at {table.offset} for {needs.get(table.name)}"
        if not t.has(table.level) or table.level == L1:
            yield f"{table.name}: unknown level {table.level}"
        if (
            t.has(table.level)
            and fetched(table.level)
            and plan.table_stage < windows.get(table.name, 0)
        ):
            yield f"{table.name}: table stage of {plan.table_stage} for {windows.get(table.name)}"


def _board_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Check that everything written is in RAM and that all weights can be read in place."""
    if not plan.kv_in_l1 or not plan.logits_in_l1:
        yield "cache or logits are not in RAM"
    if plan.tile_bytes or plan.stage_bytes or plan.embed_stage or plan.table_stage:
        yield "a buffer for weights or tables, which are read in place"
    for p in plan.placements:
        if p.tile_blocks != p.blocks:
            yield f"{p.name}: tiles of {p.tile_blocks} blocks, and it is read in place"


def _flash_needs(s: ModelShape, t: Target) -> dict[str, int]:
    """Return the bytes of each part of a board's flash besides weights and tables."""
    needs = {"code": t.l2_system, "layer table": table_bytes(s)}
    if norm_weights_outside_l1(s):
        needs["gains"] = norm_weight_bytes(s)
    if s.perms:
        needs["permutations"] = 2 * s.perms
    if s.biases:
        needs["biases"] = 4 * s.biases
    if s.kv_bits == 4:
        needs["key orders"] = s.num_layers * s.kv_heads * s.head_dim
    if s.head_norms:
        needs["head gains"] = 2 * s.num_layers * 2 * s.head_dim
    if s.post_norms:
        needs["norms after blocks"] = post_norm_bytes(s)
    return needs


def lower_memory_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Report faults of buffers, KV cache and tables, and lower memories that are too small."""
    if t.board:
        yield from _board_faults(plan, s, t)
    place = MAPPED if t.board else L2
    have = {b.name: b.bytes for b in plan.lower_buffers if b.level == place}
    for name, size in (_flash_needs(s, t) if t.board else _l2_needs(plan, s, t)).items():
        if have.get(name, -1) < size:
            yield f"{t.kind(place).label} {name}: {have.get(name, 'no')} bytes for {size}"
    yield from _cache_faults(plan, s, t)
    yield from _table_faults(plan, s, t)
    for level in t.levels[1:]:
        stored = [
            offset + size
            for p in plan.placements
            for where, offset, size in _pieces(p)
            if where == level.name
        ]
        stored += [table.offset + table.bytes for table in plan.tables if table.level == level.name]
        others = sum(b.bytes for b in plan.lower_buffers if b.level == level.name)
        if stored and level not in t.stored:
            yield f"{level.name}: nothing can be stored there"
        if others and fetched(level.name):
            yield f"{level.name}: buffers in a memory that is only read"
        if max(stored, default=0) + others > level.bytes:
            yield f"{t.kind(level.name).label}: {max(stored, default=0) + others} bytes of {level.bytes}"
    for b in plan.lower_buffers:
        if not t.has(b.level):
            yield f"{b.name}: unknown level {b.level}"


def engine_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Report matrices that their engine cannot run or read."""
    places = {p.name: p for p in plan.placements}
    for m in (m for m in s.matrices if m.name in places):
        p, engine = places[m.name], ENGINES[m.engine]
        if p.engine != m.engine:
            yield f"{m.name}: planned for {p.engine}, quantised for {m.engine}"
        if m.engine not in t.engines:
            yield f"{m.name}: {t.name} has no engine {m.engine}"
        if m.store != engine.store:
            yield f"{m.name}: stored as {m.store.name}, {m.engine} reads {engine.store.name}"
        if m.engine == CORES:
            continue
        if p.level not in engine.levels:
            yield f"{m.name}: in {p.level}, {m.engine} reads {' and '.join(engine.levels)}"
        if p.offset % engine.store.align:
            yield f"{m.name}: stored at {p.offset}, not a multiple of {engine.store.align}"
        if m.rank:
            yield f"{m.name}: an adapter on {m.engine}"
        if m.name == "embedding":
            yield f"{m.name}: on {m.engine}, but nothing is multiplied with it"
        if m.name == "head" and s.embedding is None and not engine.reads_rows:
            yield f"{m.name}: {m.engine} gives no rows of it"


def _pieces(p: Placement) -> list[tuple[str, int, int]]:
    """Return (memory, offset, bytes) of each contiguous part of a matrix."""
    if not p.interleave:
        return [(p.level, p.offset, p.bytes)]
    chip = 0
    for tile, at in enumerate(range(0, p.blocks, max(1, p.tile_blocks))):
        if tile % p.interleave == 0:
            chip += min(p.tile_blocks, p.blocks - at) * p.block_bytes
    return [(p.level, p.offset, p.bytes - chip), (p.chip_level, p.chip_offset, chip)]


def weight_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Report matrices that are missing, misplaced, of the wrong size, or overlap."""
    capacity = {v.name: v.bytes for v in t.levels if v.name != L1}
    by_name = {p.name: p for p in plan.placements}
    if len(by_name) != len(plan.placements):
        yield "a matrix is placed twice"
    owners = dict(s.shared)
    shapes = {m.name: m for m in s.matrices}
    for name, owner in s.shared:
        if owner not in shapes or owner in owners or name not in shapes:
            yield f"{name}: shares the bytes of {owner}, which has none"
        elif replace(shapes[name], name=owner) != shapes[owner]:
            yield f"{name}: shares the bytes of {owner}, which is of another shape"
        elif name in by_name and replace(by_name[name], name=owner) != by_name.get(owner):
            yield f"{name}: not placed where {owner} is, whose bytes it shares"
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for x in plan.tables:
        spans.setdefault(x.level, []).append((x.offset, x.offset + x.bytes, x.name))
    embedding = "embedding" if s.embedding else "head"
    if not (2 <= plan.stages <= 8 if plan.stage_bytes else plan.stages == 0):
        yield f"{plan.stages} flash stages of {plan.stage_bytes} bytes: 2 to 8, of which one is copied, or none"
    for m in s.matrices:
        p = by_name.pop(m.name, None)
        if p is None:
            yield f"{m.name}: not placed"
            continue
        rows, size, trailer = 8, 16 + vector_words(m.k, m.group, m.bits, m.pad) * 4 * m.bits, 0
        offsets = {0: 0, 1: 4, 2: 16}[m.offsets]  # none, zero points, any
        size += len(group_lengths(m.k, m.group)) * (8 * int(m.grouped) + offsets)
        if m.rank:
            size += 16 + vector_words(m.rank, m.rank, 8) * 32
        if m.engine != CORES:  # only the engine's store knows how it lays out a matrix
            store = m.store
            rows, size, trailer = store.rows, store.block_bytes(m), store.trailer_bytes(m)
        if p.block_bytes != size or p.bytes != p.blocks * size + trailer:
            yield f"{m.name}: blocks of {size} bytes; the plan says {p.block_bytes}, {p.bytes} in all"
        if p.blocks * rows < m.rows or (p.blocks - 1) * rows >= m.rows:
            yield f"{m.name}: {p.blocks} blocks for {m.rows} rows"
        if not 1 <= p.tile_blocks <= p.blocks:
            yield f"{m.name}: {p.tile_blocks} blocks per tile"
        tiled = m.name != "embedding" and m.engine == CORES
        if tiled and not t.board and p.tile_blocks * size > plan.tile_bytes:
            yield f"{m.name}: tile of {p.tile_blocks * size} bytes in {plan.tile_bytes}"
        outside = p.level in MEMORIES and fetched(p.level)
        if outside and m.name != "embedding" and plan.stage_bytes < p.tile_blocks * size:
            yield f"{m.name}: flash stage of {plan.stage_bytes} for {p.tile_blocks * size}"
        if outside and m.name == embedding and plan.embed_stage < size:
            yield f"{m.name}: embedding stage of {plan.embed_stage} for {size}"
        if p.offset % 4 or p.offset < 0:
            yield f"{m.name}: stored at {p.offset}, not a multiple of 4 from 0 on"
        if p.level not in capacity:
            yield f"{m.name}: unknown level {p.level}"
            continue
        if p.interleave and (m.name != "head" or m.engine != CORES or p.interleave < 2):
            yield f"{m.name}: one of {p.interleave} tiles on the chip; only the head can be interleaved, by two or more"
        if p.interleave and (p.chip_level not in ON_CHIP or not t.has(p.chip_level) or not outside):
            yield f"{m.name}: tiles in {p.chip_level}, which is not on the chip, or the others not in flash"
        if p.interleave and not all(held for _, _, held in _pieces(p)):
            yield f"{m.name}: one of {p.interleave} tiles on the chip leaves nothing in {p.level}"
        if p.interleave and (p.chip_offset % 4 or p.chip_offset < 0):
            yield f"{m.name}: stored at {p.chip_offset}, not a multiple of 4 from 0 on"
        if m.name in owners:
            continue  # it shares its owner's bytes
        for level, offset, held in _pieces(p):
            spans.setdefault(level, []).append((offset, offset + held, m.name))
    for name in by_name:
        yield f"{name}: placed but not in the model"
    for level, taken in spans.items():
        taken.sort()
        for (_, end, a), (start, _, c) in zip(taken, taken[1:], strict=False):
            if start < end:
                yield f"{level}: {a} and {c} overlap by {end - start} bytes"
        if level in capacity and taken[-1][1] > capacity[level]:
            yield f"{level}: {taken[-1][1]} bytes used of {capacity[level]}"
