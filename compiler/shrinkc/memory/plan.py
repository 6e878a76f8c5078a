"""The memory plan: what lies where, for how long, and how weights travel.

L1 holds one arena.  Its phases are the steps of a pass; a buffer lives from the first to the last
step that uses it, and buffers that are never live together may share bytes.  Weight matrices fill
the target's memories in the order they are read and the target names them (behind.py); every matrix is cut
into tiles of whole row blocks that fit the two L1 tile buffers.  What another engine than the cores reads is
not cut: it lies in a memory that the engine reads in place, before all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from shrinkc.abi import LOOKUP_MAX, ROW_BLOCK
from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.engines import CORES, engine_named
from shrinkc.engines.choice import PROMPT
from shrinkc.engines.cores import TILE_CAP
from shrinkc.ir.steps import Access, PassSizes, loop_of
from shrinkc.memory.behind import Asked, arrange, beside_weights
from shrinkc.memory.parts import (
    TILE_ROUND,
    Buffer,
    Placement,
    Table,
    align,
    kv_shape,
    layer_table_bytes,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import KIB, Target

PLAN_VERSION = 4

CHUNKS = (PROMPT, 8, 4, 2, 1)
KV_TILE_CAP = 16 * KIB
KV_WINDOWS = (6, 4, 2, 1)  # eighths of a layer's cache


@dataclass
class Plan:
    """A complete, checkable answer.  ``used`` and ``capacity`` in bytes per level.

    ``kv_layers``: memory -> the layers whose cache it holds, the first ones in L2, the
    last ones in HyperRAM; ``beside``: what memories behind L1 hold beside weights and
    tables; ``verified``: the most tokens of a pass that gives the choices of all.
    """

    target: str
    context: int
    l1_budget: int
    chunk: int
    tile_bytes: int
    kv_in_l1: bool
    kv_layers: dict[str, int]
    kv_window_blocks: int
    kv_tile_blocks: int
    logits_in_l1: bool
    verified: int
    stage_bytes: int
    embed_stage: int
    table_stage: int
    steps: list[str]
    l1: list[Buffer]
    beside: list[Buffer]
    tables: list[Table]
    placements: list[Placement]
    used: dict[str, int]
    capacity: dict[str, int]
    version: int = PLAN_VERSION
    notes: list[str] = field(default_factory=list)

    @property
    def arena_bytes(self) -> int:
        return max(b.offset + b.bytes for b in self.l1)

    def to_json(self) -> dict[str, object]:
        """The fields; of a placement its engine where it is not the cores."""
        out = asdict(self)
        for placement in out["placements"]:
            if placement["engine"] == CORES:
                del placement["engine"]
        return out

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Plan:
        """The plan of which ``to_json`` was written; ValueError or TypeError for another version's."""
        if found.get("version") != PLAN_VERSION:
            raise ValueError(f"version {found.get('version')}, not {PLAN_VERSION}")
        kinds = {"l1": Buffer, "beside": Buffer, "tables": Table, "placements": Placement}
        lists = {name: [kind(**x) for x in found[name]] for name, kind in kinds.items()}
        return cls(**{**found, **lists})


class KvUse(NamedTuple):
    """How the cache uses L1, in blocks of 4 positions: all of it is there; or a layer's while it has no more
    than ``window``, and else pieces of ``tile``."""

    all_in_l1: bool
    window: int
    tile: int


def pass_sizes(
    s: ModelShape,
    t: Target,
    chunk: int,
    tile: int,
    kv: KvUse,
    logits_l1: bool,
    verified: int = 1,
) -> PassSizes:
    """What the steps of a pass compute their buffers from.

    The cores put some rows of all tokens that are verified where one token's logits have room; other
    engines give whole results.
    """
    scratch = max(engine_named(m.engine).scratch(m, chunk) for m in s.matrices)
    return PassSizes(
        steps=s.steps, slots=s.slots, vocab=s.vocab, hidden=s.hidden, heads=s.heads,
        kv_heads=s.kv_heads, head_dim=s.head_dim, num_layers=s.num_layers, context=s.context,
        cores=t.cores, chunk=chunk, tile=tile, kv_in_l1=kv.all_in_l1, kv_tile=kv.tile,
        logits_in_l1=logits_l1, scratch=scratch, verified=verified,
        logit_tokens=1 if s.head.engine == CORES else verified, kv_window=kv.window,
    )  # fmt: skip


