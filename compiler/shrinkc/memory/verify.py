"""An independent check of a plan: shares no code with the planner, recomputes from the rules.

It walks every step and every byte range instead of trusting offsets or sums.  When a buffer is in use it
finds by going through a pass, layer after layer, and asking each op what it does; how large buffers have
to be it knows for itself, of those that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from shrinkc.abi import EXP2_STEPS_BYTES, MATRIX_BYTES, TABLE_BYTES, InputWord
from shrinkc.core.errors import PlanInvalid
from shrinkc.engines import CORES, ENGINES
from shrinkc.ir.steps import Access, PassSizes, Step
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape
from shrinkc.targets import Target

READS = {Access.READ, Access.UPDATE, Access.AHEAD, Access.KEEP}
WRITES = {Access.WRITE, Access.UPDATE, Access.KEEP}


def _skewed(size: int) -> int:
    """Per-core structures end 12 bytes behind a multiple of 64: neighbours meet other L1 banks."""
    while size % 64 != 12:
        size += 1
    return size


def _segments(k: int, seg: int) -> list[int]:
    return [min(seg, k - at) for at in range(0, k, seg)]


def _words(k: int, seg: int, bits: int, pad: int = 0) -> int:
    """int32 words of a quantised vector of k inputs, padding included."""
    unit = pad or 32 // math.gcd(32, bits)  # the fewest weights of a row that fill whole words
    return sum((n + unit - 1) // unit * unit // 4 for n in _segments(k, seg))


def _x_blocks(k: int, seg: int) -> int:
    return sum((n + 7) // 8 for n in _segments(k, seg))


def _slots(matrices: list[MatrixShape]) -> list[list[MatrixShape]]:
    """Those of one slot of all layers together."""
    by_slot: dict[str, list[MatrixShape]] = {}
    for m in matrices:
        by_slot.setdefault(m.name.split(".", 1)[-1], []).append(m)
    return list(by_slot.values())


def _products(slot: list[MatrixShape], narrow: list[MatrixShape], chunk: int) -> int:
    """Of a core: 8 sums per token, twice where bytes are apart, and 8 rows of a segment, or of 128 inputs,
    as bytes where they are not stored as such."""
    sums = max(32 if m in narrow else 64 for m in slot)
    pieces = [
        _words(min(m.k, m.seg), m.seg, m.bits, m.pad)
        if m in narrow
        else min(32, _words(m.k, m.seg, m.bits, m.pad))
        for m in slot
        if m.bits < 8
    ]
    return _skewed((chunk + chunk % 2) * sums + 32 * max(pieces, default=0))


def _shared_products(m: MatrixShape, chunk: int) -> int:
    """Of a matrix whose segments have scales and, padded, are made of 32 inputs: twice bytes and sums of 64
    rows, in whole sixes, of one segment, or of two that have 64 inputs at most, and the words that sums are added
    to.  An odd number of sums for every row."""
    words = {_words(n, n, m.bits, m.pad) for n in _segments(m.k, m.seg)}
    if not m.grouped or any(n % 8 for n in words):
        return 0
    odd = chunk + (chunk + 1) % 2
    return 2 * (2 if max(words) <= 16 else 1) * 66 * 4 * (max(words) + odd) + 64 * 4 * odd


def _head_states(s: ModelShape, plan: Plan, cores: int) -> int:
    """States per core: one where the cache comes in pieces at some position; one per part of a head where
    up to three fall to each core, the cache is in L1 and cores that idle are worth a thousand cycles."""
    least = 1 if not plan.kv_in_l1 and 4 * plan.kv_window_blocks < s.context else 0
    left = s.heads % cores
    in_l1 = plan.kv_in_l1 or plan.kv_window_blocks > 0
    idle = (18 + 2 * s.head_dim) * (cores - left)
    if not left or not in_l1 or s.context <= 1000 * cores // idle:
        return least
    ranges = next(n for n in range(1, cores + 1) if left * n % cores == 0)
    parts = left * ranges // cores
    return parts if parts <= 3 else least


def _splits(plan: Plan, s: ModelShape, cores: int) -> bool:
    """Whether some tile has no more than half a block per core, of at least 768 inputs each and of segments that
    eight cores can share."""
    long = {
        m.name
        for m in s.matrices
        if m.name != "embedding"
        and m.engine == CORES
        and _words(m.k, m.seg, m.bits, m.pad) >= 192
        and (len(_segments(m.k, m.seg)) >= 8 or not (m.grouped or m.asymmetric or m.beside_grouped))
    }
    tiles = [
        n
        for p in plan.placements
        if p.name in long
        for n in (p.tile_blocks, p.blocks % max(1, p.tile_blocks))
    ]
    return any(0 < n <= cores // 2 for n in tiles)


def _sizes(plan: Plan, s: ModelShape, t: Target) -> PassSizes:
    return PassSizes(
        s.steps, s.slots, s.vocab, s.hidden, s.heads, s.kv_heads, s.head_dim, s.num_layers, s.context,
        t.cores, plan.chunk, plan.tile_bytes, plan.kv_in_l1, plan.kv_tile_blocks, plan.logits_in_l1,
        max(ENGINES[m.engine].scratch(m, plan.chunk) for m in s.matrices),
        plan.verified, 1 if s.head.engine == CORES else plan.verified, plan.kv_window_blocks,
        _splits(plan, s, t.cores), "neureka" in t.engines and any(_shared_products(m, 1) for m in s.matrices),
    )  # fmt: skip


def _bytes(plan: Plan, s: ModelShape, t: Target) -> dict[str, int]:
    """What the buffers that every model has must hold."""
    chunk, cores = plan.chunk, t.cores
    readers = [m for m in s.matrices if m.name != "embedding"]
    positions = (s.context + 3) // 4 * 4
    head = (s.head_dim + 3) // 4 * 4
    k_block, v_block = 4 * s.kv_heads * (head + 4), 4 * s.kv_heads * s.head_dim
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    width = max(s.hidden, s.ffn, qkv)
    narrow = [m for m in readers if m.grouped or m.asymmetric or m.beside_grouped]
    nseg = max((len(_segments(m.k, m.seg)) for m in narrow), default=0)
    ranks = [m.rank for m in readers if m.rank]
    out = {
        "x": 4 * chunk * s.hidden,
        "y": 4 * chunk * width,
        "xq": 4
        * chunk
        * max(
            _words(m.k, m.seg, m.bits, m.pad) * (1 if m in narrow else 2)  # two planes of bytes
            for m in readers
        ),
        "xv": 32 * chunk,
        "parts": 16 * chunk * max(cores, 8),
        "rope": 2 * chunk * s.head_dim,
        "q8": chunk * s.heads * head,
        "q_scale": 4 * chunk * s.heads,
        "head_scratch": cores * _skewed(6 * positions + 12),
        "head_work": 4 * cores * s.head_dim,
        "tops": 8 * cores * plan.verified,
    }
    if states := cores * _head_states(s, plan, cores):
        out["head_state"] = states * _skewed(16 + 4 * head)
    if any(m.engine == CORES for m in readers):
        out["tiles"] = 2 * plan.tile_bytes
    if _splits(plan, s, cores):
        out["split"] = 2 * cores * 32
    scratch = [ENGINES[m.engine].scratch(m, chunk) for m in readers]
    if any(scratch):
        out["engine"] = max(scratch)
    several = [m for m in readers if m.engine == CORES and (m in narrow or m.bits < 8)]
    if several and chunk > 1:
        out["products"] = max(
            cores * max(_products(slot, narrow, chunk) for slot in _slots(several)),
            max(_shared_products(m, chunk) for m in several) if "neureka" in t.engines else 0,
        )
    if narrow:
        out["xc"] = 4 * chunk * nseg
        out["block_max"] = 4 * chunk * max(_x_blocks(m.k, m.seg) for m in narrow)
    if any(m.asymmetric for m in readers):
        out["xsum"] = 4 * chunk * nseg
    if ranks:
        out["sy"] = 4 * chunk * max(ranks)
        out["sq"] = 2 * 4 * chunk * max(_words(r, r, 8) for r in ranks)
        out["sv"] = 32 * chunk
    if plan.kv_in_l1:
        out["k_cache"] = s.num_layers * positions // 4 * k_block
        out["v_cache"] = s.num_layers * positions // 4 * v_block
    elif plan.kv_window_blocks:
        out["kv_layer"] = plan.kv_window_blocks * (k_block + v_block)
    piece = (plan.kv_tile_blocks * max(k_block, v_block) + 15) // 16 * 16
    if plan.kv_window_blocks and 4 * plan.kv_window_blocks < s.context:
        out["kv_layer"] = max(out["kv_layer"], 2 * piece)  # a longer cache comes in pieces
    elif not plan.kv_in_l1 and not plan.kv_window_blocks:
        out["kv_tile"] = 2 * piece
    if s.context >= 128 and ("k_cache" in out or "kv_layer" in out):
        out["exp2"] = EXP2_STEPS_BYTES
    if plan.logits_in_l1:
        out["logits"] = 4 * s.vocab * (1 if s.head.engine == CORES else plan.verified)
    return out


def _walk(s: ModelShape) -> list[tuple[int, Step, tuple[str, ...]]]:
    """The steps of a pass of three layers one by one: index, step, and the inputs it has there: the first
    layer's from before the loop are the layer before's last result in the others."""
    steps = list(enumerate(s.steps))
    layer = [(at, step) for at, step in steps if step.in_layer]
    own = {step.name for _, step in layer}
    before = [(at, step, step.inputs) for at, step in steps if at < layer[0][0]]
    after = [(at, step, step.inputs) for at, step in steps if at > layer[-1][0]]
    again = [
        (at, step, tuple(i if i in own else layer[-1][1].name for i in step.inputs))
        for at, step in layer
    ]
    return [*before, *((at, step, step.inputs) for at, step in layer), *again, *again, *after]


def _in_use(sizes: PassSizes, s: ModelShape) -> dict[str, set[int]]:
    """Buffer -> the steps during which it holds something that is still needed, or is worked in."""
    walk = _walk(s)
    found: dict[str, set[int]] = {}
    since: dict[str, int] = {}  # buffer -> where in the walk it was last written
    for here, (at, step, _) in enumerate(walk):
        uses = list(step.op.uses(step, sizes))
        for use in uses:
            live = found.setdefault(use.buffer, set())
            live.add(at)
            if use.access is Access.KEEP:
                live.update(range(len(s.steps)))
            if use.access in READS:
                begin = 0 if use.access is Access.AHEAD else since.get(use.buffer, 0)
                live.update(walk[i][0] for i in range(begin, here + 1))
        since.update({use.buffer: here for use in uses if use.access in WRITES})
    return found


def _misread(sizes: PassSizes, s: ModelShape) -> Iterator[str]:
    """Every step that reads a buffer in which something else is by then."""
    holds: dict[str, str] = {}
    for _, step, inputs in _walk(s):
        for value in inputs:
            if value == "token" or (value == "logits" and not sizes.logits_in_l1):
                continue
            at = sizes.buffer(value)
            if holds.get(at) != value:
                yield f"{step.name}: reads {value} from {at}, which holds {holds.get(at, 'nothing')}"
        for use in step.op.uses(step, sizes):
            if use.access is Access.SCRATCH:
                if use.buffer in {sizes.buffer(value) for value in inputs if value != "token"}:
                    yield f"{step.name}: works in {use.buffer}, which it reads"
                holds[use.buffer] = f"scratch of {step.name}"
        holds[step.op.buffer(step, sizes)] = step.name


def _table_bytes(s: ModelShape) -> int:
    """Matrix and layer tables in L1, those of functions, and gains of up to 8 KiB."""
    sides = sum(1 for m in s.matrices if m.rank > 0)
    gains = 4 * s.hidden * (2 * s.num_layers + 1)
    gains = (gains + 15) // 16 * 16 if gains <= 8192 else 0
    matrices = (len(s.matrices) + 1 + sides) * MATRIX_BYTES
    layer = 16 + (16 if s.perms else 0) + (16 if s.biases else 0)
    for step in s.steps:
        for kind in step.op.NUMBERS.values() if step.in_layer else ():
            size = int(kind.strip("uint_")) // 8
            layer = (layer + size - 1) // size * size + size
    layer = (layer + 3) // 4 * 4
    if s.head_norms:
        layer = (layer + 8 + 7) // 8 * 8 + 8
    kept = max(ENGINES[m.engine].table for m in s.matrices) * len(s.matrices)
    return matrices + s.num_layers * layer + TABLE_BYTES + gains + (kept + 15) // 16 * 16


def _l1_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    limit = plan.l1_budget - t.l1_system - _table_bytes(s)
    for b in plan.l1:
        if b.offset % 8:
            yield f"{b.name}: offset {b.offset} is not a multiple of 8"
        if b.offset < 0:
            yield f"{b.name}: offset {b.offset} lies before L1"
        if not 0 <= b.first <= b.last < len(s.steps):
            yield f"{b.name}: live from step {b.first} to {b.last}"
    names = [step.name for step in s.steps]
    if plan.steps != names:
        yield f"planned for the steps {plan.steps}, a pass has {names}"
    for at, name in enumerate(names):
        live = sorted(
            (b.offset, b.offset + b.bytes, b.name) for b in plan.l1 if b.first <= at <= b.last
        )
        for (_, end, a), (start, _, c) in zip(live, live[1:], strict=False):
            if start < end:
                yield f"step {name}: {a} and {c} overlap by {end - start} bytes"
        for _, end, a in live:
            if end > limit:
                yield f"step {name}: {a} ends at {end} of {limit}"
    have = {b.name: b for b in plan.l1}
    if len(have) != len(plan.l1):
        yield "two L1 buffers of one name"
    room = s.vocab // 8 if s.head.engine == CORES else s.vocab if plan.logits_in_l1 else 1
    if not 1 <= plan.verified <= max(1, min(plan.chunk, 9, room)):
        yield f"{plan.verified} tokens verified in a pass of {plan.chunk}, with room for {room}"
    sizes = _sizes(plan, s, t)
    if plan.kv_window_blocks and (plan.kv_in_l1 or not sizes.starts_next_cache):
        yield "kv_layer: nothing brings a layer's cache there"
    if plan.kv_window_blocks and plan.kv_tile_blocks > plan.kv_window_blocks:
        yield f"kv_layer: pieces of {plan.kv_tile_blocks} blocks of {plan.kv_window_blocks}"
    yield from _misread(sizes, s)
    need = _bytes(plan, s, t)
    for step in s.steps:
        for use in step.op.uses(step, sizes):
            need[use.buffer] = max(need.get(use.buffer, 0), use.bytes)
    in_use = _in_use(sizes, s)
    for name, size in need.items():
        if name not in have:
            yield f"{name}: no buffer for {size} bytes"
            continue
        b = have[name]
        if b.bytes < size:
            yield f"{name}: {b.bytes} bytes for {size}"
        lost = sorted(at for at in in_use.get(name, ()) if not b.first <= at <= b.last)
        if lost:
            steps = ", ".join(names[at] for at in lost)
            yield f"{name}: used in {steps}, planned for steps {b.first} to {b.last}"


def _l2_needs(plan: Plan, s: ModelShape, t: Target) -> dict[str, int]:
    """What only L2 can hold."""
    needs = {
        "code and stacks": t.l2_system,
        "layer table": _table_bytes(s),
        "input": 4 * (InputWord.TOKENS + s.context),
        "gains": 4 * s.hidden * (2 * s.num_layers + 1),
        "permutations": 2 * s.perms,
    }
    if s.biases:
        needs["biases"] = 4 * s.biases
    if s.head_norms:
        needs["head gains"] = 2 * s.num_layers * 2 * s.head_dim
    if not plan.logits_in_l1:
        needs["logits"] = 4 * s.vocab
    if plan.stage_bytes:
        needs["flash stage"] = plan.stages * plan.stage_bytes
        needs["embedding stage"] = plan.embed_stage
    if "hyperram" in plan.kv_layers:
        needs["kv stage"] = _layer_cache(s)
    if plan.table_stage:
        needs["table stage"] = plan.table_stage
    return needs


def _layer_cache(s: ModelShape) -> int:
    """A layer's keys, with both scales, and values."""
    head = (s.head_dim + 3) // 4 * 4
    size = (s.context + 3) // 4 * 4 * s.kv_heads * (head + 4 + s.head_dim)
    return (size + 15) // 16 * 16


