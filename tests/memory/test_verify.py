"""The verifier refuses valid plans after every kind of damage."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit, PlanInvalid
from shrinkc.engines import Choice, Choices
from shrinkc.memory import verify as verify_module
from shrinkc.memory.plan import Buffer, Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA, Target

from .shapes import make_shape, shapes, with_placement

SHAPES: dict[str, ModelShape] = {
    "plain": make_shape(),
    "untied 4 bit, adapters": make_shape(
        tied=False, options=QuantOptions(bits=4, asymmetric=True), ranks={"qkv": 3, "down": 70}
    ),
    "biases": make_shape(family="qwen2"),
    "an engine": make_shape(
        choices=Choices({name: Choice("neureka_1x1") for name in ("layer0.gate_up", "layer3.o")})
    ),
    "norms of heads": make_shape(family="qwen3"),
}
ENGINED = make_shape(
    hidden=64, ffn=300, heads=4, kv_heads=2, head_dim=20, context=64, layers=2,
    choices=Choices(
        {f"layer{i}.{m}": Choice("neureka_1x1") for i in (0, 1) for m in ("qkv", "o", "gate_up", "down")}
        | {"head": Choice("neureka_1x1")}
    ),
)  # fmt: skip
IN_PLACE_PLAN = next(
    (budget, plan)
    for budget in range(30 * KIB, 160 * KIB, KIB)
    if (plan := make_plan(ENGINED, SIRACUSA, budget)).in_place and plan.kv_window_blocks
)
# N-EUREKA multiplies these groups for the cores only because they are padded to whole words
PADDED = make_shape(
    hidden=60, ffn=80, options=QuantOptions(bits=2, group_size=20, short_last_group=True)
)
DEEP = make_shape(layers=17)  # its RMSNorm weights are in a lower memory
LONG = make_shape(context=2000, head_dim=16)  # a layer's cache of 288,000 bytes
LONG_BUDGET, LONG_L2 = 128 * KIB, SIRACUSA.with_room(wmem=60_000, l2=330 * KIB)
BUDGETS = (None, 48 * KIB)
STREAMED = SIRACUSA.with_room(wmem=60_000, l2=220 * KIB)
CRAMPED = SIRACUSA.with_room(
    l2=118 * KIB
)  # with little L1, weight memory takes a part of the cache
PLACES = {"on chip": SIRACUSA, "flash": STREAMED, "cache in two memories": CRAMPED}


def cases() -> list[tuple[str, ModelShape, Target, Plan]]:
    found = []
    for name, s in SHAPES.items():
        for budget in BUDGETS:
            for place, t in PLACES.items():
                label = f"{name}, L1 {budget}, {place}"
                found.append((label, s, t, make_plan(s, t, budget)))
    found.append(("groups that padding makes whole", PADDED, SIRACUSA, make_plan(PADDED, SIRACUSA)))
    found.append(("norm weights in lower memory", DEEP, SIRACUSA, make_plan(DEEP, SIRACUSA)))
    plan = make_plan(LONG, LONG_L2, LONG_BUDGET)
    assert plan.kv_streamed
    found.append(("cache that streams", LONG, LONG_L2, plan))
    found.append((f"in place, L1 {IN_PLACE_PLAN[0]}", ENGINED, SIRACUSA, IN_PLACE_PLAN[1]))
    return found


CASES = cases()


def with_l1(plan: Plan, at: int, **fields: object) -> Plan:
    l1 = list(plan.l1)
    l1[at] = replace(l1[at], **fields)  # type: ignore[arg-type]
    return replace(plan, l1=l1)


def live_together(a: Buffer, b: Buffer) -> bool:
    return not {*a.live}.isdisjoint(b.live)


def refused(plan: Plan, s: ModelShape, t: Target) -> bool:
    try:
        verify(plan, s, t)
    except PlanInvalid:
        return True
    return False


# the fast tier tries every seventh damaged plan
TIERS = pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
Mutants = Iterator[tuple[str, Plan]]


def assert_noticed(damage: Callable[[Target, Plan], Mutants], every: int) -> None:
    """Check that the verifier refuses every ``every``-th damaged plan of all CASES, and that there are some."""
    found: set[str] = set()
    done = 0
    for _, s, t, plan in CASES:
        for name, mutant in damage(t, plan):
            done += 1
            if done % every == 0 and not refused(mutant, s, t):
                found.add(name)
    assert done >= every, "nothing was damaged"
    assert not found, f"not noticed: {', '.join(sorted(found))}"


def test_the_plans_are_sound() -> None:
    for label, s, t, plan in CASES:
        assert faults_of(plan, s, t) == [], label


@TIERS
def test_every_overlap_of_live_buffers(every: int) -> None:
    """Move each buffer onto each other buffer that is live in the same step."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, a in enumerate(plan.l1):
            for b in plan.l1:
                if a is not b and live_together(a, b) and a.offset != b.offset:
                    yield f"{a.name} onto {b.name}", with_l1(plan, i, offset=b.offset)

    assert_noticed(damage, every)


