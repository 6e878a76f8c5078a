"""Where bytes lie never changes a number: L1 budgets, KV cache in L2, weights in flash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.memory import planner
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import verify
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate.proof import Record, Request, compare, parse, reference
from shrinkc.targets import KIB, SIRACUSA, Target

from .programs import (
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    l2_without_weights,
    need,
    shape_of,
    smallest_l1,
)

CONTEXT = 96
STEP = KIB


@pytest.fixture(scope="module")
def graph(story_model: FloatModel) -> Graph:
    return lower(story_model, QuantOptions(), CONTEXT)


@pytest.fixture(scope="module")
def shape(graph: Graph, story_model: FloatModel) -> ModelShape:
    return shape_of(graph, story_model)


@pytest.fixture(scope="module")
def request_(story_model: FloatModel) -> Request:
    """Fills most of the context, so that the cache has many blocks."""
    prompt = tuple(story_model.tokenizer.encode("Once upon a time there was a cat"))
    return Request(prompt, 40, WARM, ignore_eos=True)


@pytest.fixture(scope="module")
def want(graph: Graph, request_: Request) -> Record:
    return reference(graph, request_)


def schedule_of(plan: Plan) -> tuple[object, ...]:
    """What the C program does differently from plan to plan."""
    return plan.chunk, plan.kv_in_l1, plan.kv_window_blocks, plan.kv_tile_blocks, plan.logits_in_l1


@pytest.fixture(scope="module")
def budgets(shape: ModelShape) -> list[int]:
    """The largest and smallest budget of every distinct schedule from 256 KiB downwards."""
    by_schedule: dict[tuple[object, ...], list[int]] = {}
    budget = SIRACUSA.l1
    while True:
        try:
            plan = make_plan(shape, SIRACUSA, budget)
        except DoesNotFit:
            break
        assert verify(plan, shape, SIRACUSA) > 0
        by_schedule.setdefault(schedule_of(plan), []).append(budget)
        budget -= STEP
    chosen = {SIRACUSA.l1, smallest_l1(shape)} | {b[-1] for b in by_schedule.values()}
    return sorted(chosen, reverse=True)


@pytest.mark.slow
def test_every_l1_budget_gives_identical_integers(
    tmp_path: Path,
    graph: Graph,
    story_model: FloatModel,
    budgets: list[int],
    request_: Request,
    want: Record,
) -> None:
    need("host")
    first: list[str] | None = None
    schedules = set()
    for i, budget in enumerate(budgets):
        program = compile_graph(graph, story_model, tmp_path / str(i), l1_budget=budget)
        schedules.add(schedule_of(program.plan))
        program.build("host", **({"LAZY": "1"} if i % 2 else {"CORES": "8"}))
        lines = program.run("host", request_)
        verdict = compare(parse(lines), want, graph)
        assert verdict.ok, f"L1 of {budget} bytes: {verdict}"
        # chunks of another length hash layers in another order
        first = sorted(lines) if first is None else first
        assert sorted(lines) == first, f"L1 of {budget} bytes"
    # KV cache in L1 and in L2, several chunk lengths, several sizes of its pieces
    assert {s[1] for s in schedules} == {True, False}
    assert any(0 < int(str(s[2])) * 4 < CONTEXT for s in schedules), "a part of a layer's cache"
    assert len({s[0] for s in schedules}) > 1
    assert len({s[3] for s in schedules}) > 1


@pytest.mark.slow
def test_first_refused_budget_is_one_byte_below_the_last_planned(
    shape: ModelShape, budgets: list[int]
) -> None:
    with pytest.raises(DoesNotFit, match="L1: need"):
        make_plan(shape, SIRACUSA, budgets[-1] - 1)


@pytest.mark.slow
def test_kv_cache_in_l2_in_several_pieces(
    tmp_path: Path,
    graph: Graph,
    story_model: FloatModel,
    budgets: list[int],
    want: Record,
    request_: Request,
) -> None:
    """Address and undefined sanitizers, lazy transfers, 8 threads, the cache in many pieces."""
    need("host")
    program = compile_graph(graph, story_model, tmp_path / "out", l1_budget=budgets[-1])
    assert not program.plan.kv_in_l1
    assert program.plan.kv_tile_blocks * 4 < len(request_.prompt) + request_.new_tokens
    program.build("host", SAN="1", LAZY="1", CORES="8")
    program.prove("host", request_, want)
    program.prove("host", replace(request_, sampling=GREEDY))


@pytest.mark.slow
def test_weights_on_the_chip_all_along_a_pass(
    tmp_path: Path,
    graph: Graph,
    story_model: FloatModel,
    shape: ModelShape,
    want: Record,
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some matrices all along a pass in weight memory, what then still fits behind them and out of order, the rest
    in flash through four buffers; late transfers and early ones."""
    need("host")
    plain = planner._needs_of
    monkeypatch.setattr(
        planner,
        "_needs_of",
        lambda s, use: replace(plain(s, use), interleave_matrices=True, stages=4),
    )
    monkeypatch.setattr(planner, "STAGES", (4,))
    every = sum(m.bytes for m in shape.matrices)

    def out_of_order(target: Target) -> bool:
        """Whether a matrix that fitted last comes before another in a pass: that hangs on the room."""
        placed = planner.make_plan(shape, target).placements
        offsets = [p.offset for p in placed if p.level == "wmem"]
        return offsets != sorted(offsets)

    rooms = [
        SIRACUSA.with_room(wmem=every * n // 24, l2=l2_without_weights(shape)) for n in range(4, 20)
    ]
    program = compile_graph(graph, story_model, tmp_path / "out", next(filter(out_of_order, rooms)))
    plan = program.plan
    assert plan.stages == 4 and {p.level for p in plan.placements} >= {"wmem", "flash"}
    for options in ({"SAN": "1", "LAZY": "1", "CORES": "8"}, {}):
        program.build("host", **options)
        program.prove("host", request_, want)


@pytest.fixture
def in_two_memories(
    tmp_path: Path, graph: Graph, story_model: FloatModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Program]:
    """A program of a head of which each n-th tile is on the chip, with half of a layer, in so little L1 that it has
    many tiles."""

    def compiled(every: int) -> Program:
        shape = shape_of(graph, story_model)
        l1 = smallest_l1(shape) + 4 * KIB
        room = shape.head.bytes // every + sum(m.bytes for m in shape.layers[0]) // 2
        target = SIRACUSA.with_room(wmem=room, l2=l2_without_weights(shape, l1))
        plain = planner._needs_of
        monkeypatch.setattr(
            planner, "_needs_of", lambda s, use: replace(plain(s, use), interleave_head=every)
        )
        monkeypatch.setattr(planner, "STAGES", (2,))
        monkeypatch.setattr(planner, "HEAD_INTERLEAVES", ())
        program = compile_graph(graph, story_model, tmp_path / "out", target, l1)
        head = program.plan.placements[-1]
        assert (head.name, head.interleave, head.level, head.chip_level) == (
            "head",
            every,
            "flash",
            "wmem",
        )
        return program

    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 3])