def _cache_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Every layer's cache has a memory behind L1 that a program may write, or all of them are in L1."""
    layers = 0 if plan.kv_in_l1 else s.num_layers
    if sum(plan.kv_layers.values()) != layers or any(n < 1 for n in plan.kv_layers.values()):
        yield f"the cache of {layers} layers lies behind L1, planned are {plan.kv_layers}"
    one = _layer_cache(s)
    have = {b.level: b.bytes for b in plan.beside if b.name == "kv cache"}
    if sorted(have) != sorted(plan.kv_layers):
        yield f"kv cache: bytes in {sorted(have)}, layers in {sorted(plan.kv_layers)}"
    for level, count in plan.kv_layers.items():
        if have.get(level, -1) < count * one:
            yield f"{level} kv cache: {have.get(level, 'no')} bytes for {count * one}"
        if level not in ("l2", "wmem", "hyperram"):
            yield f"kv cache: nothing is copied from and to {level}"
        elif count * one > t.written(level):
            yield f"{level} kv cache: {count * one} bytes, a program may write {t.written(level)}"


def _table_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """Each table once, whole, and with what it takes to fetch from it."""
    needs = {
        "rope": 2 * s.context * s.head_dim,
        "pieces": 4 * (s.vocab + 1) + s.piece_bytes,
    }
    windows = {"rope": 2 * plan.chunk * s.head_dim, "pieces": 64}
    if sorted(table.name for table in plan.tables) != sorted(needs):
        yield f"tables {[table.name for table in plan.tables]}, there have to be {list(needs)}"
    for table in plan.tables:
        if table.bytes < needs.get(table.name, 0) or table.bytes % 4 or table.offset % 4:
            yield f"{table.name}: {table.bytes} bytes at {table.offset} for {needs.get(table.name)}"
        if not t.has(table.level) or table.level == "l1":
            yield f"{table.name}: unknown level {table.level}"
        if table.level == "flash" and plan.table_stage < windows.get(table.name, 0):
            yield f"{table.name}: table stage of {plan.table_stage} for {windows.get(table.name)}"