@TIERS
def test_every_overlap_by_16_bytes(every: int) -> None:
    """Enlarge each buffer into a live neighbour."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, a in enumerate(plan.l1):
            end = a.offset + a.bytes
            if any(
                live_together(a, b) and end <= b.offset < end + 16 for b in plan.l1 if b is not a
            ):
                yield a.name, with_l1(plan, i, bytes=a.bytes + 16)

    assert_noticed(damage, every)


@TIERS
def test_every_misaligned_buffer(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.l1):
            yield b.name, with_l1(plan, i, offset=b.offset + 4)

    assert_noticed(damage, every)


@TIERS
def test_every_buffer_before_the_arena(every: int) -> None:
    """Give each buffer a negative offset."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.l1):
            yield b.name, with_l1(plan, i, offset=-b.bytes // 16 * 16 - 16)

    assert_noticed(damage, every)


@TIERS
def test_every_buffer_beyond_l1(every: int) -> None:
    """Move each buffer beyond the L1 budget minus the bytes of the system and the layer table."""

    def damage(t: Target, plan: Plan) -> Mutants:
        table = plan.used["l1"] - t.l1_system - plan.arena_bytes
        limit = plan.l1_budget - t.l1_system - table
        for i, b in enumerate(plan.l1):
            yield b.name, with_l1(plan, i, offset=(limit - b.bytes) // 16 * 16 + 16)

    assert_noticed(damage, every)


@TIERS
@pytest.mark.parametrize("by", ["half", "16 bytes"])
def test_every_shrunk_buffer(by: str, every: int) -> None:
    """Make each buffer too small: alignment leaves at most 15 spare bytes."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.l1):
            if by == "half":
                yield b.name, with_l1(plan, i, bytes=(b.bytes - 15) // 2)
            elif b.name not in ("xv", "sv"):  # sized for the host, whose pointers are larger
                yield b.name, with_l1(plan, i, bytes=b.bytes - 16)

    assert_noticed(damage, every)


@TIERS
def test_every_dropped_buffer(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.l1):
            out = copy.deepcopy(plan)
            del out.l1[i]
            yield b.name, out

    assert_noticed(damage, every)


@TIERS
@pytest.mark.parametrize("live", [(), (-1,), (14,)])
def test_every_lifetime_without_steps(live: tuple[int, ...], every: int) -> None:
    """A buffer that is never live would not be compared with any other."""

    def damage(_: Target, plan: Plan) -> Mutants:
        assert len(plan.steps) == 14
        for i, b in enumerate(plan.l1):
            yield b.name, with_l1(plan, i, live=live)

    assert_noticed(damage, every)


@TIERS
def test_every_lifetime_without_one_of_its_steps(every: int) -> None:
    """The verifier knows in which steps a buffer is written or read, or holds a value for later."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.l1):
            for at in {*itertools.chain.from_iterable(b.spans)}:
                yield f"{b.name} at {at}", with_l1(plan, i, live=tuple({*b.live} - {at}))

    assert_noticed(damage, every)


@TIERS
def test_every_dropped_or_doubled_matrix(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, p in enumerate(plan.placements):
            out = copy.deepcopy(plan)
            del out.placements[i]
            yield f"without {p.name}", out
            out = copy.deepcopy(plan)
            out.placements.insert(i, p)
            yield f"twice {p.name}", out

    assert_noticed(damage, every)


@TIERS
def test_every_overlap_of_matrices(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, p in enumerate(plan.placements):
            for q in plan.placements:
                if q is not p and q.level == p.level:
                    name = f"{p.name} into {q.name}"
                    end = q.offset + q.bytes - q.chip_bytes
                    yield name, with_placement(plan, i, offset=end - 8)

    assert_noticed(damage, every)


@TIERS
def test_every_matrix_beyond_its_memory(every: int) -> None:
    def damage(t: Target, plan: Plan) -> Mutants:
        room = {"wmem": t.room("wmem"), "l2": t.l2, "flash": t.room("flash")}
        for i, p in enumerate(plan.placements):
            end = (room[p.level] - p.bytes + p.chip_bytes) // 16 * 16 + 16
            yield f"{p.name} beyond", with_placement(plan, i, offset=end)
            yield f"{p.name} before", with_placement(plan, i, offset=-16)
            yield f"{p.name} nowhere", with_placement(plan, i, level="rom")

    assert_noticed(damage, every)


@TIERS
def test_every_wrong_size_of_a_matrix(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, p in enumerate(plan.placements):
            for fields in (
                {"block_bytes": p.block_bytes - 4}, {"block_bytes": p.block_bytes + 4},
                {"blocks": p.blocks - 1}, {"blocks": p.blocks + 1},
                {"tile_blocks": 0}, {"tile_blocks": p.blocks + 1}, {"bytes": p.bytes - 4},
            ):  # fmt: skip
                if p.name == "embedding" and "tile_blocks" in fields:
                    continue  # it is read a row at a time, not in tiles
                yield (
                    f"{p.name.rsplit('.')[-1]} {next(iter(fields))}",
                    with_placement(plan, i, **fields),
                )

    assert_noticed(damage, every)


@TIERS
def test_every_misaligned_matrix(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        for i, p in enumerate(plan.placements):
            yield p.name, with_placement(plan, i, offset=p.offset + 2)

    assert_noticed(damage, every)


@TIERS
def test_smaller_or_larger_tile_than_planned(every: int) -> None:
    """The program's tile size must hold the largest tile and be half of the buffer."""

    def damage(_: Target, plan: Plan) -> Mutants:
        tiles = [p.tile_blocks * p.block_bytes for p in plan.placements if p.name != "embedding"]
        for size in (max(tiles) - 1, plan.tile_bytes + 16):
            out = copy.deepcopy(plan)
            out.tile_bytes = size
            yield str(size - plan.tile_bytes), out

    assert_noticed(damage, every)


@TIERS
def test_larger_chunk_than_the_buffers_hold(every: int) -> None:
    def damage(_: Target, plan: Plan) -> Mutants:
        out = copy.deepcopy(plan)
        out.chunk *= 2
        yield "chunk", out

    assert_noticed(damage, every)


def test_flash_without_its_stage() -> None:
    _, s, t, plan = next(c for c in CASES if c[3].used["flash"] > 0)
    out = copy.deepcopy(plan)
    out.stage_bytes = 0
    assert refused(out, s, t)
    for stages in (-1, 0, 1, 9, plan.stages + 1 if plan.stages < 8 else 10):
        out = copy.deepcopy(plan)
        out.stages = stages
        assert refused(out, s, t), stages
    _, s, t, plan = next(c for c in CASES if not c[3].stage_bytes)
    out = copy.deepcopy(plan)
    out.stages = 2
    assert refused(out, s, t)


def test_long_rows_without_blocks_per_tile_or_room_for_sums() -> None:
    s = make_shape(hidden=64, ffn=1000, heads=4, kv_heads=4, head_dim=16)
    plan = make_plan(s, SIRACUSA, 48 << 10)
    assert verify(plan, s, SIRACUSA) > 0
    at = next(i for i, p in enumerate(plan.placements) if p.name.endswith("down"))
    assert refused(with_placement(plan, at, tile_blocks=0), s, SIRACUSA)
    assert any(b.name == "split" for b in plan.l1), "cores split the blocks of `down`"
    out = copy.deepcopy(plan)
    out.l1 = [b for b in out.l1 if b.name != "split"]
    assert refused(out, s, SIRACUSA)


def test_embedding_in_flash_without_its_stage() -> None:
    """The block with the row is copied through a separate buffer."""
    s = make_shape()
    with pytest.raises(DoesNotFit, match="L2: need") as small:
        make_plan(s, SIRACUSA.with_room(wmem=0, l2=115 * KIB))
    l2 = int(small.value.message.split("need ")[1].split()[0])
    t = SIRACUSA.with_room(wmem=0, l2=l2)
    plan = make_plan(s, t)
    assert {p.level for p in plan.placements} == {"flash"} and plan.embed_stage > 0
    out = copy.deepcopy(plan)
    out.embed_stage -= 4
    assert refused(out, s, t)


@TIERS
def test_dropped_l2_buffers(every: int) -> None:
    """Remove each table, stage and cache in L2."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, b in enumerate(plan.lower_buffers):
            out = copy.deepcopy(plan)
            del out.lower_buffers[i]
            yield b.name, out

    assert_noticed(damage, every)


@TIERS
def test_kv_caches_that_are_missing_or_too_small(every: int) -> None:
    """Count one layer more or fewer in each memory, or move all layers to another memory, with and without bytes."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for level in plan.kv_layers:
            for more in (-1, 1):
                out = copy.deepcopy(plan)
                out.kv_layers[level] += more
                yield f"{more} layers in {level}", out
            for other in {"l1", "l2", "wmem", "flash", "hyperram"} - {*plan.kv_layers}:
                out = copy.deepcopy(plan)
                out.kv_layers[other] = out.kv_layers.pop(level)
                yield f"from {level} to {other}", out
                out.lower_buffers = [
                    replace(b, level=other) if (b.name, b.level) == ("kv cache", level) else b
                    for b in plan.lower_buffers
                ]
                if other in ("l1", "flash"):
                    yield f"from {level} to {other} with its bytes", out
            out = copy.deepcopy(plan)
            out.lower_buffers = [
                replace(b, bytes=b.bytes - 16 * (b.level == level)) for b in plan.lower_buffers
            ]
            yield f"less of {level}", out
        if {"l2", "wmem"} <= plan.kv_layers.keys():
            out = copy.deepcopy(plan)
            out.kv_layers["l2"] += 1
            out.kv_layers["wmem"] -= 1
            yield "one moved to L2", out

    assert_noticed(damage, every)
    assert any("wmem" in plan.kv_layers for *_, plan in CASES)
    assert any("hyperram" in plan.kv_layers for *_, plan in CASES)


def test_a_kv_cache_in_read_only_memory() -> None:
    """The weight memory has no SRAM, or too little for the planned cache."""
    _, s, t, plan = next(c for c in CASES if "wmem" in c[3].kv_layers)
    need = next(b.bytes for b in plan.lower_buffers if b.level == "wmem")
    for writable in (0, need - 1, need):
        levels = tuple(replace(v, writable=writable) if v.name == "wmem" else v for v in t.levels)
        assert refused(plan, s, replace(t, levels=levels)) == (writable < need)


@TIERS
def test_damaged_tables(every: int) -> None:
    """Remove, double, shorten each table, move it onto weights, into unknown memories, and to flash without a stage."""

    def damage(_: Target, plan: Plan) -> Mutants:
        for i, table in enumerate(plan.tables):
            others = plan.tables[:i] + plan.tables[i + 1 :]
            weight = next(p for p in plan.placements if p.level == "wmem")
            yield f"no {table.name}", replace(plan, tables=others)
            yield f"two {table.name}", replace(plan, tables=[*plan.tables, table])
            for name, changed in {
                "short": replace(table, bytes=table.bytes - 16),
                "odd": replace(table, offset=table.offset + 2),
                "in L1": replace(table, level="l1"),
                "on a weight": replace(table, level="wmem", offset=weight.offset),
                "in no memory": replace(table, level="rom"),
            }.items():
                yield f"{table.name} {name}", replace(plan, tables=[*others, changed])
            if table.level != "flash":
                there = replace(table, level="flash", offset=plan.used["flash"])
                out = replace(plan, tables=[*others, there], table_stage=0)
                yield f"{table.name} in flash", out

    assert_noticed(damage, every)


def test_l2_that_overflows() -> None:
    """Add a buffer as large as L2."""
    for _, s, t, plan in CASES:
        out = copy.deepcopy(plan)
        out.lower_buffers.append(Buffer("more", "l2", t.l2, (0, 13)))
        assert refused(out, s, t)


def test_kv_pieces_larger_than_their_buffer() -> None:
    _, s, t, plan = next(c for c in CASES if not c[3].kv_in_l1)
    out = copy.deepcopy(plan)
    out.kv_tile_blocks *= 4
    assert refused(out, s, t)


def test_a_cache_that_streams() -> None:
    """Buffers in L1 and L2 that are too small for it, and memories and windows from which none streams."""
    _, s, t, plan = next(c for c in CASES if c[3].kv_streamed)
    turn, tile = plan.kv_streamed, plan.kv_tile_blocks
    assert 0 < turn < plan.chunk and tile > 1

    def less(name: str) -> Plan:
        out = copy.deepcopy(plan)
        out.l1 = [replace(b, bytes=b.bytes - 16 * (b.name == name)) for b in plan.l1]
        lower = plan.lower_buffers
        out.lower_buffers = [replace(b, bytes=b.bytes - 16 * (b.name == name)) for b in lower]
        assert out != plan
        return out

    for mutant in (
        *map(less, ("kv stage", "kv_tile", "head_state", "head_scratch")),
        *(replace(plan, kv_streamed=n) for n in (-1, 0, turn + 1)),
        *(replace(plan, kv_tile_blocks=n) for n in (0, tile + 1)),
        replace(plan, kv_window_blocks=1),
    ):
        assert refused(mutant, s, t)
    assert refused(plan, replace(s, windows=(3, 0, 0, 0, 0)), t)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    s=shapes(), budget=st.integers(20 * KIB, 256 * KIB), pick=st.integers(0, 1 << 30),
    other=st.integers(0, 1 << 30),
)  # fmt: skip
def test_random_plans_with_one_buffer_moved_onto_another(
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
    """It imports only data types of plans, step types, and constants that C code asserts (see tests/abi)."""
    own = sorted(Path(verify_module.__file__).parent.glob("verify*.py"))
    assert len(own) == 3
    imported = {
        f"{node.module}.{alias.name}"
        for file in own
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module and node.module.startswith("shrinkc")
        if not node.module.startswith("shrinkc.memory.verify_")
    }
    assert imported <= {
        "shrinkc.abi.EXP2_STEPS_BYTES",
        "shrinkc.abi.MATRIX_BYTES",
        "shrinkc.abi.TABLE_BYTES",
        "shrinkc.abi.InputWord",
        "shrinkc.core.errors.PlanInvalid",
        "shrinkc.engines.CORES",
        "shrinkc.engines.ENGINES",
        "shrinkc.ir.steps.Access",
        "shrinkc.ir.steps.PassSizes",
        "shrinkc.ir.steps.Step",
        "shrinkc.ir.steps.Use",
        "shrinkc.memory.parts.Placement",
        "shrinkc.memory.plan.Plan",
        "shrinkc.schedule.shapes.ModelShape",
        "shrinkc.storage.MatrixShape",
        "shrinkc.targets.L1",
        "shrinkc.targets.L2",
        "shrinkc.targets.MAPPED",
        "shrinkc.targets.MEMORIES",
        "shrinkc.targets.ON_CHIP",
        "shrinkc.targets.OUTSIDE",
        "shrinkc.targets.Target",
        "shrinkc.targets.fetched",
    }


def test_faults_are_all_named() -> None:
    _, s, t, plan = CASES[0]
    out = with_l1(plan, 0, offset=plan.l1[0].offset + 4)
    out.placements = out.placements[1:]
    with pytest.raises(PlanInvalid) as bad:
        verify(out, s, t)
    assert plan.l1[0].name in str(bad.value)
    assert f"{plan.placements[0].name}: not placed" in str(bad.value)
