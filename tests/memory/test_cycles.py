"""Estimated cycles of a pass: steps add up, and waits for transfers count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit
from shrinkc.costs import CostTable, cost_table
from shrinkc.memory.cycles import DMA, FLASH, Passes, cost_of
from shrinkc.memory.plan import PLAN_VERSION, Plan
from shrinkc.memory.planner import make_plan
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA, Target

from .shapes import make_shape, shapes

OUTSIDE = SIRACUSA.with_room(wmem=0, l2=200 * KIB)


def table() -> CostTable:
    found = cost_table("siracusa")
    assert found is not None
    return found


def passes(shape: ModelShape, target: Target = SIRACUSA) -> Passes:
    return Passes(shape, make_plan(shape, target), target)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(s=shapes(), tokens=st.integers(1, 8), position=st.integers(0, 500))
def test_any_shape(s: ModelShape, tokens: int, position: int) -> None:
    try:
        p = passes(s)
    except DoesNotFit:
        return
    steps = p.steps(min(tokens, p.plan.chunk), position)
    cost = cost_of([steps], table())
    assert len(cost.steps) == len(steps) and cost.cycles > 0 and not cost.unknown
    names = [step.name for step in s.steps if step.in_layer]
    assert [x.name for x in steps if x.layer == 0] == names
    assert {x.layer for x in steps} == {None, *range(s.num_layers)}
    for step in cost.steps:
        assert step.cycles >= sum(step.waits.values()) >= 0
    taken = sum(t.bytes for x in steps for t in x.tiles)
    assert taken == sum(m.bytes for m in s.matrices if m.name != "embedding")
    # no resource is busy longer than the pass, except for transfers started before the first layer
    assert max(cost.busy.values()) < 1.05
    assert sum(cost.ops.values()) == pytest.approx(cost.cycles)


def test_a_prompt_is_cut_into_chunks() -> None:
    p = passes(make_shape())
    c = p.plan.chunk
    chunks = p.prompt(2 * c + 3)
    assert chunks == [p.steps(c, 0, 0), p.steps(c, c, 0), p.steps(3, 2 * c)]
    # in all chunks but the last, the last layer only fills its KV cache
    assert [chunk[-1].name for chunk in chunks] == ["q8", "q8", "next"]
    assert [sum(step.name == "out" for step in chunk) for chunk in chunks] == [4, 4, 5]


def test_logits_of_several_tokens() -> None:
    """To verify drafts, the last layer's attention and all later steps process every token."""
    p = passes(make_shape())
    one, all_of = (p.steps(4, 20, logits) for logits in (1, 4))
    names = [step.name for step in one]
    beyond = len(names) - names[::-1].index("attn") - 1
    assert one[:beyond] == all_of[:beyond] and one[beyond:-1] != all_of[beyond:-1]
    for few, more in zip(one[-3:-1], all_of[-3:-1], strict=True):
        calls = [
            sum(n for name, n in each.work.features.items() if name.startswith("calls"))
            for each in (few, more)
        ]
        assert calls == [1, 1]
        assert sum(more.work.features.values()) > sum(few.work.features.values())


def test_later_positions_cost_more() -> None:
    p = passes(make_shape(context=500))
    at = [cost_of([p.steps(1, n)], table()).cycles for n in (1, 100, 400)]
    assert at[0] < at[1] < at[2]


def test_weights_from_outside_take_what_the_hyperbus_takes() -> None:
    """One byte per cycle, which takes far longer than the cores' work."""
    shape = make_shape(hidden=256, ffn=700, layers=4)
    near, far = passes(shape), passes(shape, OUTSIDE)
    assert not any(t.fetched for s in near.steps(1, 9) for t in s.tiles)
    inside, outside = (cost_of([p.steps(1, 9)], table()) for p in (near, far))
    assert inside.limit == "cores" and inside.busy[FLASH] == 0
    assert outside.limit == FLASH and outside.busy[FLASH] > 0.9
    fetched = sum(p.bytes for p in far.plan.placements if p.level == "flash")
    assert outside.cycles > fetched / table().flash > 3 * inside.cycles
    assert sum(s.waits[FLASH] for s in outside.steps) > outside.cycles / 2


def test_a_slow_dma_is_waited_for() -> None:
    steps = passes(make_shape(hidden=256)).steps(1, 0)
    fast, slow = (cost_of([steps], replace(table(), dma=rate)) for rate in (1e9, 1.0))
    assert sum(s.waits[DMA] for s in fast.steps) < 1 < sum(s.waits[DMA] for s in slow.steps)
    assert slow.limit == DMA
    assert slow.cycles - fast.cycles == pytest.approx(
        sum(s.waits[DMA] - f.waits[DMA] for s, f in zip(slow.steps, fast.steps, strict=True))
    )


def test_ops_without_calibration_are_reported() -> None:
    steps = passes(make_shape()).steps(1, 0)
    ops = {op: per for op, per in table().ops.items() if op != "attention"}
    ops["linear"] = {n: v for n, v in ops["linear"].items() if n != "words_w8"}
    cost = cost_of([steps], replace(table(), ops=ops))
    assert set(cost.unknown) == {
        "qkv: words_w8", "attn", "mid: words_w8", "out: words_w8", "logits: words_w8",
    }  # fmt: skip
    assert cost.ops["attn"] == 0


def test_cycles_of_a_build_without_counters() -> None:
    p = passes(make_shape())
    cost = cost_of([p.steps(1, 0)], table())
    less = cost.cycles - cost.without_probes(replace(table(), probe=2.0)).cycles
    assert less == pytest.approx(2.0 * len(cost.steps))


@settings(max_examples=8, deadline=None)
@given(s=shapes())
def test_a_plan_is_read_back(s: ModelShape) -> None:
    try:
        plan = make_plan(s, SIRACUSA)
    except DoesNotFit:
        return
    assert Plan.of_json(plan.to_json()) == plan


# version 6 said "frugal", "every", "near" and "beside" for keys that have other names now
@pytest.mark.parametrize("version", [6, PLAN_VERSION + 1])
def test_a_plan_of_another_version(version: int) -> None:
    found = make_plan(make_shape(), SIRACUSA).to_json()
    with pytest.raises(ValueError, match=f"version {version}, not {PLAN_VERSION}"):
        Plan.of_json({**found, "version": version})
