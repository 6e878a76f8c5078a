"""An independent check of a plan: shares no code with the planner, recomputes from the rules.

It walks every phase and every byte range instead of trusting offsets or sums, and knows for itself
how large each buffer has to be and in which phases it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from shrinkc.core.errors import PlanInvalid
from shrinkc.memory.plan import PHASES, Plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import Target

Need = tuple[int, str, str]  # bytes, first and last phase of use


def _skewed(size: int) -> int:
    """Per-core structures end 12 bytes behind a multiple of 64: neighbours meet other L1 banks."""
    while size % 64 != 12:
        size += 1
    return size


def _segments(k: int, seg: int) -> list[int]:
    return [min(seg, k - at) for at in range(0, k, seg)]


def _words(k: int, seg: int, bits: int, pad: int = 0) -> int:
    """int32 words of a quantised vector of k inputs, padding included."""
    unit = pad or {8: 4, 4: 8, 3: 32, 2: 16}[bits]
    return sum((n + unit - 1) // unit * unit // 4 for n in _segments(k, seg))


def _x_blocks(k: int, seg: int) -> int:
    return sum((n + 7) // 8 for n in _segments(k, seg))


def _needs(plan: Plan, s: ModelShape, t: Target) -> dict[str, Need]:
    """What L1 must hold.  The layer loop runs from attn_norm to down again and again, so what one
    layer leaves to the next lives through all of it."""
    chunk, cores = plan.chunk, t.cores
    readers = [m for m in s.matrices if m.name != "embedding"]
    positions = (s.context + 3) // 4 * 4
    head = (s.head_dim + 3) // 4 * 4
    k_block, v_block = 4 * s.kv_heads * (head + 4), 4 * s.kv_heads * s.head_dim
    qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
    width = max(s.hidden, s.ffn, qkv)
    nseg = max(len(_segments(m.k, m.seg)) for m in readers)
    ranks = [m.rank for m in readers if m.rank]
    x_blocks = max([_x_blocks(m.k, m.seg) for m in readers] + [_x_blocks(r, 64) for r in ranks])
    out: dict[str, Need] = {
        "tiles": (2 * plan.tile_bytes, "embed", "head"),
        "x": (4 * chunk * s.hidden, "embed", "final_norm"),
        "y": (4 * chunk * width, "attn_norm", "final_norm"),
        "xq": (
            4 * chunk * max(_words(m.k, m.seg, m.bits, m.pad) for m in readers),
            "attn_norm",
            "head",
        ),
        "xc": (4 * chunk * nseg, "attn_norm", "head"),
        "xv": (32 * chunk, "attn_norm", "head"),
        "block_max": (4 * chunk * x_blocks, "attn_norm", "final_norm"),
        "parts": (16 * chunk * cores, "attn_norm", "final_norm"),
        "rope": (2 * chunk * s.head_dim, "embed", "down"),
        "q8": (chunk * s.heads * head, "heads", "attention"),
        "q_scale": (4 * chunk * s.heads, "heads", "attention"),
        "head_scratch": (cores * _skewed(6 * positions + 12), "attention", "attention"),
        "head_state": (cores * _skewed(16 + 4 * head), "attention", "attention"),
        "head_work": (4 * cores * s.head_dim, "heads", "heads"),
    }
    if any(m.asymmetric for m in readers):
        out["xsum"] = (4 * chunk * nseg, "attn_norm", "head")
    if ranks:
        out["sy"] = (4 * chunk * max(ranks), "qkv", "down")
        out["sq"] = (4 * chunk * max(_words(r, 64, 8) for r in ranks), "qkv", "down")
        out["sc"] = (4 * chunk * max(len(_segments(r, 64)) for r in ranks), "qkv", "down")
        out["sv"] = (32 * chunk, "qkv", "down")
    if plan.kv_in_l1:
        out["k_cache"] = (s.num_layers * positions // 4 * k_block, "embed", "sample")
        out["v_cache"] = (s.num_layers * positions // 4 * v_block, "embed", "sample")
    else:
        piece = (plan.kv_tile_blocks * max(k_block, v_block) + 15) // 16 * 16
        out["kv_tile"] = (2 * piece, "attention", "attention")
    if plan.logits_in_l1:
        out["logits"] = (4 * s.vocab, "head", "sample")
    return out


def _table_bytes(s: ModelShape) -> int:
    """Matrix and layer tables in L1, those of functions, and gains of up to 4 KiB."""
    sides = sum(1 for m in s.matrices if m.rank > 0)
    gains = 2 * s.hidden * (2 * s.num_layers + 1)
    gains = (gains + 15) // 16 * 16 if gains <= 4096 else 0
    matrices = (len(s.matrices) + 1 + sides) * 48
    layer = 24 + (16 if s.perms else 0) + (16 if s.biases else 0)
    layer += 16 if s.head_norms else 0
    return matrices + s.num_layers * layer + 2560 + gains


def _l1_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    limit = plan.l1_budget - t.l1_system - _table_bytes(s)
    for b in plan.l1:
        if b.offset % 8:
            yield f"{b.name}: offset {b.offset} is not a multiple of 8"
        if b.offset < 0:
            yield f"{b.name}: offset {b.offset} lies before L1"
        if not 0 <= b.first <= b.last < len(PHASES):
            yield f"{b.name}: live from phase {b.first} to {b.last}"
    for phase, name in enumerate(PHASES):
        live = sorted(
            (b.offset, b.offset + b.bytes, b.name) for b in plan.l1 if b.first <= phase <= b.last
        )
        for (_, end, a), (start, _, c) in zip(live, live[1:], strict=False):
            if start < end:
                yield f"phase {name}: {a} and {c} overlap by {end - start} bytes"
        for _, end, a in live:
            if end > limit:
                yield f"phase {name}: {a} ends at {end} of {limit}"
    have = {b.name: b for b in plan.l1}
    if len(have) != len(plan.l1):
        yield "two L1 buffers of one name"
    for name, (size, first, last) in _needs(plan, s, t).items():
        if name not in have:
            yield f"{name}: no buffer for {size} bytes"
            continue
        b = have[name]
        if b.bytes < size:
            yield f"{name}: {b.bytes} bytes for {size}"
        if b.first > PHASES.index(first) or b.last < PHASES.index(last):
            yield f"{name}: used from {first} to {last}, planned for phases {b.first} to {b.last}"


def _l2_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    head = (s.head_dim + 3) // 4 * 4
    blocks = (s.context + 3) // 4
    needs = {
        "code and stacks": t.l2_system,
        "layer table": _table_bytes(s),
        "rope table": 2 * s.context * s.head_dim,
        "pieces": 4 * (s.vocab + 1) + s.piece_bytes,
        "input": 4 * (16 + s.context),
        "gains": 2 * s.hidden * (2 * s.num_layers + 1),
        "permutations": 2 * s.perms,
    }
    if s.biases:
        needs["biases"] = 4 * s.biases
    if s.head_norms:
        needs["head gains"] = 2 * s.num_layers * 2 * s.head_dim
    if not plan.kv_in_l1:
        needs["k cache"] = s.num_layers * blocks * 4 * s.kv_heads * (head + 4)
        needs["v cache"] = s.num_layers * blocks * 4 * s.kv_heads * s.head_dim
    if not plan.logits_in_l1:
        needs["logits"] = 4 * s.vocab
    if plan.stage_bytes:
        needs["flash stage"] = 2 * plan.stage_bytes
        needs["embedding stage"] = plan.embed_stage
    have = {b.name: b.bytes for b in plan.l2}
    for name, size in needs.items():
        if have.get(name, -1) < size:
            yield f"L2 {name}: {have.get(name, 'no')} bytes for {size}"
    weights = max((p.offset + p.bytes for p in plan.placements if p.level == "l2"), default=0)
    if sum(have.values()) + weights > t.l2:
        yield f"L2: {sum(have.values()) + weights} bytes of {t.l2}"


def _weight_faults(plan: Plan, s: ModelShape, t: Target) -> Iterator[str]:
    rooms = {"wmem": t.wmem, "l2": t.l2, "flash": t.flash}
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
    table = "embedding" if s.embedding else "head"
    for m in s.matrices:
        p = by_name.pop(m.name, None)
        if p is None:
            yield f"{m.name}: not placed"
            continue
        size = 16 + _words(m.k, m.seg, m.bits, m.pad) * 4 * m.bits
        size += 8 * len(_segments(m.k, m.seg)) * (int(m.grouped) + 2 * int(m.asymmetric))
        if m.rank:
            size += 16 + _words(m.rank, 64, 8) * 32
        if p.block_bytes != size or p.bytes != p.blocks * size:
            yield f"{m.name}: blocks of {size} bytes; the plan says {p.block_bytes}, {p.bytes} in all"
        if p.blocks * 8 < m.rows or (p.blocks - 1) * 8 >= m.rows:
            yield f"{m.name}: {p.blocks} blocks for {m.rows} rows"
        if not 1 <= p.tile_blocks <= p.blocks:
            yield f"{m.name}: {p.tile_blocks} blocks per tile"
        if m.name != "embedding" and p.tile_blocks * size > plan.tile_bytes:
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
        if m.name in owners:
            continue  # its bytes are its owner's, and count once
        spans.setdefault(p.level, []).append((p.offset, p.offset + p.blocks * size, m.name))
    for name in by_name:
        yield f"{name}: placed but not in the model"
    for level, taken in spans.items():
        taken.sort()
        for (_, end, a), (start, _, c) in zip(taken, taken[1:], strict=False):
            if start < end:
                yield f"{level}: {a} and {c} overlap by {end - start} bytes"
        if taken[-1][1] > rooms[level]:
            yield f"{level}: {taken[-1][1]} bytes used of {rooms[level]}"


def faults_of(plan: Plan, shape: ModelShape, target: Target) -> list[str]:
    """Everything wrong with a plan, as sentences; empty when it is sound."""
    return [
        *_l1_faults(plan, shape, target),
        *_l2_faults(plan, shape, target),
        *_weight_faults(plan, shape, target),
    ]


def verify(plan: Plan, shape: ModelShape, target: Target) -> int:
    """Raise PlanInvalid with every fault; returns the number of byte ranges that were checked."""
    faults = faults_of(plan, shape, target)
    if faults:
        raise PlanInvalid(
            f"{len(faults)} fault(s): " + "; ".join(faults[:20]),
            "this is a defect; please report it.",
        )
    return len(plan.l1) + len(plan.l2) + len(plan.placements)
