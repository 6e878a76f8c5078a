"""The memory planner: chooses a use of L1, arranges the lower memories for it, and compares plans by cycles."""

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
from shrinkc.memory.board import in_flash
from shrinkc.memory.cycles import Passes, cost_of
from shrinkc.memory.lower import LowerNeeds, arrange, reserved_bytes
from shrinkc.memory.parts import (
    TILE_ROUND,
    Buffer,
    align,
    fixed_in_l1,
    kv_shape,
    kv_stage_bytes,
    multiplier_bytes,
    rings_can_stream,
)
from shrinkc.memory.plan import KvUse, Plan, l1_buffers, pass_sizes, place
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import ALIGN, MatrixShape
from shrinkc.targets import KIB, L1, L2, OUTSIDE, Target, fetched

CHUNKS = (PROMPT, 12, 8, 4, 2, 1)
KV_TILE_CAP = 16 * KIB
KV_WINDOWS = (6, 4, 2, 1)  # eighths of a layer's cache
LONG_CONTEXT = (
    1024  # positions; with more, the KV cache also streams if L1 has no room for all scores
)
STREAMED = (4, 2, 1)  # tokens that attend at the same time while the KV cache streams from HyperRAM
# More than two buffers for tiles from flash: one is copied into L1, the others form a queue for the HyperBus.
STAGES = (3, 4, 6, 8)
# n: every n-th tile of the LM head is on the chip.
HEAD_INTERLEAVES = (2, 3, 4, 5, 6, 8, 12)


def tiled_matrices(s: ModelShape, t: Target) -> list[MatrixShape]:
    """Return the matrices that are copied into L1 in tiles."""
    if t.board:
        return []
    return [m for m in s.matrices if m.engine == CORES and m.name != "embedding"]


def supports_in_place(s: ModelShape) -> bool:
    """Return whether an in-place plan is possible (``Plan.in_place``).

    Vectors then lie as far apart as their sources, which every engine must support; rows need an even number of
    values; and inputs must not be permuted."""
    even = s.hidden % 2 == 0  # head_dim and the padded FFN width are always even
    return even and s.perms == 0 and all(engine_named(m.engine).any_pitch for m in s.readers)


class L1Use(NamedTuple):
    """Use of L1: tokens per prefill chunk, bytes per tile, KV cache, logits in L1 or not, and ``Plan.in_place``."""

    chunk: int
    tile: int
    kv: KvUse
    logits: bool
    in_place: bool = False


class _Arena:
    """Bytes of the L1 arena for different uses of L1, each computed once."""

    def __init__(self, s: ModelShape, t: Target) -> None:
        self._s, self._t = s, t
        self.bytes, self._live = cache(self._bytes), cache(self._live_at_once)

    def buffers(self, use: L1Use, verified: int = 1) -> list[Buffer]:
        """Return all buffers, not yet placed."""
        return l1_buffers(pass_sizes(self._s, self._t, *use, verified))

    def _bytes(self, use: L1Use, verified: int = 1) -> int:
        return max(b.offset + b.bytes for b in place(self.buffers(use, verified)))

    def lower_bound(self, use: L1Use) -> int:
        """Return a lower bound of ``bytes``: the most bytes live in one step with the shortest chunk."""
        return self._live(use._replace(chunk=CHUNKS[-1]))

    def _live_at_once(self, use: L1Use) -> int:
        buffers, steps = self.buffers(use), range(len(self._s.steps))
        return max(sum(b.bytes for b in buffers if at in b.live) for at in steps)


