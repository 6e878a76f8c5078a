"""The verifier catches every way of damaging a sound plan."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit, PlanInvalid
from shrinkc.memory import verify as verify_module
from shrinkc.memory.plan import Buffer, Plan, make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA, Target

from .shapes import make_shape, shapes

SHAPES: dict[str, ModelShape] = {
    "plain": make_shape(),
    "untied 4 bit, side paths": make_shape(
        tied=False, options=QuantOptions(bits=4, asymmetric=True), ranks={"qkv": 3, "down": 70}
    ),
}
BUDGETS = (None, 48 * KIB)
STREAMED = replace(SIRACUSA, wmem=60_000, l2=220 * KIB)


def cases() -> list[tuple[str, ModelShape, Target, Plan]]:
    found = []
    for name, s in SHAPES.items():
        for budget in BUDGETS:
            for t in (SIRACUSA, STREAMED):
                label = f"{name}, L1 {budget}, {'flash' if t is STREAMED else 'on chip'}"
                found.append((label, s, t, make_plan(s, t, budget)))
    return found


CASES = cases()


def with_l1(plan: Plan, at: int, **fields: object) -> Plan:
    out = copy.deepcopy(plan)
    out.l1[at] = replace(out.l1[at], **fields)  # type: ignore[arg-type]
    return out


def with_placement(plan: Plan, at: int, **fields: object) -> Plan:
    out = copy.deepcopy(plan)
    out.placements[at] = replace(out.placements[at], **fields)  # type: ignore[arg-type]
    return out


def live_together(a: Buffer, b: Buffer) -> bool:
    return a.first <= b.last and b.first <= a.last


def refused(plan: Plan, s: ModelShape, t: Target) -> bool:
    try:
        verify(plan, s, t)
    except PlanInvalid:
        return True
    return False


@pytest.fixture(params=range(len(CASES)), ids=[c[0] for c in CASES])
def case(request: pytest.FixtureRequest) -> tuple[ModelShape, Target, Plan]:
    _, s, t, plan = CASES[request.param]
    assert faults_of(plan, s, t) == []
    return s, t, plan


Case = tuple[ModelShape, Target, Plan]


def missed(mutants: list[tuple[str, Plan]], s: ModelShape, t: Target) -> list[str]:
    assert mutants, "nothing was damaged"
    return [name for name, plan in mutants if not refused(plan, s, t)]


def test_every_overlap_of_live_buffers(case: Case) -> None:
    """Each buffer moved onto each other one that is live in the same phase."""
    s, t, plan = case
    mutants = [
        (f"{a.name} onto {b.name}", with_l1(plan, i, offset=b.offset))
        for i, a in enumerate(plan.l1)
        for b in plan.l1
        if a is not b and live_together(a, b) and a.offset != b.offset
    ]
    assert missed(mutants, s, t) == []


def test_every_overlap_by_one_word(case: Case) -> None:
    """Each buffer grown by 16 bytes into a live neighbour."""
    s, t, plan = case
    mutants = []
    for i, a in enumerate(plan.l1):
        end = a.offset + a.bytes
        if any(live_together(a, b) and b is not a and end <= b.offset < end + 16 for b in plan.l1):
            mutants.append((a.name, with_l1(plan, i, bytes=a.bytes + 16)))
    assert missed(mutants, s, t) == []


def test_every_misaligned_buffer(case: Case) -> None:
    s, t, plan = case
    mutants = [(b.name, with_l1(plan, i, offset=b.offset + 4)) for i, b in enumerate(plan.l1)]
    assert missed(mutants, s, t) == []


def test_every_buffer_before_the_arena(case: Case) -> None:
    """A negative offset is memory that is not ours."""
    s, t, plan = case
    mutants = [
        (b.name, with_l1(plan, i, offset=-b.bytes // 16 * 16 - 16)) for i, b in enumerate(plan.l1)
    ]
    assert missed(mutants, s, t) == []


def test_every_buffer_beyond_l1(case: Case) -> None:
    s, t, plan = case
    limit = plan.l1_budget - t.l1_system
    mutants = [
        (b.name, with_l1(plan, i, offset=(limit - b.bytes) // 16 * 16 + 16))
        for i, b in enumerate(plan.l1)
    ]
    assert missed(mutants, s, t) == []


@pytest.mark.parametrize("by", ["half", "16 bytes"])
def test_every_shrunk_buffer(case: Case, by: str) -> None:
    """A buffer that is too small for what it holds (alignment leaves up to 15 spare bytes)."""
    s, t, plan = case
    mutants = [
        (b.name, with_l1(plan, i, bytes=b.bytes // 2 if by == "half" else b.bytes - 16))
        for i, b in enumerate(plan.l1)
        if b.bytes >= 32
    ]
    assert missed(mutants, s, t) == []


def test_every_dropped_buffer(case: Case) -> None:
    s, t, plan = case
    mutants = []
    for i, b in enumerate(plan.l1):
        out = copy.deepcopy(plan)
        del out.l1[i]
        mutants.append((b.name, out))
    assert missed(mutants, s, t) == []


def test_every_shortened_lifetime(case: Case) -> None:
    """A buffer that dies before its last reader."""
    s, t, plan = case
    mutants = [
        (b.name, with_l1(plan, i, last=b.last - 1)) for i, b in enumerate(plan.l1) if b.last > b.first
    ]
    assert missed(mutants, s, t) == []


def test_every_dropped_or_doubled_matrix(case: Case) -> None:
    s, t, plan = case
    mutants = []
    for i, p in enumerate(plan.placements):
        out = copy.deepcopy(plan)
        del out.placements[i]
        mutants.append((f"without {p.name}", out))
        out = copy.deepcopy(plan)
        out.placements.insert(i, p)
        mutants.append((f"twice {p.name}", out))
    assert missed(mutants, s, t) == []


def test_every_overlap_of_matrices(case: Case) -> None:
    s, t, plan = case
    mutants = []
    for i, p in enumerate(plan.placements):
        for q in plan.placements:
            if q is not p and q.level == p.level:
                shifted = with_placement(plan, i, offset=q.offset + q.bytes - 8)
                mutants.append((f"{p.name} into {q.name}", shifted))
    assert missed(mutants, s, t) == []


def test_every_matrix_beyond_its_memory(case: Case) -> None:
    s, t, plan = case
    room = {"wmem": t.wmem, "l2": t.l2, "flash": t.flash}
    mutants = []
    for i, p in enumerate(plan.placements):
        end = (room[p.level] - p.bytes) // 16 * 16 + 16
        mutants.append((p.name, with_placement(plan, i, offset=end)))
        mutants.append((f"{p.name} negative", with_placement(plan, i, offset=-16)))
        mutants.append((f"{p.name} nowhere", with_placement(plan, i, level="rom")))
    assert missed(mutants, s, t) == []


def test_every_wrong_size_of_a_matrix(case: Case) -> None:
    s, t, plan = case
    mutants = []
    for i, p in enumerate(plan.placements):
        for fields in (
            {"block_bytes": p.block_bytes - 4}, {"block_bytes": p.block_bytes + 4},
            {"blocks": p.blocks - 1}, {"blocks": p.blocks + 1},
            {"tile_blocks": 0}, {"tile_blocks": p.blocks + 1}, {"bytes": p.bytes - 4},
        ):  # fmt: skip
            mutants.append((f"{p.name} {fields}", with_placement(plan, i, **fields)))
    assert missed(mutants, s, t) == []


def test_misplaced_matrix_bytes(case: Case) -> None:
    s, t, plan = case
    mutants = [
        (p.name, with_placement(plan, i, offset=p.offset + 2)) for i, p in enumerate(plan.placements)
    ]
    assert missed(mutants, s, t) == []


def test_smaller_tile_buffer(case: Case) -> None:
    """The tile size that the program is told must hold the largest tile."""
    s, t, plan = case
    largest = max(p.tile_blocks * p.block_bytes for p in plan.placements if p.name != "embedding")
    out = copy.deepcopy(plan)
    out.tile_bytes = largest - 1
    assert refused(out, s, t)
    out.tile_bytes = plan.tile_bytes + 16  # more than half of the buffer
    assert refused(out, s, t)


def test_larger_chunk_than_the_buffers_hold(case: Case) -> None:
    s, t, plan = case
    out = copy.deepcopy(plan)
    out.chunk = 2 * plan.chunk
    assert refused(out, s, t)


def test_flash_without_its_stage() -> None:
    _, s, t, plan = next(c for c in CASES if c[3].used["flash"] > 0)
    out = copy.deepcopy(plan)
    out.stage_bytes = 0
    assert refused(out, s, t)
    out = copy.deepcopy(plan)
    out.embed_stage = 0
    if next(p for p in plan.placements if p.name in ("embedding", "head")).level == "flash":
        assert refused(out, s, t)
    for name in ("flash stage", "embedding stage"):
        out = copy.deepcopy(plan)
        out.l2 = [b for b in plan.l2 if b.name != name]
        assert refused(out, s, t), name


def test_l2_that_overflows() -> None:
    """L2 tables beyond L2, with and without weights there."""
    for _, s, t, plan in CASES:
        out = copy.deepcopy(plan)
        out.l2.append(Buffer("more", "l2", t.l2, 0, 13))
        assert refused(out, s, t)


def test_kv_pieces_larger_than_their_buffer() -> None:
    _, s, t, plan = next(c for c in CASES if not c[3].kv_in_l1)
    out = copy.deepcopy(plan)
    out.kv_tile_blocks *= 4
    assert refused(out, s, t)


@settings(max_examples=60, deadline=None)
@given(
    s=shapes(), budget=st.integers(20 * KIB, 256 * KIB), pick=st.integers(0, 1 << 30),
    other=st.integers(0, 1 << 30),
)  # fmt: skip
def test_random_plans_with_two_buffers_exchanged_onto_each_other(
    s: ModelShape, budget: int, pick: int, other: int
) -> None:
    try:
        plan = make_plan(s, SIRACUSA, budget)
    except DoesNotFit:
        assume(False)
    a, b = plan.l1[pick % len(plan.l1)], plan.l1[other % len(plan.l1)]
    assume(a is not b and live_together(a, b))
    assert refused(with_l1(plan, pick % len(plan.l1), offset=b.offset), s, SIRACUSA)


def test_verifier_shares_no_code_with_the_planner() -> None:
    """It may import the plan's data types and phase names, and nothing that computes."""
    source = Path(verify_module.__file__).read_text(encoding="utf-8")
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module and node.module.startswith("shrinkc")
    }
    assert imported <= {
        "shrinkc.core.errors.PlanInvalid",
        "shrinkc.memory.plan.PHASES",
        "shrinkc.memory.plan.Plan",
        "shrinkc.schedule.shapes.ModelShape",
        "shrinkc.targets.Target",
    }


def test_faults_are_all_named(case: tuple[ModelShape, Target, Plan]) -> None:
    s, t, plan = case
    out = with_l1(plan, 0, offset=plan.l1[0].offset + 4)
    out.placements = out.placements[1:]
    with pytest.raises(PlanInvalid) as bad:
        verify(out, s, t)
    assert plan.l1[0].name in str(bad.value)
    assert f"{plan.placements[0].name}: not placed" in str(bad.value)