def _behind_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    have = {b.name: b.bytes for b in plan.beside if b.level == "l2"}
    for name, size in _l2_needs(plan, s, t).items():
        if have.get(name, -1) < size:
            yield f"L2 {name}: {have.get(name, 'no')} bytes for {size}"
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
        beside = sum(b.bytes for b in plan.beside if b.level == level.name)
        if stored and level not in t.stored:
            yield f"{level.name}: nothing can be stored there"
        if beside and level.name == "flash":
            yield f"{level.name}: buffers in a memory that is only read"
        if max(stored, default=0) + beside > level.bytes:
            yield f"{level.label}: {max(stored, default=0) + beside} bytes of {level.bytes}"
    for b in plan.beside:
        if not t.has(b.level):
            yield f"{b.name}: unknown level {b.level}"


def _engine_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    """What stands between a matrix and the engine that is to run it."""
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
            yield f"{m.name}: a side path on {m.engine}"
        if m.name == "embedding":
            yield f"{m.name}: on {m.engine}, but nothing is multiplied with it"
        if m.name == "head" and s.embedding is None and not engine.reads_rows:
            yield f"{m.name}: {m.engine} gives no rows of it"


def _pieces(p: Placement) -> list[tuple[str, int, int]]:
    """Memory, offset and bytes of what lies together of a matrix."""
    near = 0
    for tile, at in enumerate(range(0, p.blocks, max(1, p.tile_blocks))):
        if p.every and tile % p.every == 0:
            near += min(p.tile_blocks, p.blocks - at) * p.block_bytes
    rest = (p.level, p.offset, p.bytes - near)
    return [rest, (p.near, p.near_offset, near)] if p.every else [rest]