def _choose_l1(
    s: ModelShape,
    t: Target,
    total: int,
    arena: _Arena,
    chunks: Sequence[int] = CHUNKS,
    in_place: bool = False,
    streamed: bool = False,
) -> L1Use:
    """Choose a use of L1 within ``total`` bytes.

    Preferences in order: KV cache and logits in L1; long prefill chunks; if not the whole cache is in L1, as much as
    possible of one layer's; large tiles.  ``streamed``: the cache streams from HyperRAM.  Raises DoesNotFit if the
    smallest use of L1 does not fit.
    """
    overhead = fixed_in_l1(s, t)
    budget = total - overhead
    # a shorter chunk has at most as many blocks
    kv = kv_shape(s, max(chunks))
    tiled = [m for m in s.matrices if m.engine == CORES] if tiled_matrices(s, t) else []
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
    if streamed:
        # the buffers in L2 have to be small beside a layer's cache, which does not fit there
        most = max(1, min(kv.blocks // 8, kv_tiles))
        least_piece = most // 2 or 1
        sizes = dict.fromkeys((most, least_piece, 1))
        pieces = [KvUse(False, 0, tile, n) for tile in sizes for n in STREAMED]
        # a longer chunk gains less than the begins of many short transfers take
        outside = [use for use in pieces if use.tile >= least_piece]
    elif pass_sizes(s, t, 1, 0, in_l1, False).prefetches_next_cache:
        outside = by_layer + pieces

    def tile_for(chunk: int, use: KvUse, logits_l1: bool, least: int) -> int:
        """Return the largest tile of at least ``least`` bytes that fits, or -1."""

        def fits(tile: int) -> bool:
            return arena.bytes(L1Use(chunk, tile, use, logits_l1, in_place)) <= budget

        if arena.lower_bound(L1Use(chunk, least, use, logits_l1, in_place)) > budget or not fits(
            least
        ):
            return -1
        free = budget - arena.bytes(L1Use(chunk, 0, use, logits_l1, in_place))
        tile = max(least, min(want, free // 2 // ALIGN * ALIGN))
        while not fits(tile):  # a larger tile can displace other buffers
            tile = max(least, tile - 16 * ALIGN)
        return tile

    comfortable = min(want, max(align(block), 8 * KIB, align(TILE_ROUND * block)))
    # of the cache and the logits in L1
    places = ((True, True), (False, True), (False, False))[1 if streamed else 0 :]
    ways = (
        (least, kv_l1, logits_l1, chunk, uses)
        for least, uses in ((comfortable, outside), (align(block), pieces if streamed else outside))
        for kv_l1, logits_l1 in (places[:1] if t.board else places)
        for chunk in (chunks if kv_l1 or least == comfortable else chunks[::-1])
    )
    for enough, kv_l1, logits_l1, chunk, uses in ways:
        for use in [in_l1] if kv_l1 else uses:
            tile = tile_for(chunk, use, logits_l1, enough)
            if tile >= enough:
                return L1Use(chunk, tile, use, logits_l1, in_place)
    smallest = L1Use(1, 0, in_l1, True) if t.board else L1Use(1, align(block), pieces[-1], False)
    least = place(arena.buffers(smallest))
    need = max(b.offset + b.bytes for b in least) + overhead
    top = sorted(least, key=lambda b: -b.bytes)[:3]
    largest = tuple((b.name, b.bytes) for b in top)
    raise DoesNotFit.of(Lack(L1, need, total, largest, least=True, name=t.kind(L1).label))


def _verified(s: ModelShape, t: Target, total: int, arena: _Arena, chosen: L1Use) -> int:
    """Return for how many tokens one pass can choose the next token, with the L1 that is left; at least 1.

    The logits buffer has room for at least one block of rows of each token."""
    most = min(chosen.chunk, LOOKUP_MAX + 1)
    if s.head.engine == CORES:
        most = min(most, s.vocab // ROW_BLOCK)
    elif not chosen.logits:
        return 1
    budget = total - fixed_in_l1(s, t)
    return next((n for n in range(most, 1, -1) if arena.bytes(chosen, n) <= budget), 1)


def _with_multipliers(s: ModelShape, l1: list[Buffer], room: int) -> list[Buffer]:
    """Append the row multipliers that the cores apply to results of other engines, if all of them fit."""
    size, end = align(multiplier_bytes(s)), max(b.offset + b.bytes for b in l1)
    if not 0 < size <= room - end:
        return l1
    return [*l1, Buffer("multipliers", L1, size, tuple(range(len(s.steps))), end)]


def _needs_of(s: ModelShape, use: L1Use) -> LowerNeeds:
    stage = kv_stage_bytes(s, use.chunk, use.kv.tile) if use.kv.streamed else 0
    return LowerNeeds(use.kv.all_in_l1, use.logits, use.chunk, use.tile, kv_stage=stage)


class _Candidate(NamedTuple):
    chosen: L1Use
    needs: LowerNeeds
    plan: Plan


def _first(s: ModelShape, t: Target, total_l1: int, arena: _Arena) -> _Candidate:
    """Return the plan for the first use of L1 that fits.  The KV cache streams only if it cannot lie elsewhere.

    Raises DoesNotFit of the way that comes further, or else lacks less."""
    refused: list[DoesNotFit] = []
    streams = not t.board and rings_can_stream(s.windows) and any(t.room(v) for v in OUTSIDE)
    for streamed in (False, True)[: 1 + streams]:
        try:
            chosen = _choose_l1(s, t, total_l1, arena, streamed=streamed)
            return _Candidate(chosen, _needs_of(s, chosen), _plan(s, t, total_l1, arena, chosen))
        except DoesNotFit as error:
            refused.append(error)
            level = error.lacks[0].level
            if level not in (L1, L2) or (level == L1 and s.context <= LONG_CONTEXT):
                break
    if len(refused) == 1:
        raise refused[0]
    in_order = (L1, L2, *OUTSIDE, "weights")
    raise max(refused, key=lambda e: (in_order.index(e.lacks[0].level), -e.lacks[0].excess))


def bytes_without_weights(s: ModelShape, t: Target) -> int:
    """Return the bytes of the memories for weights that are not available for weights.

    Raises DoesNotFit if L1 or L2 is too small.
    """
    if any(fetched(v.name) and v.bytes for v in t.stored):
        return _beside_weights(s, t)
    try:
        plan = make_plan(s, t)
    except DoesNotFit:  # the weights are too large, which does not matter here
        return reserved_bytes(s, t, _needs_of(s, _choose_l1(s, t, t.l1, _Arena(s, t))))
    kv = KvUse(plan.kv_in_l1, plan.kv_window_blocks, plan.kv_tile_blocks, plan.kv_streamed)
    return reserved_bytes(
        s, t, _needs_of(s, L1Use(plan.chunk, plan.tile_bytes, kv, plan.logits_in_l1))
    )


def _beside_weights(s: ModelShape, t: Target) -> int:
    """Return the bytes that everything but weights takes, buffers for weights from flash included."""
    arena = _Arena(s, t)
    try:
        used = _first(s, t, t.l1, arena).plan.used
    except DoesNotFit as error:
        (lack,) = error.lacks
        if lack.level != "weights":
            raise
        return sum(v.bytes for v in t.stored) - lack.have
    return sum(used[v.name] for v in t.stored) - sum(align(m.bytes) for m in s.stored)


def check_fits(s: ModelShape, t: Target, l1_budget: int | None = None) -> None:
    """Raise DoesNotFit if :func:`make_plan` would; faster, because it compares no plans."""
    _first(s, t, _room(t, l1_budget), _Arena(s, t))


def _room(t: Target, l1_budget: int | None) -> int:
    return t.l1 if l1_budget is None else min(l1_budget, t.l1)


def make_plan(s: ModelShape, t: Target, l1_budget: int | None = None) -> Plan:
    """Plan ``s`` for ``t`` within ``l1_budget`` bytes of L1 (default: all of it).

    The first plan prefers fast decoding.  If the target has a cost table, plans with longer prefill chunks, and if
    weights are in flash plans with more flash buffers and interleaved matrices, replace it if they take fewer cycles
    (``_cycles``).  Raises DoesNotFit with need, have and excess of a memory and its largest consumers.
    """
    total_l1, arena = _room(t, l1_budget), _Arena(s, t)
    best, table = _first(s, t, total_l1, arena), cost_table(t.name)
    first = best.chosen
    if table is None:
        return best.plan
    cycles = _cycles(s, t, best.plan, table)

    def try_plan(chosen: L1Use, needs: LowerNeeds) -> bool:
        """Make a plan and keep it if it is better; return whether it fits."""
        nonlocal best, cycles
        try:
            plan = _plan(s, t, total_l1, arena, chosen, needs)
        except DoesNotFit:
            # the lower memories have no room for the logits, the cache or the buffers
            return False
        if best.plan.keeps_multipliers and not plan.keeps_multipliers:
            return True  # the cost table assumes multipliers in L1
        if (takes := _cycles(s, t, plan, table)) < cycles:
            best, cycles = _Candidate(chosen, needs, plan), takes
        return True

    longer = (
        [] if tiled_matrices(s, t) else [n for m in s.kinds for n in engine_named(m.engine).chunks]
    )
    for chunk in (chunk for chunk in dict.fromkeys([*longer, *CHUNKS]) if chunk > first.chunk):
        for in_place in (False, True) if supports_in_place(s) else (False,):
            try:
                streamed = first.kv.streamed > 0
                chosen = _choose_l1(s, t, total_l1, arena, [chunk], in_place, streamed)
            except DoesNotFit:
                continue
            try_plan(chosen, _needs_of(s, chosen))
    if best.plan.stage_bytes:
        for stages in STAGES:
            try_plan(best.chosen, replace(best.needs, stages=stages))
        # interleaved matrices gain more with a longer queue
        for stages in dict.fromkeys((best.needs.stages, STAGES[-1])):
            try_plan(best.chosen, replace(best.needs, stages=stages, interleave_matrices=True))
        # a prompt needs the head for one token only and waits for its tiles in flash: keep as many as fit on the chip
        for interleave in HEAD_INTERLEAVES if s.head.engine == CORES else ():
            if try_plan(best.chosen, replace(best.needs, interleave_head=interleave)):
                break
    return best.plan


def _cycles(s: ModelShape, t: Target, plan: Plan, table: CostTable) -> float:
    """Return the cycles by which plans are compared.

    At a quarter, half and the end of the context: a decode step, plus the mean per token of two prefill chunks, one
    with logits and one without."""
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
    needs: LowerNeeds | None = None,
) -> Plan:
    """Make the plan of a use of L1; ``needs`` replaces the usual requirements on the lower memories."""
    chunk, tile, kv, logits_l1, in_place = chosen
    needs = needs or _needs_of(s, chosen)
    verified = _verified(s, t, total_l1, arena, chosen)
    room = total_l1 - fixed_in_l1(s, t)
    l1 = _with_multipliers(s, place(arena.buffers(chosen, verified)), room)
    lower = in_flash(s, t) if t.board else arrange(s, t, needs)
    capacity = {
        L1: total_l1,
        **({} if t.board else {L2: t.l2}),
        **{v.name: v.bytes for v in t.levels[1:]},
    }
    plan = Plan(
        target=t.name, context=s.context, l1_budget=total_l1, chunk=chunk, tile_bytes=tile,
        kv_in_l1=kv.all_in_l1, kv_layers=lower.kv_layers, kv_window_blocks=kv.window,
        kv_tile_blocks=kv.tile, logits_in_l1=logits_l1, in_place=in_place, verified=verified,
        stage_bytes=lower.stage_bytes, stages=needs.stages if lower.stage_bytes else 0,
        embed_stage=lower.embed_stage, table_stage=lower.table_stage, steps=[step.name for step in s.steps], l1=l1,
        lower_buffers=lower.buffers, tables=lower.tables, placements=lower.placements,
        used=lower.used, capacity=capacity, kv_streamed=kv.streamed,
    )  # fmt: skip
    plan.used[L1] = plan.arena_bytes + fixed_in_l1(s, t)
    return plan
