"""Making a plan: how L1 is used decides what the lower memories hold, and cycles decide between two ways to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from shrinkc.abi import LOOKUP_MAX, ROW_BLOCK
from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.costs import CostTable, cost_table
from shrinkc.engines import CORES, engine_named
from shrinkc.engines.choice import PROMPT
from shrinkc.engines.cores import TILE_CAP
from shrinkc.memory.cycles import Passes, cost_of
from shrinkc.memory.lower import Asked, arrange, without_weights
from shrinkc.memory.parts import (
    TILE_ROUND,
    Buffer,
    align,
    kv_shape,
    layer_table_bytes,
    multiplier_bytes,
)
from shrinkc.memory.plan import KvUse, Plan, l1_buffers, pass_sizes, place
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import KIB, L1, L2, Target

CHUNKS = (PROMPT, 12, 8, 4, 2, 1)
KV_TILE_CAP = 16 * KIB
KV_WINDOWS = (6, 4, 2, 1)  # eighths of a layer's cache
# Buffers for tiles from flash, beyond two: one is copied, and the HyperBus has a queue for the others.
STAGES = (3, 4, 6, 8)
# Of how many tiles of the head one may be on the chip.
HEAD_INTERLEAVES = (2, 3, 4, 5, 6, 8, 12)


def copied(s: ModelShape) -> list[MatrixShape]:
    """The matrices of which tiles pass through L1."""
    return [m for m in s.matrices if m.engine == CORES and m.name != "embedding"]


def can_be_in_place(s: ModelShape) -> bool:
    """Whether a plan can be: vectors lie where their sources do, for engines that take them as far apart, halves of
    whole words each, and cores that make them have whole tokens in the order of their inputs."""
    even = s.hidden % 2 == 0  # heads and blocks of gates always are
    return even and s.perms == 0 and all(engine_named(m.engine).any_pitch for m in s.readers)


class L1Use(NamedTuple):
    """How a plan uses L1: tokens of a chunk, bytes of a tile, the cache, whether logits are there, and whether it is
    in_place (Plan)."""

    chunk: int
    tile: int
    kv: KvUse
    logits: bool
    in_place: bool = False


class _Arena:
    """What ways to use L1 need of it, each worked out once."""

    def __init__(self, s: ModelShape, t: Target) -> None:
        self._s, self._t = s, t
        self.bytes, self._alive = cache(self._bytes), cache(self._alive_at_once)

    def buffers(self, use: L1Use, verified: int = 1) -> list[Buffer]:
        """Every buffer, not yet placed."""
        return l1_buffers(pass_sizes(self._s, self._t, *use, verified))

    def _bytes(self, use: L1Use, verified: int = 1) -> int:
        """Of the arena."""
        return max(b.offset + b.bytes for b in place(self.buffers(use, verified)))

    def alive(self, use: L1Use) -> int:
        """The most bytes that are alive at once with the shortest chunk: with a longer one they are no
        fewer, and no arena is smaller."""
        return self._alive(use._replace(chunk=CHUNKS[-1]))

    def _alive_at_once(self, use: L1Use) -> int:
        buffers, steps = self.buffers(use), range(len(self._s.steps))
        return max(sum(b.bytes for b in buffers if at in b.live) for at in steps)


def _choose_l1(
    s: ModelShape,
    t: Target,
    total: int,
    arena: _Arena,
    chunks: Sequence[int] = CHUNKS,
    in_place: bool = False,
) -> L1Use:
    """A way to use L1.

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

    in_l1 = KvUse(True, 0, kv_tiles)
    outside = pieces
    if pass_sizes(s, t, 1, 0, in_l1, False).starts_next_cache:
        outside = by_layer + pieces

    def tile_for(chunk: int, use: KvUse, logits_l1: bool, least: int) -> int:
        """Largest tile of at least ``least`` bytes that fits next to the rest, or -1."""

        def fits(tile: int) -> bool:
            return arena.bytes(L1Use(chunk, tile, use, logits_l1, in_place)) <= budget

        if arena.alive(L1Use(chunk, least, use, logits_l1, in_place)) > budget or not fits(least):
            return -1
        free = budget - arena.bytes(L1Use(chunk, 0, use, logits_l1, in_place))
        tile = max(least, min(want, free // 2 // ALIGN * ALIGN))
        while not fits(tile):  # a larger tile may push others further than its own size
            tile = max(least, tile - 16 * ALIGN)
        return tile

    comfortable = min(want, max(align(block), 8 * KIB, align(TILE_ROUND * block)))
    ways = (
        (least, kv_l1, logits_l1, chunk)
        for least in (comfortable, align(block))
        for kv_l1, logits_l1 in ((True, True), (False, True), (False, False))
        for chunk in (chunks if kv_l1 or least == comfortable else chunks[::-1])
    )
    for enough, kv_l1, logits_l1, chunk in ways:
        for use in [in_l1] if kv_l1 else outside:
            tile = tile_for(chunk, use, logits_l1, enough)
            if tile >= enough:
                return L1Use(chunk, tile, use, logits_l1, in_place)
    least = place(arena.buffers(L1Use(1, align(block), pieces[-1], False)))
    need = max(b.offset + b.bytes for b in least) + overhead
    top = sorted(least, key=lambda b: -b.bytes)[:3]
    raise DoesNotFit.of(Lack(L1, need, total, tuple((b.name, b.bytes) for b in top), least=True))


def _verified(s: ModelShape, t: Target, total: int, arena: _Arena, chosen: L1Use) -> int:
    """The most tokens of a pass whose choices it can give, in the L1 that is left; 1 where there is no room.

    Of each there is room for a block of rows at least."""
    most = min(chosen.chunk, LOOKUP_MAX + 1)
    if s.head.engine == CORES:
        most = min(most, s.vocab // ROW_BLOCK)
    elif not chosen.logits:
        return 1
    budget = total - t.l1_system - layer_table_bytes(s)
    return next((n for n in range(most, 1, -1) if arena.bytes(chosen, n) <= budget), 1)


def _with_multipliers(s: ModelShape, l1: list[Buffer], room: int) -> list[Buffer]:
    """Adds the row multipliers that the cores apply after another engine, at the end, if all have room."""
    size, end = align(multiplier_bytes(s)), max(b.offset + b.bytes for b in l1)
    if not 0 < size <= room - end:
        return l1
    return [*l1, Buffer("multipliers", L1, size, tuple(range(len(s.steps))), end)]


def _asked(use: L1Use) -> Asked:
    return Asked(use.kv.all_in_l1, use.logits, use.chunk, use.tile)


def bytes_without_weights(s: ModelShape, t: Target) -> int:
    """Bytes on the chip that no weights can have, where nothing comes from flash.

    Raises DoesNotFit where L1 or a lower memory is too small.
    """
    try:
        plan = make_plan(s, t)
    except DoesNotFit:  # with these weights
        return without_weights(s, t, _asked(_choose_l1(s, t, t.l1, _Arena(s, t))))
    asked = Asked(plan.kv_in_l1, plan.logits_in_l1, plan.chunk, plan.tile_bytes)
    return without_weights(s, t, asked)


def check_fits(s: ModelShape, t: Target, l1_budget: int | None = None) -> None:
    """Raises DoesNotFit where :func:`make_plan` would, without its choice between plans."""
    total_l1, arena = _room(t, l1_budget), _Arena(s, t)
    _plan(s, t, total_l1, arena, _choose_l1(s, t, total_l1, arena))


def _room(t: Target, l1_budget: int | None) -> int:
    return t.l1 if l1_budget is None else min(l1_budget, t.l1)


def make_plan(s: ModelShape, t: Target, l1_budget: int | None = None) -> Plan:
    """Plan ``s`` for ``t`` within ``l1_budget`` bytes of L1 (default: all of it).  What is best in L1 for a
    decoded token may leave short chunks for a prompt: longer ones are taken where cycles of both speak for them.
    So are, of weights of which a part has room on the chip, some all along instead of the first, and more buffers
    than two for tiles from flash: both keep it busy while the cores do without.

    Raises DoesNotFit with need, have and excess of the level and its largest consumers.
    """
    total_l1, arena = _room(t, l1_budget), _Arena(s, t)
    first, table = _choose_l1(s, t, total_l1, arena), cost_table(t.name)
    best = _Candidate(first, _asked(first), _plan(s, t, total_l1, arena, first))
    if table is None:
        return best.plan
    cycles = _cycles(s, t, best.plan, table)

    def better(chosen: L1Use, asked: Asked) -> bool:
        """Takes it if it is, and says whether it fits."""
        nonlocal best, cycles
        try:
            plan = _plan(s, t, total_l1, arena, chosen, asked)
        except (
            DoesNotFit
        ):  # what is not in L1 then, or the buffers, have no place in a lower memory
            return False
        if best.plan.keeps_multipliers and not plan.keeps_multipliers:
            return True  # which the table knows nothing of
        if (takes := _cycles(s, t, plan, table)) < cycles:
            best, cycles = _Candidate(chosen, asked, plan), takes
        return True

    longer = [] if copied(s) else [n for m in s.kinds for n in engine_named(m.engine).chunks]
    for chunk in (chunk for chunk in dict.fromkeys([*longer, *CHUNKS]) if chunk > first.chunk):
        for in_place in (False, True) if can_be_in_place(s) else (False,):
            try:
                chosen = _choose_l1(s, t, total_l1, arena, [chunk], in_place)
            except DoesNotFit:
                continue
            better(chosen, _asked(chosen))
    if best.plan.stage_bytes:
        for stages in STAGES:
            better(best.chosen, replace(best.asked, stages=stages))
        # interleaved matrices are worth more with a longer queue
        for stages in dict.fromkeys((best.asked.stages, STAGES[-1])):
            better(best.chosen, replace(best.asked, stages=stages, interleave_matrices=True))
        # a prompt reads the head for one token, and waits for what of it is in flash; as much as has room: less gains
        # less
        for interleave in HEAD_INTERLEAVES if s.head.engine == CORES else ():
            if better(best.chosen, replace(best.asked, interleave_head=interleave)):
                break
    return best.plan


class _Candidate(NamedTuple):
    chosen: L1Use
    asked: Asked
    plan: Plan


def _cycles(s: ModelShape, t: Target, plan: Plan, table: CostTable) -> float:
    """Of decoded tokens and as many of a prompt, half of them at its end, at a quarter, half, and the end of
    the context."""
    passes, total = Passes(s, plan, t), 0.0
    for cached in (s.context // 4, s.context // 2, s.context):
        chunk = min(plan.chunk, cached) or 1
        prompt = [passes.steps(chunk, max(0, cached - chunk), logits) for logits in (0, 1)]
        decode = passes.steps(1, max(0, cached - 1))
        total += cost_of([decode], table).cycles + cost_of(prompt, table).cycles / (2 * chunk)
    return total


def _plan(
    s: ModelShape,
    t: Target,
    total_l1: int,
    arena: _Arena,
    chosen: L1Use,
    asked: Asked | None = None,
) -> Plan:
    """``asked``: of the lower memories, where it is not the usual."""
    chunk, tile, kv, logits_l1, in_place = chosen
    asked = asked or _asked(chosen)
    verified = _verified(s, t, total_l1, arena, chosen)
    room = total_l1 - t.l1_system - layer_table_bytes(s)
    l1 = _with_multipliers(s, place(arena.buffers(chosen, verified)), room)
    lower = arrange(s, t, asked)
    capacity = {L1: total_l1, L2: t.l2, **{v.name: v.bytes for v in t.levels[1:]}}
    plan = Plan(
        target=t.name, context=s.context, l1_budget=total_l1, chunk=chunk, tile_bytes=tile,
        kv_in_l1=kv.all_in_l1, kv_layers=lower.kv_layers, kv_window_blocks=kv.window,
        kv_tile_blocks=kv.tile, logits_in_l1=logits_l1, in_place=in_place, verified=verified,
        stage_bytes=lower.stage_bytes, stages=asked.stages if lower.stage_bytes else 0,
        embed_stage=lower.embed_stage, table_stage=lower.table_stage, steps=[step.name for step in s.steps], l1=l1,
        lower_buffers=lower.buffers, tables=lower.tables, placements=lower.placements,
        used=lower.used, capacity=capacity,
    )  # fmt: skip
    plan.used[L1] = plan.arena_bytes + t.l1_system + layer_table_bytes(s)
    return plan