def test_some_tiles_of_the_head_on_the_chip(
    in_two_memories: Callable[[int], Program], request_: Request, want: Record, every: int
) -> None:
    """In turn with those in flash, of which embedding rows are read too; late transfers and early ones."""
    need("host")
    program = in_two_memories(every)
    head = program.plan.placements[-1]
    assert head.blocks > every * head.tile_blocks
    near = {head.tile_on_chip(token // (8 * head.tile_blocks)) for token in request_.prompt}
    assert near == {False, True}, "rows of both memories"
    for options in ({"SAN": "1", "LAZY": "1", "CORES": "8"}, {}):
        program.build("host", **options)
        program.prove("host", request_, want)


@pytest.mark.gvsoc
def test_some_tiles_of_the_head_on_the_soc(
    in_two_memories: Callable[[int], Program], request_: Request
) -> None:
    need("gvsoc")
    program = in_two_memories(2).build("gvsoc")
    program.prove("gvsoc", replace(request_, new_tokens=6), timeout_s=300)


@pytest.fixture(scope="module")
def by_layer(shape: ModelShape, budgets: list[int]) -> int:
    """A budget at which a layer's cache comes into L1."""
    plans = {b: planned_sizes(shape, SIRACUSA, make_plan(shape, SIRACUSA, b)) for b in budgets}
    return next(b for b, sizes in plans.items() if sizes.kv_layer_in_l1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"SAN": "1", "LAZY": "1", "CORES": "8"},
        {"SAN": "thread", "LAZY": "1", "CORES": "8"},
        {"SAN": "thread", "CORES": "3"},
        {},
    ],
)
def test_a_layers_cache_comes_into_l1(
    tmp_path: Path,
    graph: Graph,
    story_model: FloatModel,
    by_layer: int,
    request_: Request,
    want: Record,
    options: dict[str, str],
) -> None:
    """Prompts that end within blocks, one token and the rest decoded; late and early transfers, no race."""
    need("host")
    program = compile_graph(graph, story_model, tmp_path / "out", l1_budget=by_layer)
    program.build("host", **options)
    program.prove("host", request_, want)
    program.prove("host", Request((1,), 37, GREEDY, ignore_eos=True))


