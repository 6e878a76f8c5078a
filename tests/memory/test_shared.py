"""Equal matrices share one place, and different matrices never do."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA

from .shapes import make_shape

SLOTS = ("qkv", "o", "gate_up", "down")
STREAMED = SIRACUSA.with_room(wmem=60_000, l2=160 * KIB)
LAYER = sum(m.bytes for m in make_shape().layers[1])


def sharing(*pairs: tuple[int, int]) -> ModelShape:
    """Return a shape with 5 layers; each pair is (layer, an earlier equal layer)."""
    shared = tuple((f"layer{i}.{s}", f"layer{j}.{s}") for i, j in pairs for s in SLOTS)
    return replace(make_shape(), shared=shared)


@pytest.mark.parametrize("target", [SIRACUSA, STREAMED], ids=["on chip", "flash"])
def test_stored_once(target: object) -> None:
    s = sharing((2, 1), (4, 1))
    plan, whole = make_plan(s, target), make_plan(make_shape(), target)  # type: ignore[arg-type]
    places = {p.name: p for p in plan.placements}
    for slot in SLOTS:
        for layer in (2, 4):
            assert (
                replace(places[f"layer{layer}.{slot}"], name=f"layer1.{slot}")
                == places[f"layer1.{slot}"]
            )
    assert [p.name for p in plan.placements] == [m.name for m in s.matrices]
    assert (plan.used["flash"] > 0) == (target is STREAMED)
    # two layers' bytes less in all memories together, except for gaps at their ends
    assert 2 * LAYER <= _ends(whole) - _ends(plan) < 2 * LAYER + 10_000
    assert sum(m.bytes for m in s.stored) == sum(m.bytes for m in s.matrices) - 2 * sum(
        m.bytes for m in s.layers[1]
    )
    assert faults_of(plan, s, target) == []  # type: ignore[arg-type]
    # every layer keeps its own KV cache
    assert [b for b in plan.l1 if "cache" in b.name] == [b for b in whole.l1 if "cache" in b.name]


def _ends(plan: Plan) -> int:
    """Return the bytes from the start of each memory to the end of its last matrix."""
    return sum(
        max((p.offset + p.bytes for p in plan.placements if p.level == level), default=0)
        for level in ("wmem", "l2", "flash")
    )


def with_place(plan: Plan, name: str, **fields: object) -> Plan:
    out = copy.deepcopy(plan)
    at = next(i for i, p in enumerate(out.placements) if p.name == name)
    out.placements[at] = replace(out.placements[at], **fields)  # type: ignore[arg-type]
    return out


def test_different_matrices_in_one_place_are_refused() -> None:
    """A plan for a model with equal layers is invalid for a model whose layers differ."""
    plan = make_plan(sharing((2, 1)), SIRACUSA)
    assert any("overlap" in fault for fault in faults_of(plan, make_shape(), SIRACUSA))
    assert any("overlap" in fault for fault in faults_of(plan, sharing((3, 1)), SIRACUSA))


def test_the_place_has_to_be_the_owners() -> None:
    s = sharing((2, 1))
    plan = make_plan(s, SIRACUSA)
    here = next(p for p in plan.placements if p.name == "layer2.down")
    for fields in ({"offset": here.offset + 16}, {"level": "l2"}, {"tile_blocks": 1}):
        faults = faults_of(with_place(plan, "layer2.down", **fields), s, SIRACUSA)
        assert any("not placed where layer1.down is" in fault for fault in faults), fields


def test_only_what_is_stored_can_be_shared() -> None:
    plan = make_plan(sharing((2, 1)), SIRACUSA)
    s = replace(
        make_shape(), shared=(("layer2.down", "layer3.down"), ("layer3.down", "layer1.down"))
    )
    assert any("which has none" in fault for fault in faults_of(plan, s, SIRACUSA))
    s = replace(make_shape(), shared=(("layer2.down", "layer1.qkv"),))
    assert any("another shape" in fault for fault in faults_of(plan, s, SIRACUSA))
