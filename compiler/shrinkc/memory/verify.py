"""Independent check of a memory plan, which shares no code with the planner.

It checks every byte range in every step instead of trusting offsets or sums.  Lifetimes of L1 buffers come from
executing a pass of three layers with the uses that each op declares.  Minimum sizes come from formulas of its own;
only for buffers it does not know are the sizes that ops declare used.  verify_lower.py checks the lower memories.
"""

from __future__ import annotations

from collections.abc import Iterator

from shrinkc.abi import EXP2_STEPS_BYTES, InputWord
from shrinkc.core.errors import PlanInvalid
from shrinkc.engines import CORES, ENGINES
from shrinkc.ir.steps import Access, PassSizes, Step, Use
from shrinkc.memory.plan import Plan
from shrinkc.memory.verify_lower import engine_faults, lower_memory_faults, weight_faults
from shrinkc.memory.verify_sizes import (
    cached_head_bytes,
    cached_positions_of,
    group_lengths,
    norm_weights_outside_l1,
    skewed,
    table_bytes,
    vector_words,
    x_blocks,
)
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import MatrixShape
from shrinkc.targets import Target

READS = (Access.READ, Access.UPDATE, Access.PREFETCHED, Access.KEEP)
WRITES = (Access.WRITE, Access.UPDATE, Access.KEEP)


def _slots(matrices: list[MatrixShape]) -> list[list[MatrixShape]]:
    """Group matrices by slot, over all layers."""
    by_slot: dict[str, list[MatrixShape]] = {}
    for m in matrices:
        by_slot.setdefault(m.name.split(".", 1)[-1], []).append(m)
    return list(by_slot.values())


def _products(slot: list[MatrixShape], narrow: list[MatrixShape], chunk: int) -> int:
    """Return the bytes per core for products with several tokens.

    8 sums per token, twice if inputs are split into low and high bytes; and 8 rows of one group, or of 128 inputs,
    widened to bytes if weights have fewer bits."""
    sums = max(32 if m in narrow else 64 for m in slot)
    pieces = [
        vector_words(min(m.k, m.group), m.group, m.bits, m.pad)
        if m in narrow
        else min(32, vector_words(m.k, m.group, m.bits, m.pad))
        for m in slot
        if m.bits < 8
    ]
    return skewed((chunk + chunk % 2) * sums + 32 * max(pieces, default=0))


def _shared_products(m: MatrixShape, chunk: int) -> int:
    """Return the bytes with which another engine multiplies groups for the cores; 0 if it cannot.

    Needs group scales, and padded groups of a multiple of 32 inputs.  Two buffers, each with the weights and
    sums of 66 rows (64, rounded up to a multiple of 6) of one group, or of two groups of up to 64 inputs; and the
    accumulators of 64 rows.  Row lengths in words are odd, so that rows start in different L1 banks."""
    words = {vector_words(n, n, m.bits, m.pad) for n in group_lengths(m.k, m.group)}
    if not m.grouped or any(n % 8 for n in words):
        return 0
    at_once = 2 if max(words) <= 16 else 1
    sums, added = (n + (n + 1) % 2 for n in (at_once * chunk, chunk))
    return 2 * 66 * 4 * (at_once * max(words) + sums) + 64 * 4 * added


def _head_states(s: ModelShape, plan: Plan, cores: int) -> int:
    """Return the attention states that each core needs.

    One if the cache comes in pieces at some position.  One per part of a head if cores share heads: the cache is
    in L1, a core gets at most three parts, and sharing saves more than 1000 cycles."""
    longest = max(cached_positions_of(s, plan.chunk))
    least = 1 if not plan.kv_in_l1 and 4 * plan.kv_window_blocks < longest else 0
    left = s.heads % cores
    in_l1 = plan.kv_in_l1 or plan.kv_window_blocks > 0
    idle = (18 + 2 * s.head_dim) * (cores - left)
    if not left or not in_l1 or s.context <= 1000 * cores // idle:
        return least
    ranges = next(n for n in range(1, cores + 1) if left * n % cores == 0)
    parts = left * ranges // cores
    return parts if parts <= 3 else least