def planned_sizes(s: ModelShape, t: Target, plan: Plan) -> PassSizes:
    """The same of a finished plan."""
    kv = KvUse(plan.kv_in_l1, plan.kv_window_blocks, plan.kv_tile_blocks)
    return pass_sizes(s, t, plan.chunk, plan.tile_bytes, kv, plan.logits_in_l1, plan.verified)


def buffer_bytes(sizes: PassSizes) -> dict[str, int]:
    """What every L1 buffer has to hold: the most that any step asks of it."""
    found: dict[str, int] = {}
    for step in sizes.steps:
        for use in step.op.uses(step, sizes):
            found[use.buffer] = max(found.get(use.buffer, 0), use.bytes)
    return found


def lifetimes(sizes: PassSizes) -> dict[str, tuple[int, int]]:
    """Buffer -> its first and last step.

    Over the whole layer loop where a layer reads what is there from before: from the layer before it, or
    since the pass began.
    """
    begin, end = loop_of(sizes.steps)
    found: dict[str, tuple[int, int]] = {}
    written: set[str] = set()  # in this layer
    for at, step in enumerate(sizes.steps):
        uses = list(step.op.uses(step, sizes))
        for use in uses:
            first, last = found.get(use.buffer, (at, at))
            if use.access is Access.KEEP:
                first, last = 0, len(sizes.steps) - 1
            if use.access is Access.AHEAD:
                first = 0
            comes_in = use.access in (Access.READ, Access.UPDATE, Access.AHEAD)
            if step.in_layer and comes_in and use.buffer not in written:
                first, last = min(first, begin), max(last, end)
            found[use.buffer] = first, max(last, at)
        if step.in_layer:
            written |= {use.buffer for use in uses if use.access is Access.WRITE}
    return found


def l1_buffers(sizes: PassSizes) -> list[Buffer]:
    """Every L1 buffer with its lifetime, not yet placed.  Names become SC_AT_<NAME>."""
    alive = lifetimes(sizes)
    return [Buffer(n, "l1", align(size), *alive[n]) for n, size in buffer_bytes(sizes).items()]


def place(buffers: list[Buffer]) -> list[Buffer]:
    """First fit, largest first: the lowest offset free during a buffer's whole life."""
    placed: list[Buffer] = []
    for b in sorted(buffers, key=lambda b: (-b.bytes, b.name)):
        at = 0
        rivals = sorted(
            (q for q in placed if q.first <= b.last and b.first <= q.last), key=lambda q: q.offset
        )
        for q in rivals:
            if at + b.bytes <= q.offset:
                break
            at = max(at, q.offset + q.bytes)
        placed.append(Buffer(b.name, b.level, b.bytes, b.first, b.last, at))
    return sorted(placed, key=lambda b: (b.offset, b.name))


def copied(s: ModelShape) -> list[MatrixShape]:
    """The matrices of which tiles pass through L1."""
    return [m for m in s.matrices if m.engine == CORES and m.name != "embedding"]


def _arena(buffers: list[Buffer]) -> int:
    return max(b.offset + b.bytes for b in place(buffers))