def _weight_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    rooms = {v.name: v.bytes for v in t.levels if v.name != "l1"}
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
    table = "embedding" if s.embedding else "head"
    if not (2 <= plan.stages <= 8 if plan.stage_bytes else plan.stages == 0):
        yield f"{plan.stages} flash stages of {plan.stage_bytes} bytes: 2 to 8, of which one is copied, or none"
    for m in s.matrices:
        p = by_name.pop(m.name, None)
        if p is None:
            yield f"{m.name}: not placed"
            continue
        rows, size, beside = 8, 16 + _words(m.k, m.seg, m.bits, m.pad) * 4 * m.bits, 0
        offsets = {0: 0, 1: 4, 2: 16}[m.offsets]  # none, zero points, any
        size += len(_segments(m.k, m.seg)) * (8 * int(m.grouped) + offsets)
        if m.rank:
            size += 16 + _words(m.rank, m.rank, 8) * 32
        if m.engine != CORES:  # only the engine's store knows how it lays out a matrix
            store = m.store
            rows, size, beside = store.rows, store.block_bytes(m), store.beside_bytes(m)
        if p.block_bytes != size or p.bytes != p.blocks * size + beside:
            yield f"{m.name}: blocks of {size} bytes; the plan says {p.block_bytes}, {p.bytes} in all"
        if p.blocks * rows < m.rows or (p.blocks - 1) * rows >= m.rows:
            yield f"{m.name}: {p.blocks} blocks for {m.rows} rows"
        if not 1 <= p.tile_blocks <= p.blocks:
            yield f"{m.name}: {p.tile_blocks} blocks per tile"
        tiled = m.name != "embedding" and m.engine == CORES
        if tiled and p.tile_blocks * size > plan.tile_bytes:
            yield f"{m.name}: tile of {p.tile_blocks * size} bytes in {plan.tile_bytes}"
        if p.level == "flash" and m.name != "embedding" and plan.stage_bytes < p.tile_blocks * size:
            yield f"{m.name}: flash stage of {plan.stage_bytes} for {p.tile_blocks * size}"
        if p.level == "flash" and m.name == table and plan.embed_stage < size:
            yield f"{m.name}: embedding stage of {plan.embed_stage} for {size}"
        if p.offset % 4 or p.offset < 0:
            yield f"{m.name}: stored at {p.offset}, not a multiple of 4 from 0 on"
        if p.level not in rooms:
            yield f"{m.name}: unknown level {p.level}"
            continue
        if p.every and (m.name != "head" or m.engine != CORES or p.every < 2):
            yield f"{m.name}: one of {p.every} tiles near; of the head alone two or more can be"
        if p.every and (p.near not in ("wmem", "l2") or not t.has(p.near) or p.level != "flash"):
            yield f"{m.name}: tiles in {p.near}, which is not on the chip, or the others not in flash"
        if p.every and not all(held for _, _, held in _pieces(p)):
            yield f"{m.name}: one of {p.every} tiles near leaves nothing in {p.level}"
        if p.every and (p.near_offset % 4 or p.near_offset < 0):
            yield f"{m.name}: stored at {p.near_offset}, not a multiple of 4 from 0 on"
        if m.name in owners:
            continue  # its bytes are its owner's, and count once
        for level, offset, held in _pieces(p):
            spans.setdefault(level, []).append((offset, offset + held, m.name))
    for name in by_name:
        yield f"{name}: placed but not in the model"
    for level, taken in spans.items():
        taken.sort()
        for (_, end, a), (start, _, c) in zip(taken, taken[1:], strict=False):
            if start < end:
                yield f"{level}: {a} and {c} overlap by {end - start} bytes"
        if level in rooms and taken[-1][1] > rooms[level]:
            yield f"{level}: {taken[-1][1]} bytes used of {rooms[level]}"


def faults_of(plan: Plan, shape: ModelShape, target: Target) -> list[str]:
    """Everything wrong with a plan, as sentences; empty when it is sound."""
    return [
        *_l1_faults(plan, shape, target),
        *_behind_faults(plan, shape, target),
        *_weight_faults(plan, shape, target),
        *_engine_faults(plan, shape, target),
    ]


def verify(plan: Plan, shape: ModelShape, target: Target) -> int:
    """Raise PlanInvalid with every fault; returns the number of byte ranges that were checked."""
    faults = faults_of(plan, shape, target)
    if faults:
        raise PlanInvalid(
            f"{len(faults)} fault(s): " + "; ".join(faults[:20]),
            "this is a defect; please report it.",
        )
    return len(plan.l1) + len(plan.beside) + len(plan.tables) + len(plan.placements)