def _splits(plan: Plan, s: ModelShape, cores: int) -> bool:
    """Return whether some tile has at most half a block per core, so that cores split the blocks.

    Only rows of at least 768 inputs are split; grouped ones need at least eight groups."""
    long = {
        m.name
        for m in s.matrices
        if m.name != "embedding"
        and m.engine == CORES
        and vector_words(m.k, m.group, m.bits, m.pad) >= 192
        and (
            len(group_lengths(m.k, m.group)) >= 8
            or not (m.grouped or m.asymmetric or m.grouped_input)
        )
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
        t.cores, t.team, _head_cores(plan, t), plan.chunk, plan.tile_bytes, plan.kv_in_l1, plan.kv_tile_blocks,
        plan.logits_in_l1, max(ENGINES[m.engine].scratch(m, plan.chunk) for m in s.matrices),
        plan.verified, 1 if s.head.engine == CORES else plan.verified, plan.kv_window_blocks,
        _splits(plan, s, t.cores),
        any(ENGINES[e].products for e in t.engines) and any(_shared_products(m, 1) for m in s.matrices),
        norm_weights_outside_l1(s) and not t.board, _multipliers(plan, s, t), plan.in_place,
        any(_remainders(m) for m in s.matrices), s.perms > 0, s.windows, s.rope_tables, s.kv_bits,
        plan.kv_streamed,
    )  # fmt: skip


def _remainders(m: MatrixShape) -> bool:
    return ENGINES[m.engine].remainders(m.k, m.bits) > 0