def _choose_l1(s: ModelShape, t: Target, total: int) -> tuple[int, int, KvUse, bool]:
    """(chunk, tile bytes, the cache's use, logits in L1) for the best use of L1.

    Preferences in order: KV cache and logits in L1, then long prefill chunks, then a layer's cache, or as much
    of it as possible, where not all layers' is in L1, then large tiles.
    Raises DoesNotFit when not even the smallest of everything fits.
    """
    overhead = t.l1_system + layer_table_bytes(s)
    budget = total - overhead
    kv = kv_shape(s)
    tiled = [m for m in s.matrices if m.engine == CORES] if copied(s) else []
    block = max((m.block_bytes for m in tiled), default=0)
    want = min(TILE_CAP, max((m.bytes for m in tiled), default=0))
    want = max(align(want), align(block))
    larger, both = max(kv.k_block, kv.v_block), kv.k_block + kv.v_block
    kv_tiles = max(1, min(kv.blocks, KV_TILE_CAP // larger))
    pieces = [KvUse(False, 0, kv_tiles), KvUse(False, 0, 1)]
    by_layer = [KvUse(False, kv.blocks, kv.blocks)]
    by_layer += [
        KvUse(False, window, window * both // 2 // ALIGN * ALIGN // larger)
        for window in (kv.blocks * eighths // 8 for eighths in KV_WINDOWS)
        if window > 1
    ]

    def buffers(chunk: int, tile: int, use: KvUse, logits_l1: bool) -> list[Buffer]:
        return l1_buffers(pass_sizes(s, t, chunk, tile, use, logits_l1))

    in_l1 = KvUse(True, 0, kv_tiles)
    outside = pieces
    if pass_sizes(s, t, 1, 0, in_l1, False).starts_next_cache:
        outside = by_layer + pieces

    def tile_for(chunk: int, use: KvUse, logits_l1: bool, least: int) -> int:
        """Largest tile of at least ``least`` bytes that fits beside the rest, or -1."""

        def fits(tile: int) -> bool:
            return _arena(buffers(chunk, tile, use, logits_l1)) <= budget

        if not fits(least):
            return -1
        free = budget - _arena(buffers(chunk, 0, use, logits_l1))
        tile = max(least, min(want, free // 2 // ALIGN * ALIGN))
        while not fits(tile):  # a larger tile may push others further than its own size
            tile = max(least, tile - 16 * ALIGN)
        return tile

    comfortable = min(want, max(align(block), 8 * KIB, align(TILE_ROUND * block)))
    for enough in (comfortable, align(block)):
        for kv_l1, logits_l1 in ((True, True), (False, True), (False, False)):
            for chunk in CHUNKS if kv_l1 or enough == comfortable else CHUNKS[::-1]:
                for use in [in_l1] if kv_l1 else outside:
                    tile = tile_for(chunk, use, logits_l1, enough)
                    if tile >= enough:
                        return chunk, tile, use, logits_l1
    least = place(buffers(1, align(block), pieces[-1], False))
    need = max(b.offset + b.bytes for b in least) + overhead
    top = sorted(least, key=lambda b: -b.bytes)[:3]
    raise DoesNotFit.of(Lack("l1", need, total, tuple((b.name, b.bytes) for b in top)))


def _verified(s: ModelShape, t: Target, total: int, chosen: tuple[int, int, KvUse, bool]) -> int:
    """The most tokens of a pass whose choices it can give, in the L1 that is left; 1 where there is no room.

    Of each there is room for a block of rows at least."""
    chunk, *_, logits_l1 = chosen
    most = min(chunk, LOOKUP_MAX + 1)
    if s.head.engine == CORES:
        most = min(most, s.vocab // ROW_BLOCK)
    elif not logits_l1:
        return 1
    budget = total - t.l1_system - layer_table_bytes(s)
    fitting = (
        n for n in range(most, 1, -1) if _arena(l1_buffers(pass_sizes(s, t, *chosen, n))) <= budget
    )
    return next(fitting, 1)


def bytes_beside_weights(s: ModelShape, t: Target) -> int:
    """Bytes on the chip that no weights can have, where nothing comes from flash.

    Raises DoesNotFit where L1, or what is behind it, is too small.
    """
    chunk, tile, kv, logits_l1 = _choose_l1(s, t, t.l1)
    return beside_weights(s, t, Asked(kv.all_in_l1, logits_l1, chunk, tile))


def make_plan(s: ModelShape, t: Target, l1_budget: int | None = None) -> Plan:
    """Plan ``s`` for ``t`` within ``l1_budget`` bytes of L1 (default: all of it).

    Raises DoesNotFit with need, have and excess of the level and its largest consumers.
    """
    total_l1 = t.l1 if l1_budget is None else min(l1_budget, t.l1)
    chosen = chunk, tile, kv, logits_l1 = _choose_l1(s, t, total_l1)
    verified = _verified(s, t, total_l1, chosen)
    l1 = place(l1_buffers(pass_sizes(s, t, *chosen, verified)))
    behind = arrange(s, t, Asked(kv.all_in_l1, logits_l1, chunk, tile))
    capacity = {"l1": total_l1, "l2": t.l2, **{v.name: v.bytes for v in t.levels[1:]}}
    plan = Plan(
        target=t.name, context=s.context, l1_budget=total_l1, chunk=chunk, tile_bytes=tile,
        kv_in_l1=kv.all_in_l1, kv_layers=behind.kv_layers, kv_window_blocks=kv.window,
        kv_tile_blocks=kv.tile, logits_in_l1=logits_l1, verified=verified,
        stage_bytes=behind.stage_bytes, embed_stage=behind.embed_stage,
        table_stage=behind.table_stage, steps=[step.name for step in s.steps], l1=l1,
        beside=behind.beside, tables=behind.tables, placements=behind.placements,
        used=behind.used, capacity=capacity,
    )  # fmt: skip
    plan.used["l1"] = plan.arena_bytes + t.l1_system + layer_table_bytes(s)
    return plan
