"""A matrix that is read in place: where it lies, what L1 is spared, and what the verifier refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from memory.shapes import make_shape
from shrinkc.core.errors import DoesNotFit, PlanInvalid
from shrinkc.engines import CORES, Choice, Choices, Engine
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import verify
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA

from .plain import EAGER, PLAIN, ROWS, WITH_PLAIN

SLOTS = ("qkv", "o", "gate_up", "down")


def shape_with(*names: str, **sizes: Any) -> ModelShape:
    """The usual shape with those matrices on plain."""
    return make_shape(choices=Choices({n: Choice("plain") for n in names}), **sizes)


SOME = [f"layer{i}.{slot}" for i in range(5) for slot in ("gate_up", "down")]
ALL = [f"layer{i}.{slot}" for i in range(5) for slot in SLOTS] + ["head"]


def test_it_lies_where_its_engine_reads_and_is_not_cut() -> None:
    s = shape_with(*SOME)
    plan = make_plan(s, WITH_PLAIN)
    assert verify(plan, s, WITH_PLAIN) > 0
    places = {p.name: p for p in plan.placements}
    assert {n for n, p in places.items() if p.engine == "plain"} == set(SOME)
    for name in SOME:
        p = places[name]
        assert p.level == "wmem" and p.offset % 64 == 0 and p.tile_blocks == p.blocks
        shape = next(m for m in s.matrices if m.name == name)
        assert p.blocks == -(-shape.rows // ROWS)
        assert p.bytes == p.blocks * (p.block_bytes + 2 * ROWS) == shape.bytes
    assert max(places[n].offset for n in SOME) < min(
        p.offset for p in plan.placements if p.engine == CORES
    )


def test_they_come_before_what_may_lie_anywhere() -> None:
    """A weight memory for them alone: the others move on, and none of them does."""
    s = shape_with(*SOME)
    room = sum(m.bytes + 64 for m in s.matrices if m.name in SOME)
    t = WITH_PLAIN.with_room(wmem=room)
    plan = make_plan(s, t)
    assert verify(plan, s, t) > 0
    assert {p.level for p in plan.placements if p.engine == "plain"} == {"wmem"}
    assert "l2" in {p.level for p in plan.placements}
    with pytest.raises(DoesNotFit):
        make_plan(s, WITH_PLAIN.with_room(wmem=room // 2))


def test_tiles_are_as_large_as_what_is_copied() -> None:
    """The largest matrices no longer ask for tiles, and where none is copied there are no buffers."""

    def buffers(plan: Plan) -> dict[str, int]:
        return {b.name: b.bytes for b in plan.l1}

    cores = make_plan(make_shape(), SIRACUSA)
    some_shape, all_shape = shape_with(*SOME, "head"), shape_with(*ALL)
    some, none = make_plan(some_shape, WITH_PLAIN), make_plan(all_shape, WITH_PLAIN)
    assert 0 < some.tile_bytes < cores.tile_bytes
    assert buffers(some)["tiles"] == 2 * some.tile_bytes
    assert none.tile_bytes == 0 and "tiles" not in buffers(none)
    assert "engine" not in buffers(cores)
    assert buffers(none)["engine"] == 4 * none.chunk * 512  # the head has the most rows
    for s, plan in ((some_shape, some), (all_shape, none)):
        assert verify(plan, s, WITH_PLAIN) > 0


def test_no_tiles_in_the_smallest_l1_and_beside_flash() -> None:
    """Nothing copied, an embedding of its own, which lies in flash where wmem is full."""
    s = shape_with(*ALL, tied=False)
    t = WITH_PLAIN.with_room(wmem=sum(m.bytes + 64 for m in s.matrices if m.engine == "plain"))
    for budget in range(64 * KIB, 0, -KIB):
        try:
            plan = make_plan(s, t, budget)
        except DoesNotFit as refused:
            assert refused.lacks[0].level == "l1"
            break
        assert verify(plan, s, t) > 0
        assert plan.tile_bytes == 0
    assert budget < 32 * KIB


def test_plan_json_names_the_engine_where_it_is_not_the_cores() -> None:
    plan = make_plan(shape_with(*SOME), WITH_PLAIN).to_json()
    placements: Any = plan["placements"]
    assert {p["name"]: p.get("engine") for p in placements if "engine" in p} == dict.fromkeys(
        SOME, "plain"
    )
    assert len(placements) > len(SOME)
    old: Any = make_plan(make_shape(), SIRACUSA).to_json()["placements"]
    assert not any("engine" in p for p in old)


def damaged(field: str, change: Callable[[Any], Any]) -> Callable[[Plan], None]:
    """A damage to the placement of layer0.down."""

    def apply(plan: Plan) -> None:
        at = next(i for i, p in enumerate(plan.placements) if p.name == "layer0.down")
        p = plan.placements[at]
        plan.placements[at] = replace(p, **{field: change(getattr(p, field))})

    return apply


def smaller_scratch(plan: Plan) -> None:
    at = next(i for i, b in enumerate(plan.l1) if b.name == "engine")
    plan.l1[at] = replace(plan.l1[at], bytes=plan.l1[at].bytes - 16)


def no_scratch(plan: Plan) -> None:
    plan.l1 = [b for b in plan.l1 if b.name != "engine"]


def no_tiles(plan: Plan) -> None:
    plan.l1 = [b for b in plan.l1 if b.name != "tiles"]


def short_lived_scratch(plan: Plan) -> None:
    at = next(i for i, b in enumerate(plan.l1) if b.name == "engine")
    plan.l1[at] = replace(plan.l1[at], live=plan.l1[at].live[:-1])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (damaged("level", lambda v: "l2"), "layer0.down: in l2, plain reads wmem"),
        (damaged("level", lambda v: "flash"), "layer0.down: in flash, plain reads wmem"),
        (damaged("engine", lambda v: CORES), "planned for cores, quantised for plain"),
        (damaged("offset", lambda v: v + 16), "not a multiple of 64"),
        (damaged("bytes", lambda v: v - 4), "blocks of"),
        (damaged("block_bytes", lambda v: v + 4), "blocks of"),
        (damaged("blocks", lambda v: v + 1), "blocks for 64 rows"),
        (damaged("offset", lambda v: 0), "wmem: layer0."),
        (smaller_scratch, "engine: "),
        (no_scratch, "engine: no buffer"),
        (short_lived_scratch, "engine: used "),
        (no_tiles, "tiles: no buffer"),
    ],
)
def test_the_verifier_refuses(damage: Callable[[Plan], None], fault: str) -> None:
    s = shape_with(*SOME)
    plan = make_plan(s, WITH_PLAIN)
    verify(plan, s, WITH_PLAIN)
    broken = copy.deepcopy(plan)
    damage(broken)
    with pytest.raises(PlanInvalid, match=fault):
        verify(broken, s, WITH_PLAIN)


def with_matrix(s: ModelShape, name: str, **fields: Any) -> ModelShape:
    layers = tuple(
        tuple(replace(m, **fields) if m.name == name else m for m in layer) for layer in s.layers
    )
    return replace(s, layers=layers)


def test_the_verifier_refuses_what_no_engine_can_run(register: Callable[[Engine], None]) -> None:
    s = shape_with(*SOME)
    plan = make_plan(s, WITH_PLAIN)
    with pytest.raises(PlanInvalid, match=r"layer0\.down: siracusa has no engine plain"):
        verify(plan, s, SIRACUSA)
    with pytest.raises(PlanInvalid, match=r"layer0\.down: an adapter on plain"):
        verify(plan, with_matrix(s, "layer0.down", rank=2), WITH_PLAIN)
    with pytest.raises(
        PlanInvalid, match=r"layer0\.qkv: stored as rows of bytes, cores reads blocks"
    ):
        verify(plan, with_matrix(s, "layer0.qkv", store=PLAIN.store), WITH_PLAIN)
    tied = shape_with("head")
    plan = make_plan(tied, WITH_PLAIN)
    assert verify(plan, tied, WITH_PLAIN) > 0
    register(replace(EAGER, reads_rows=False))
    with pytest.raises(PlanInvalid, match="head: plain gives no rows of it"):
        verify(plan, tied, WITH_PLAIN)


def test_an_embedding_of_its_own_stays_with_the_cores() -> None:
    s = shape_with("head", "embedding", tied=False)
    with pytest.raises(PlanInvalid, match="embedding: on plain, but nothing is multiplied with it"):
        verify(make_plan(s, WITH_PLAIN), s, WITH_PLAIN)
