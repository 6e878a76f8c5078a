"""The memory plan: places and lifetimes of all buffers, and places and tiles of all matrices.

L1 holds one arena.  A buffer is live from the step that writes it to the last step that reads the value, and buffers
that are never live together can share bytes.  lower.py places the matrices in the target's other memories.  The cores
copy a matrix into L1 in tiles of whole row blocks, through two tile buffers; other engines read it in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from shrinkc.engines import CORES, engine_named, product_engine
from shrinkc.engines.cores import split_parts
from shrinkc.ir.steps import Access, PassSizes, Step, Use, loop_of
from shrinkc.memory.parts import (
    Buffer,
    Placement,
    Table,
    align,
    multiplier_bytes,
    norm_weights_in_l1,
    tile_sizes,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import L1, L2, Target, memory_kind

PLAN_VERSION = 7
_READS = (Access.READ, Access.UPDATE, Access.PREFETCHED)


@dataclass
class Plan:
    """A memory plan.  Sizes are in bytes; ``used`` and ``capacity`` map memories to bytes.

    ``in_place``: to save L1, quantised vectors of several tokens overwrite their source (except those of norms), and a
    layer's KV cache is copied into L1 with that layer's first matrix instead of during the previous layer.
    ``kv_layers``: memory -> number of layers whose KV cache it holds; the first layers are in L2, the last ones in
    HyperRAM.  ``lower_buffers``: buffers of the lower memories, without weights and tables.  ``verified``: the most
    tokens for which one pass can choose the next token (for prompt lookup).  ``kv_streamed``: no layer's cache fits L2,
    so each streams from HyperRAM while the heads of at most that many tokens attend; 0: caches do not stream.
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
    in_place: bool
    verified: int
    stage_bytes: int
    stages: int
    embed_stage: int
    table_stage: int
    steps: list[str]
    l1: list[Buffer]
    lower_buffers: list[Buffer]
    tables: list[Table]
    placements: list[Placement]
    used: dict[str, int]
    capacity: dict[str, int]
    version: int = PLAN_VERSION
    notes: list[str] = field(default_factory=list)
    kv_streamed: int = 0

    @property
    def arena_bytes(self) -> int:
        return max(b.offset + b.bytes for b in self.l1)

    @property
    def keeps_multipliers(self) -> bool:
        """Whether the row multipliers that the cores apply after another engine are in L1."""
        return any(b.name == "multipliers" for b in self.l1)

    @property
    def board(self) -> bool:
        """Whether the plan is for a board, whose memories are RAM and flash."""
        return L2 not in self.capacity

    def label(self, level: str) -> str:
        """Return how people call the memory ``level``."""
        return memory_kind(level, board=self.board).label

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON, without a cache that does not stream; placements leave out the engine "cores" and
        interleaving that is off."""
        out = asdict(self)
        if not self.kv_streamed:
            del out["kv_streamed"]
        for placement in out["placements"]:
            if placement["engine"] == CORES:
                del placement["engine"]
            if not placement["interleave"]:
                del placement["interleave"], placement["chip_level"], placement["chip_offset"]
        return out

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Plan:
        """Return the plan that ``to_json`` wrote.  Raises ValueError, KeyError or TypeError for another version."""
        if found.get("version") != PLAN_VERSION:
            raise ValueError(f"version {found.get('version')}, not {PLAN_VERSION}")
        kinds: dict[str, Callable[..., Any]] = {
            "l1": Buffer.of_json,
            "lower_buffers": Buffer.of_json,
            "tables": Table,
            "placements": Placement,
        }
        lists = {name: [kind(**x) for x in found[name]] for name, kind in kinds.items()}
        return cls(**{**found, **lists})


class KvUse(NamedTuple):
    """Use of L1 by the KV cache, in blocks of 4 positions.

    All layers' caches are in L1; or one layer's at a time while it has at most ``window`` blocks, and otherwise pieces
    of ``tile`` blocks.  ``streamed``: the pieces come from HyperRAM (``Plan.kv_streamed``)."""

    all_in_l1: bool
    window: int
    tile: int
    streamed: int = 0


def pass_sizes(
    s: ModelShape,
    t: Target,
    chunk: int,
    tile: int,
    kv: KvUse,
    logits_l1: bool,
    in_place: bool = False,
    verified: int = 1,
    keeps_multipliers: bool = False,
) -> PassSizes:
    """Return the sizes from which the steps of a pass compute their buffers.

    To verify several tokens, the cores need room for the logits of one token only, because they compute some rows of
    all tokens at a time; other engines need room for the logits of every token.
    """
    scratch = max(engine_named(m.engine).scratch(m, chunk) for m in s.kinds)
    split = tile > 0 and any(
        split_parts(m, blocks, t.cores) > 1
        for m in s.readers
        if m.engine == CORES
        for blocks in tile_sizes(m, tile)
    )
    return PassSizes(
        steps=s.steps, slots=s.slots, vocab=s.vocab, hidden=s.hidden, heads=s.heads,
        kv_heads=s.kv_heads, head_dim=s.head_dim, num_layers=s.num_layers, context=s.context,
        cores=t.cores, team=t.team, head_cores=t.cores if tile else t.team, chunk=chunk, tile=tile,
        kv_in_l1=kv.all_in_l1, kv_tile=kv.tile, logits_in_l1=logits_l1, scratch=scratch, verified=verified,
        logit_tokens=1 if s.head.engine == CORES else verified, kv_window=kv.window, split=split,
        shared_products=product_engine(t.engines) is not None and any(m.product_words for m in s.kinds),
        norm_weights_outside_l1=not (t.board or norm_weights_in_l1(s)),
        multipliers=multiplier_bytes(s) if keeps_multipliers else 0,
        in_place=in_place, perms=s.perms > 0,
        remainders=any(engine_named(m.engine).remainders(m.k, m.bits) for m in s.kinds),
        windows=s.windows, rope_tables=s.rope_tables, kv_bits=s.kv_bits, kv_streamed=kv.streamed,
    )  # fmt: skip


def planned_sizes(s: ModelShape, t: Target, plan: Plan) -> PassSizes:
    """Return the sizes from which the steps computed the buffers of a finished plan."""
    kv = KvUse(plan.kv_in_l1, plan.kv_window_blocks, plan.kv_tile_blocks, plan.kv_streamed)
    use = (plan.chunk, plan.tile_bytes, kv, plan.logits_in_l1, plan.in_place)
    return pass_sizes(s, t, *use, plan.verified, plan.keeps_multipliers)


def buffer_bytes(sizes: PassSizes) -> dict[str, int]:
    """Return the bytes of every L1 buffer: the most that any step needs."""
    return _most(_uses(sizes))


def _uses(sizes: PassSizes) -> list[list[Use]]:
    return [list(step.op.uses(step, sizes)) for step in sizes.steps]


def _most(uses: list[list[Use]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for use in itertools.chain.from_iterable(uses):
        found[use.buffer] = max(found.get(use.buffer, 0), use.bytes)
    return found


def _alive(steps: Sequence[Step], uses: list[list[Use]]) -> dict[str, tuple[int, ...]]:
    """Return buffer -> steps in which it is live, by executing a pass of two layers backwards.

    The second layer finds values that the next layer reads."""
    begin, end = loop_of(steps)
    layer = [*range(begin, end + 1)]
    found: dict[str, set[int]] = {}
    needed: set[str] = set()  # after this step
    for at in reversed([*range(begin), *layer, *layer, *range(end + 1, len(steps))]):
        written = {use.buffer for use in uses[at] if use.access is Access.WRITE}
        read = {use.buffer for use in uses[at] if use.access in _READS}
        used = {use.buffer for use in uses[at]}
        for name in needed | used:
            found.setdefault(name, set()).add(at)
        needed = (needed - written) | read
    kept = {use.buffer for of_step in uses for use in of_step if use.access is Access.KEEP}
    found |= {name: {*range(len(steps))} for name in kept}
    return {name: tuple(sorted(live)) for name, live in found.items()}


def l1_buffers(sizes: PassSizes) -> list[Buffer]:
    """Return every L1 buffer with its lifetime, not yet placed.  Its offset becomes SC_AT_<NAME> in C."""
    uses = _uses(sizes)
    alive = _alive(sizes.steps, uses)
    return [Buffer(n, L1, align(size), alive[n]) for n, size in _most(uses).items()]


def place(buffers: list[Buffer]) -> list[Buffer]:
    """Place buffers first fit, largest first: each at the lowest offset that is free while it is live."""
    placed: list[Buffer] = []
    for b in sorted(buffers, key=lambda b: (-b.bytes, b.name)):
        at = 0
        rivals = sorted(
            (q for q in placed if not set(b.live).isdisjoint(q.live)), key=lambda q: q.offset
        )
        for q in rivals:
            if at + b.bytes <= q.offset:
                break
            at = max(at, q.offset + q.bytes)
        placed.append(replace(b, offset=at))
    return sorted(placed, key=lambda b: (b.offset, b.name))