def _vectors(plan: Plan, s: ModelShape, t: Target) -> int:
    """Return the bytes of the buffer for quantised vectors.

    It holds the vectors of a whole chunk.  In an in-place plan, vectors longer than a norm's overwrite their source
    instead; each core then spills a quarter of a row.
    """
    readers = [m for m in s.matrices if m.name != "embedding"]
    narrow = [m for m in readers if m.grouped or m.asymmetric or m.grouped_input]
    words = {
        m.name: (_vector(m, m in narrow, 1), _vector(m, m in narrow, plan.chunk)) for m in readers
    }
    placed = [
        m
        for m in readers
        if plan.in_place and m.k > s.hidden and m.name.split(".")[-1] in ("o", "down")
    ]
    several = max(words[m.name][1] for m in readers if m not in placed)
    spilled = [m.k // 4 + 8 for m in placed]
    return 4 * max(
        max(one for one, _ in words.values()),
        several * plan.chunk,
        (t.cores + int(t.controller)) * max(spilled, default=0),
    )


def _head_cores(plan: Plan, t: Target) -> int:
    """Return how many cores compute attention heads: with the controller if no tiles are copied."""
    return t.cores if plan.tile_bytes else t.cores + int(t.controller)


def _multipliers(plan: Plan, s: ModelShape, t: Target) -> int:
    """Return the bytes of row multipliers in L1: all of them if they fit after all other buffers, else 0."""
    size = sum(ENGINES[m.engine].multipliers(m) for m in s.matrices if m.name != "embedding")
    if size == 0:
        return 0
    end = max(b.offset + b.bytes for b in plan.l1 if b.name != "multipliers")
    return size if end + size <= plan.l1_budget - _besides(s, t) else 0


def _besides(s: ModelShape, t: Target) -> int:
    """Return the bytes of L1 besides the arena.  A board's RAM also holds the tokens and a hash for each layer and up
    to 16 tokens, but no tables."""
    if not t.board:
        return t.l1_system + table_bytes(s)
    tokens, hashes = 4 * (InputWord.TOKENS + s.context), 64 * s.num_layers
    return t.l1_system + (tokens + 15) // 16 * 16 + hashes


def _vector(m: MatrixShape, narrow: bool, tokens: int) -> int:
    """Return the words of each token's vector in a pass of ``tokens`` tokens."""
    if tokens > 1 and ENGINES[m.engine].second_layout:
        return 2 * ((m.k + 3) // 4)
    return vector_words(m.k, m.group, m.bits, m.pad) * (1 if narrow else 2)  # two planes of bytes


def _head_bytes(s: ModelShape) -> tuple[int, int, int]:
    """Return the bytes of a query head, and of 4 positions of a layer's keys and of its values."""
    key, value = cached_head_bytes(s)
    narrow = s.head_dim - s.head_dim // 16 * 4
    query = (
        (s.head_dim + 3) // 4 * 4 if s.kv_bits == 8 else s.head_dim - narrow + (narrow + 7) // 8 * 8
    )
    return query, 4 * s.kv_heads * key, 4 * s.kv_heads * value


def _bytes(plan: Plan, s: ModelShape, t: Target) -> dict[str, int]:
    """Return the minimum bytes of each L1 buffer that the verifier knows."""
    chunk, cores, head_cores = plan.chunk, t.cores, _head_cores(plan, t)
    readers = [m for m in s.matrices if m.name != "embedding"]
    positions = 4 * plan.kv_tile_blocks if plan.kv_streamed else (s.context + 3) // 4 * 4
    head = (s.head_dim + 3) // 4 * 4
    query, k_block, v_block = _head_bytes(s)
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    width = max(s.hidden, qkv)
    narrow = [m for m in readers if m.grouped or m.asymmetric or m.grouped_input]
    groups = max((len(group_lengths(m.k, m.group)) for m in narrow), default=0)
    ranks = [m.rank for m in readers if m.rank]
    out = {
        "x": 4 * chunk * s.hidden,
        "y": 4 * chunk * width,
        "h": 4 * chunk * s.ffn,
        "xq": _vectors(plan, s, t),
        "xv": 32 * chunk,
        "parts": 16 * (chunk if s.perms else max(1, min(chunk, t.team // 2))) * max(cores, 8),
        "rope": 2 * chunk * s.head_dim * s.rope_tables,
        "q8": chunk * s.heads * query,
        "q_scale": 4 * chunk * s.heads,
        "head_scratch": head_cores * skewed(6 * positions + 12),
        "head_work": 4 * head_cores * s.head_dim,
        "tops": 8 * cores * plan.verified,
    }
    if s.post_norms:
        out["block"] = 4 * chunk * s.hidden
    # for one token the controller helps only if the busiest core then has fewer heads
    fewer = len(range(0, s.heads, head_cores)) < len(range(0, s.heads, cores))
    one_token = head_cores if fewer else cores
    states = one_token * _head_states(s, plan, one_token)
    if plan.kv_streamed:  # all heads of some tokens at a time
        states = s.heads * min(chunk, plan.kv_streamed)
    if states:
        out["head_state"] = states * skewed(16 + 4 * head)
    mlps = [step for step in s.steps if step.in_layer and step.matrix == "gate_up"]
    if norm_weights_outside_l1(s) and not t.board and len(mlps) == 1:
        out["gain"] = 4 * s.hidden
    if any(m.engine == CORES for m in readers) and not t.board:
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
            max(_shared_products(m, chunk) for m in several)
            if any(ENGINES[e].products for e in t.engines)
            else 0,
        )
    if narrow:
        out["xc"] = 4 * chunk * groups
        out["block_max"] = 4 * chunk * max(x_blocks(m.k, m.group) for m in narrow)
    if any(m.asymmetric for m in readers):
        out["xsum"] = 4 * chunk * groups
    if ranks:
        out["sy"] = 4 * chunk * max(ranks)
        out["sq"] = 2 * 4 * chunk * max(vector_words(r, r, 8) for r in ranks)
        out["sv"] = 32 * chunk
    if plan.kv_in_l1:
        blocks = sum((n + 3) // 4 for n in cached_positions_of(s, chunk))
        out["k_cache"] = blocks * k_block
        out["v_cache"] = blocks * v_block
    elif plan.kv_window_blocks:
        out["kv_layer"] = plan.kv_window_blocks * (k_block + v_block)
    block = k_block + v_block if plan.kv_streamed else max(k_block, v_block)
    piece = (plan.kv_tile_blocks * block + 15) // 16 * 16
    if plan.kv_window_blocks and 4 * plan.kv_window_blocks < max(cached_positions_of(s, chunk)):
        out["kv_layer"] = max(out["kv_layer"], 2 * piece)  # a longer cache comes in pieces
    elif not plan.kv_in_l1 and not plan.kv_window_blocks:
        out["kv_tile"] = 2 * piece
    if s.context >= 128 and ("k_cache" in out or "kv_layer" in out):
        out["exp2"] = EXP2_STEPS_BYTES
    if kept := _multipliers(plan, s, t):
        out["multipliers"] = kept
    if plan.logits_in_l1:
        out["logits"] = 4 * s.vocab * (1 if s.head.engine == CORES else plan.verified)
    return out


_Executed = list[tuple[int, Step, tuple[str, ...]]]


def _executed(s: ModelShape) -> _Executed:
    """List the steps of a pass of three layers as (index in s.steps, step, names of its inputs).

    From the second layer on, inputs from before the loop are the last result of the previous layer."""
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


def _in_use(executed: _Executed, uses: list[list[Use]]) -> dict[str, set[int]]:
    """Return buffer -> steps during which it holds data that is read later, or is scratch."""
    steps = [at for at, _, _ in executed]
    found: dict[str, set[int]] = {}
    since: dict[str, int] = {}  # buffer -> index in ``executed`` of its last write
    for here, at in enumerate(steps):
        for use in uses[at]:
            live = found.setdefault(use.buffer, set())
            live.add(at)
            if use.access is Access.KEEP:
                live.update(range(len(uses)))
            if use.access in READS:
                begin = 0 if use.access is Access.PREFETCHED else since.get(use.buffer, 0)
                live.update(steps[begin : here + 1])
        since.update({use.buffer: here for use in uses[at] if use.access in WRITES})
    return found


def _misread(sizes: PassSizes, executed: _Executed, uses: list[list[Use]]) -> Iterator[str]:
    """Report every step that reads a value from a buffer which holds another value by then."""
    holds: dict[str, str] = {}
    for number, step, inputs in executed:
        for value in inputs:
            if value == "token" or (value == "logits" and not sizes.logits_in_l1):
                continue
            at = sizes.buffer(value)
            if holds.get(at) != value:
                yield f"{step.name}: reads {value} from {at}, which holds {holds.get(at, 'nothing')}"
        for use in uses[number]:
            if use.access is Access.SCRATCH:
                if use.buffer in {sizes.buffer(value) for value in inputs if value != "token"}:
                    yield f"{step.name}: works in {use.buffer}, which it reads"
                holds[use.buffer] = f"scratch of {step.name}"
        if sizes.made_in_place(step.name):
            holds[sizes.source(step.name)] = f"vectors of {step.name}"
        holds[step.op.buffer(step, sizes)] = step.name


def _l1_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    limit = plan.l1_budget - _besides(s, t)
    for b in plan.l1:
        if b.offset % 8:
            yield f"{b.name}: offset {b.offset} is not a multiple of 8"
        if b.offset < 0:
            yield f"{b.name}: offset {b.offset} lies before L1"
        if not b.live or not {*b.live} <= {*range(len(s.steps))}:
            yield f"{b.name}: live in steps {b.live}"
    names = [step.name for step in s.steps]
    if plan.steps != names:
        yield f"planned for the steps {plan.steps}, a pass has {names}"
    for at, name in enumerate(names):
        live = sorted((b.offset, b.offset + b.bytes, b.name) for b in plan.l1 if at in b.live)
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
    if plan.kv_window_blocks and (plan.kv_in_l1 or not sizes.prefetches_next_cache):
        yield "kv_layer: nothing brings a layer's cache there"
    fixed = s.perms or s.hidden % 2 or any(not ENGINES[m.engine].any_pitch for m in s.readers)
    if plan.in_place and fixed:
        yield "in place, with vectors that have to lie by themselves"
    if plan.kv_window_blocks and plan.kv_tile_blocks > plan.kv_window_blocks:
        yield f"kv_layer: pieces of {plan.kv_tile_blocks} blocks of {plan.kv_window_blocks}"
    executed, uses = _executed(s), [list(step.op.uses(step, sizes)) for step in s.steps]
    yield from _misread(sizes, executed, uses)
    need = _bytes(plan, s, t)
    for of_step in uses:
        for use in of_step:
            need[use.buffer] = max(need.get(use.buffer, 0), use.bytes)
    in_use = _in_use(executed, uses)
    for name, size in need.items():
        if name not in have:
            yield f"{name}: no buffer for {size} bytes"
            continue
        b = have[name]
        if b.bytes < size:
            yield f"{name}: {b.bytes} bytes for {size}"
        if lost := sorted(in_use.get(name, set()) - {*b.live}):
            steps = ", ".join(names[at] for at in lost)
            yield f"{name}: used in {steps}, planned for steps {b.live}"


def faults_of(plan: Plan, shape: ModelShape, target: Target) -> list[str]:
    """Return one sentence per fault of a plan; an empty list if the plan is valid."""
    return [
        *_l1_faults(plan, shape, target),
        *lower_memory_faults(plan, shape, target),
        *weight_faults(plan, shape, target),
        *engine_faults(plan, shape, target),
    ]


def verify(plan: Plan, shape: ModelShape, target: Target) -> int:
    """Raise PlanInvalid if the plan has faults; return the number of byte ranges checked."""
    faults = faults_of(plan, shape, target)
    if faults:
        raise PlanInvalid(
            f"{len(faults)} fault(s): " + "; ".join(faults[:20]),
            "this is a defect; please report it.",
        )
    return len(plan.l1) + len(plan.lower_buffers) + len(plan.tables) + len(plan.placements)
