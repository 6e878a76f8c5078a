"""The planner with random shapes and budgets: valid plans, monotone refusals, and correct numbers in refusals."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit
from shrinkc.engines import Choice, Choices
from shrinkc.memory.parts import stored_in, tile_blocks
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import verify
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, MIB, SIRACUSA, TARGETS, Target

from .shapes import make_shape, shapes

EXAMPLES = settings(max_examples=120, deadline=None)


def plan_or_none(s: ModelShape, t: Target, budget: int | None) -> Plan | None:
    try:
        return make_plan(s, t, budget)
    except DoesNotFit:
        return None


def fits(s: ModelShape, t: Target, budget: int) -> bool:
    """Return whether ``check_fits`` accepts (another test shows that ``make_plan`` then succeeds)."""
    try:
        check_fits(s, t, budget)
    except DoesNotFit:
        return False
    return True


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """Draw Siracusa with memories of any size, some of them possibly missing."""
    target = SIRACUSA.with_room(
        wmem=draw(st.sampled_from([0, 1008, 100 * KIB, 8 * MIB - 32])),
        l2=draw(st.sampled_from([200 * KIB, 2 * MIB])),
        flash=draw(st.sampled_from([0, 1 * MIB, 512 * MIB])),
    )
    there = tuple(
        v for v in target.levels if v.name in ("l1", "l2") or v.bytes or draw(st.booleans())
    )
    return replace(target, levels=there, cores=draw(st.sampled_from([1, 3, 8])))


@EXAMPLES
@given(s=shapes(), t=targets(), budget=st.integers(0, 300 * KIB))
def test_what_fits_has_a_plan_and_what_does_not_has_none(
    s: ModelShape, t: Target, budget: int
) -> None:
    said = []
    for ask in (check_fits, make_plan):
        try:
            ask(s, t, budget)
            said.append("")
        except DoesNotFit as refusal:
            said.append(str(refusal))
    assert said[0] == said[1]


@pytest.mark.slow
@EXAMPLES
@given(s=shapes(), t=targets(), budget=st.integers(11 * KIB, 256 * KIB))
def test_every_plan_is_sound(s: ModelShape, t: Target, budget: int) -> None:
    plan = plan_or_none(s, t, budget)
    assume(plan is not None)
    assert plan is not None
    checked = len(plan.l1) + len(plan.lower_buffers) + len(plan.tables) + len(plan.placements)
    assert verify(plan, s, t) == checked
    assert plan.l1_budget == budget == plan.capacity["l1"]
    for memory, used in plan.used.items():
        assert used <= plan.capacity[memory], memory
    assert len(plan.placements) == len(s.matrices)
    # weights fill the memories in order: a later one only if the earlier one had no room
    order = [("wmem", "l2", "flash").index(p.level) for p in plan.placements]
    for p, level in zip(plan.placements, order, strict=True):
        if level > 0 and t.room("wmem") >= p.bytes:
            at = [
                q.bytes
                for part in (plan.tables, plan.lower_buffers)
                for q in part
                if q.level == "wmem"
            ]
            at += [size for _, _, size in stored_in(plan.placements, "wmem")]
            assert sum(at) + p.bytes - p.chip_bytes > t.room("wmem") - 16 * (len(at) + 1)
    assert (plan.stage_bytes > 0) == any(p.level == "flash" for p in plan.placements)
    assert (plan.table_stage > 0) == any(x.level == "flash" for x in plan.tables)


@pytest.mark.slow
@EXAMPLES
@given(s=shapes(), budget=st.integers(11 * KIB, 256 * KIB))
def test_same_input_same_plan(s: ModelShape, budget: int) -> None:
    a, b = plan_or_none(s, SIRACUSA, budget), plan_or_none(s, SIRACUSA, budget)
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.to_json() == b.to_json()


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(s=shapes())
def test_refusal_is_monotone_in_the_l1_budget(s: ModelShape) -> None:
    """If a budget fits, every larger one fits."""
    found = [fits(s, SIRACUSA, b) for b in range(11 * KIB, 257 * KIB, 9 * KIB)]
    assert found == sorted(found)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(s=shapes())
def test_smallest_budget_to_the_byte(s: ModelShape) -> None:
    """It gives a valid plan, and budgets of 1 to 64 bytes less are refused."""
    low, high = 0, 256 * KIB
    assume(fits(s, SIRACUSA, high))
    while high - low > 1:
        middle = (low + high) // 2
        if fits(s, SIRACUSA, middle):
            high = middle
        else:
            low = middle
    plan = make_plan(s, SIRACUSA, high)
    assert verify(plan, s, SIRACUSA) > 0
    for less in (1, 2, 3, 8, 16, 63, 64):
        assert plan_or_none(s, SIRACUSA, high - less) is None


@EXAMPLES
@given(s=shapes(), t=targets(), budget=st.integers(0, 60 * KIB))
def test_refusal_has_numbers_that_add_up(s: ModelShape, t: Target, budget: int) -> None:
    """need - have = excess > 0; the three largest consumers are named in order of size."""
    assume(plan_or_none(s, t, budget) is None)
    with pytest.raises(DoesNotFit) as refused:
        make_plan(s, t, budget)
    text = str(refused.value)
    found = re.match(
        r"(L1|L2|Weights): need (-?\d+) bytes.*?, have (-?\d+)\b.*?, excess (-?\d+)\. Largest: (.*)\.$",
        text,
    )
    assert found, text
    need, have, excess = (int(found[i]) for i in (2, 3, 4))
    assert need > 0 and excess == need - have and excess > 0, text
    sizes = [int(part.rsplit(" ", 1)[1]) for part in found[5].split(", ")]
    assert len(sizes) == 3 or len(s.matrices) < 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= need
    given = {"L1": min(budget, t.l1), "L2": t.l2}
    assert have == given.get(found[1], have)


def test_the_l1_budget_named_in_a_refusal_fits() -> None:
    s = make_shape()
    with pytest.raises(DoesNotFit) as refused:
        make_plan(s, SIRACUSA, 14 * KIB)
    found = re.search(r"need (\d+) bytes at least, have (\d+), excess (\d+)", str(refused.value))
    assert found
    excess = int(found[3])
    assert plan_or_none(s, SIRACUSA, 14 * KIB + excess) is not None
    assert plan_or_none(s, SIRACUSA, 14 * KIB + excess - 64) is None
    # "have" is the budget that the user gave
    assert int(found[2]) == 14 * KIB


def test_the_weight_memory_named_in_a_refusal_fits() -> None:
    s = make_shape(tied=False)
    t = SIRACUSA.with_room(wmem=0, l2=300 * KIB, flash=0)
    with pytest.raises(DoesNotFit) as refused:
        make_plan(s, t)
    found = re.search(r"Weights: need (\d+) bytes, have (\d+) .*excess (\d+)", str(refused.value))
    assert found
    weights = sum(-(-m.bytes // 16) * 16 for m in s.matrices)
    assert int(found[1]) == weights
    assert plan_or_none(s, t.with_room(wmem=weights), None) is not None


def test_missing_bytes_for_weights_are_those_of_the_last_memory() -> None:
    """One large matrix does not fit, but most of its bytes would: with the named excess it fits."""
    s = make_shape(hidden=128, ffn=512, layers=8, vocab=16000, tied=False)
    small = SIRACUSA.with_room(wmem=100 * KIB, flash=3 * MIB)
    with pytest.raises(DoesNotFit) as refused:
        make_plan(s, small)
    (lack,) = refused.value.lacks
    assert lack.need == sum(-(-m.bytes // 16) * 16 for m in s.matrices)
    assert 0 < lack.excess < s.head.bytes
    for more, enough in ((lack.excess, True), (lack.excess - 16, False)):
        assert fits(s, small.with_room(flash=3 * MIB + more), 256 * KIB) is enough


def test_l2_refusal() -> None:
    s = make_shape(context=600, layers=30)
    t = SIRACUSA.with_room(l2=100 * KIB, wmem=0)
    with pytest.raises(DoesNotFit, match="L2: need") as refused:
        make_plan(s, t, 64 * KIB)
    found = re.search(r"need (\d+) bytes, have (\d+), excess (\d+)", str(refused.value))
    assert found and int(found[2]) == 100 * KIB
    assert plan_or_none(s, t.with_room(l2=int(found[1])), 64 * KIB) is not None


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_target_takes_a_small_model(name: str) -> None:
    s = make_shape(context=16, layers=2)
    plan = make_plan(s, TARGETS[name])
    assert verify(plan, s, TARGETS[name]) > 0
    assert plan.kv_in_l1 and plan.logits_in_l1
    assert plan.chunk >= 8


def test_a_budget_beyond_the_target_is_the_targets() -> None:
    s = make_shape()
    assert make_plan(s, SIRACUSA, 1 << 30).to_json() == make_plan(s, SIRACUSA).to_json()


@EXAMPLES
@given(s=shapes(), tile=st.integers(1, 64 * KIB))
def test_tiles_cover_every_block_once(s: ModelShape, tile: int) -> None:
    """Tiles are whole blocks within the buffer, a multiple of 8 if there are several full tiles."""
    for m in s.matrices:
        if tile < m.block_bytes:
            continue  # only the embedding has such tiles in a plan, and it is read by rows
        n = tile_blocks(m, tile)
        assert 1 <= n <= m.blocks and n * m.block_bytes <= tile
        if n >= 8 and n < m.blocks:
            assert n % 8 == 0


def test_lifetimes_name_steps() -> None:
    plan = make_plan(make_shape(), SIRACUSA)
    for b in plan.l1:
        assert b.live and {*b.live} <= {*range(len(plan.steps))}
    shared = [
        (a.name, b.name)
        for a in plan.l1
        for b in plan.l1
        if a.name < b.name and a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
    ]
    assert shared, "buffers of different steps share bytes"


def test_multipliers_are_in_l1_if_all_of_them_fit() -> None:
    """They come after all other buffers and take no bytes from them."""
    matrices = [f"layer{i}.{m}" for i in range(5) for m in ("qkv", "o", "gate_up", "down")]
    s = make_shape(choices=Choices({name: Choice("neureka_1x1") for name in matrices}))
    rows = sum(m.blocks * 8 for m in s.matrices if m.name in matrices)
    plan = make_plan(s, SIRACUSA)
    kept = next(b for b in plan.l1 if b.name == "multipliers")
    others = [b for b in plan.l1 if b is not kept]
    end = max(b.offset + b.bytes for b in others)
    assert rows > 0 and kept.bytes == 2 * rows and kept.offset == end
    least = plan.used["l1"]
    assert make_plan(s, SIRACUSA, least).l1 == plan.l1
    without = make_plan(s, SIRACUSA, least - 1)
    assert [b.name for b in without.l1] == [b.name for b in others]
    assert "multipliers" not in {b.name for b in make_plan(make_shape(), SIRACUSA).l1}
