"""An independent check of a plan: shares no code with the planner, recomputes from the rules.

It walks every phase and every byte range instead of trusting offsets or sums.
"""

from __future__ import annotations

from shrinkc.core.errors import PlanInvalid
from shrinkc.memory.plan import PHASES, Plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import Target


def faults_of(plan: Plan, shape: ModelShape, target: Target) -> list[str]:
    """Everything wrong with a plan, as sentences; empty when it is sound."""
    out: list[str] = []

    # L1: in every phase, live buffers are disjoint, inside the budget, and word aligned
    limit = plan.l1_budget - target.l1_system
    for phase in range(len(PHASES)):
        taken: list[tuple[int, int, str]] = []
        for b in plan.l1:
            if b.first <= phase <= b.last:
                taken.append((b.offset, b.offset + b.bytes, b.name))
        taken.sort()
        for (_, end, a), (start, _, c) in zip(taken, taken[1:], strict=False):
            if start < end:
                out.append(f"phase {PHASES[phase]}: {a} and {c} overlap by {end - start} bytes")
        if taken and max(t[1] for t in taken) > limit:
            out.append(f"phase {PHASES[phase]}: L1 ends at {max(t[1] for t in taken)} of {limit}")
    out += [f"{b.name}: offset {b.offset} is not a multiple of 8" for b in plan.l1 if b.offset % 8]

    # every matrix is stored once, whole, in one level, not overlapping another
    by_name = {p.name: p for p in plan.placements}
    if len(by_name) != len(plan.placements):
        out.append("a matrix is placed twice")
    ranges: dict[str, list[tuple[int, int, str]]] = {}
    for m in shape.matrices:
        p = by_name.pop(m.name, None)
        if p is None:
            out.append(f"{m.name}: not placed")
            continue
        per_segment = [min(m.seg, m.k - at) for at in range(0, m.k, m.seg)]
        words = [(-(-n // 8) * 2 if m.bits == 4 else -(-n // 4)) for n in per_segment]
        size = 16 + sum(w * 32 // (8 // m.bits) for w in words)
        size += 8 * len(words) * ((1 if m.grouped else 0) + (1 if m.asymmetric else 0))
        if m.rank:
            side = [min(64, m.rank - at) for at in range(0, m.rank, 64)]
            size += 16 + sum(-(-n // 4) * 32 for n in side)
        if p.block_bytes != size:
            out.append(f"{m.name}: a block of 8 rows is {size} bytes, the plan says {p.block_bytes}")
        if p.blocks * 8 < m.rows or (p.blocks - 1) * 8 >= m.rows:
            out.append(f"{m.name}: {p.blocks} blocks for {m.rows} rows")
        if not 1 <= p.tile_blocks <= p.blocks:
            out.append(f"{m.name}: {p.tile_blocks} blocks per tile")
        if p.tile_blocks * size > plan.tile_bytes and m.name != "embedding":
            out.append(f"{m.name}: tile of {p.tile_blocks * size} bytes in {plan.tile_bytes}")
        if p.level == "flash" and plan.stage_bytes < p.tile_blocks * size and m.name != "embedding":
            out.append(f"{m.name}: flash stage of {plan.stage_bytes} for {p.tile_blocks * size}")
        if p.offset % 4:
            out.append(f"{m.name}: stored at {p.offset}, not a multiple of 4")
        ranges.setdefault(p.level, []).append((p.offset, p.offset + p.blocks * size, m.name))
    out += [f"{name}: placed but not in the model" for name in by_name]
    for level, spans in ranges.items():
        spans.sort()
        for (_, end, a), (start, _, c) in zip(spans, spans[1:], strict=False):
            if start < end:
                out.append(f"{level}: {a} and {c} overlap by {end - start} bytes")
        other = sum(b.bytes for b in plan.l2) if level == "l2" else 0
        top = spans[-1][1] + other
        room = {"wmem": target.wmem, "l2": target.l2, "flash": target.flash}.get(level)
        if room is None:
            out.append(f"unknown level {level}")
        elif top > room:
            out.append(f"{level}: {top} bytes used of {room}")

    # the tile double buffer and the per-token buffers are as large as what they hold
    sizes = {b.name: b.bytes for b in plan.l1}
    needs = {
        "tiles": 2 * plan.tile_bytes,
        "x": 4 * plan.chunk * shape.hidden,
        "y": 4 * plan.chunk * max(shape.hidden, shape.ffn, (shape.heads + 2 * shape.kv_heads) * shape.head_dim),
        "head_scratch": target.cores * shape.context * 7,
    }
    if plan.kv_in_l1:
        needs["k_cache"] = shape.num_layers * shape.context * shape.kv_heads * (shape.head_dim + 8)
        needs["v_cache"] = shape.num_layers * shape.context * shape.kv_heads * shape.head_dim
    if plan.logits_in_l1:
        needs["logits"] = 4 * shape.vocab
    out += [
        f"{name}: {sizes.get(name, 0)} bytes for {need}"
        for name, need in needs.items()
        if sizes.get(name, 0) < need
    ]
    return out


def verify(plan: Plan, shape: ModelShape, target: Target) -> int:
    """Raise PlanInvalid with every fault; returns the number of byte ranges that were checked."""
    faults = faults_of(plan, shape, target)
    if faults:
        raise PlanInvalid(
            f"{len(faults)} fault(s): " + "; ".join(faults[:20]), "this is a defect; please report it."
        )
    return len(plan.l1) + len(plan.l2) + len(plan.placements)