@pytest.mark.gvsoc
def test_a_layers_cache_comes_into_l1_on_the_soc(
    tmp_path: Path,
    graph: Graph,
    story_model: FloatModel,
    by_layer: int,
    request_: Request,
    want: Record,
) -> None:
    need("gvsoc")
    program = compile_graph(graph, story_model, tmp_path / "out", l1_budget=by_layer)
    program.build("gvsoc").prove("gvsoc", request_, want, timeout_s=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wmem", "l2", "levels"),
    [
        pytest.param(0, None, {"flash"}, id="all-in-flash"),
        pytest.param(0.3, 0.3, {"wmem", "l2", "flash"}, id="all-three-levels"),
    ],
)
@pytest.mark.parametrize("budget", [None, "smallest"])
def test_weights_streamed_from_flash(
    tmp_path: Path,
    graph: Graph,
    shape: ModelShape,
    story_model: FloatModel,
    budgets: list[int],
    request_: Request,
    want: Record,
    wmem: float,
    l2: float | None,
    levels: set[str],
    budget: str | None,
) -> None:
    """Weight memory and L2 for a part of the weights only, large and smallest tiles."""
    need("host")
    weights = sum(m.bytes for m in shape.matrices)
    l1 = budgets[-1] if budget else None
    fixed = l2_without_weights(shape, l1)
    target = SIRACUSA.with_room(
        wmem=int(wmem * weights), l2=fixed + (0 if l2 is None else int(l2 * weights))
    )
    program = compile_graph(graph, story_model, tmp_path / "out", target, l1)
    assert {p.level for p in program.plan.placements} == levels
    assert program.plan.placements[-1].level == "flash"
    program.build("host", LAZY="1", SAN="1", CORES="8")
    program.prove("host", request_, want)


def test_logits_in_l2(tmp_path: Path) -> None:
    """A vocabulary so large that L1 cannot hold its logits."""
    need("host")
    write_tiny_llama(tmp_path / "model", hidden=12, vocab=1501, head_dim=4, layers=1)
    model = load_model(tmp_path / "model")
    lowered = lower(model, QuantOptions(), 16)
    shape = shape_of(lowered, model)
    full = make_plan(shape, SIRACUSA)
    assert full.logits_in_l1
    program = compile_graph(
        lowered, model, tmp_path / "out", l1_budget=full.used["l1"] - 2 * full.tile_bytes - 4000
    )
    assert not program.plan.logits_in_l1
    program.build("host", CORES="8")
    request = Request((1, 1500), 12, WARM, ignore_eos=True)
    program.prove("host", request)
    program.prove("host", replace(request, sampling=GREEDY))


def test_flash_with_adapters_and_untied_head(tmp_path: Path) -> None:
    """Everything in flash, adapters, 4-bit asymmetric weights, embedding rows read from flash."""
    need("host")
    write_tiny_llama(
        tmp_path / "model", hidden=40, intermediate=88, heads=4, kv_heads=2, head_dim=6, tied=False
    )
    model = load_model(tmp_path / "model")
    add_adapters(model, {"q_proj": 3, "v_proj": 2, "o_proj": 1, "gate_proj": 5, "down_proj": 9})
    lowered = lower(model, QuantOptions(bits=4, asymmetric=True, embedding_bits=4), 20)
    shape = shape_of(lowered, model)
    target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(shape))
    program = compile_graph(lowered, model, tmp_path / "out", target)
    assert {p.level for p in program.plan.placements} == {"flash"}
    program.build("host", LAZY="1")
    program.prove(
        "host", Request((1, 40, 41, 42, 43, 44, 45, 46, 47, 48), 10, WARM, ignore_eos=True)
    )


@pytest.mark.gvsoc
def test_code_in_l2(tmp_path: Path) -> None:
    """The same integers and plan with the decode path's code in L2, and more cycles: so it runs from there."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model", hidden=40, intermediate=88, heads=4, kv_heads=2)
    model = load_model(tmp_path / "model")
    lowered = lower(model, QuantOptions(), 24)
    request = Request((1, 40, 41, 42), 4, WARM, ignore_eos=True)
    want, cycles, plans = reference(lowered, request), [], []
    for code in SIRACUSA.code:
        out, target = tmp_path / code, SIRACUSA.with_code(code)
        program = compile_graph(lowered, model, out, target).build("gvsoc")
        got = parse(program.run("gvsoc", request, timeout_s=300))
        verdict = compare(got, want, lowered)
        assert verdict.ok and verdict.compared > 0, verdict
        cycles.append(got.decode_times[-1])
        plans.append(replace(program.plan, capacity={}))
    assert plans[0] == plans[1]
    assert SIRACUSA.code == ("wmem", "l2") and cycles[0] < cycles[1]
