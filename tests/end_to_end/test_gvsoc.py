"""The SoC simulator gives the interpreter's integers over 64 steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model
from shrinkc.memory.planner import make_plan
from shrinkc.numerics.sampling import Sampling
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate.proof import Request, parse
from shrinkc.targets import KIB, SIRACUSA

from .programs import (
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    compile_model,
    l2_without_weights,
    need,
    random_request,
    shape_of,
    smallest_l1,
)

STEPS = 64
RUNS = [
    pytest.param("Once upon a time", GREEDY, id="greedy"),
    pytest.param("The little dog", Sampling(65536, 58982, seed=7), id="seed-7"),
    pytest.param("Lily and Tom", Sampling(81920, 65536, seed=8), id="seed-8"),
]


@pytest.fixture(scope="module")
def program(story_model: FloatModel, tmp_path_factory: pytest.TempPathFactory) -> Program:
    need("gvsoc")
    out = tmp_path_factory.mktemp("gvsoc") / "out"
    return compile_model(story_model, out, QuantOptions(), context=128).build("gvsoc")


@pytest.mark.gvsoc
@pytest.mark.parametrize(("prompt", "sampling"), RUNS)
def test_64_steps(
    program: Program, story_model: FloatModel, prompt: str, sampling: Sampling
) -> None:
    """0 mismatches over every layer of 64 steps; in the last one a prompt has an output at its end alone."""
    ids = tuple(story_model.tokenizer.encode(prompt))
    request = Request(ids, STEPS, sampling, ignore_eos=True)
    verdict = program.prove("gvsoc", request, timeout_s=300)
    g = program.graph
    steps = len(ids) + STEPS - 1
    outputs = steps * g.num_layers - (len(ids) - 1)
    assert verdict.compared == outputs * g.hidden + STEPS * g.vocab + STEPS


@pytest.mark.gvsoc
def test_cycles_are_reported_for_every_step(program: Program, story_model: FloatModel) -> None:
    request = Request(tuple(story_model.tokenizer.encode("A")), 3, ignore_eos=True)
    got = parse(program.run("gvsoc", request, timeout_s=300))
    assert got.prefill_time is not None and got.prefill_time > 0
    assert len(got.decode_times) == 2 and min(got.decode_times) > 0


ODD: list[tuple[str, dict[str, Any], QuantOptions, dict[str, int], str]] = [
    # the SIMD kernels of every storage format, with odd heads, adapters and remainders
    (
        "w4-asymmetric-sides",
        {"hidden": 40, "intermediate": 88, "heads": 4, "kv_heads": 2, "head_dim": 6, "tied": False},
        QuantOptions(bits=4, asymmetric=True, embedding_bits=4),
        {"q_proj": 3, "o_proj": 2, "up_proj": 1, "down_proj": 9},
        "flash",
    ),
    (
        "w8-groups-small-l1",
        {"hidden": 37, "intermediate": 91, "heads": 3, "kv_heads": 1, "head_dim": 10, "vocab": 203},
        QuantOptions(group_size=17, short_last_group=True),
        {},
        "small L1",
    ),
    (
        "w6-groups-of-16-w5-head",
        {"hidden": 40, "intermediate": 88, "heads": 4, "kv_heads": 2, "head_dim": 6, "tied": False},
        QuantOptions(
            bits=6, group_size=16, asymmetric=True, embedding_bits=5, short_last_group=True
        ),
        {},
        "flash",
    ),
    (
        "w5-per-channel-sides-w6-head",
        {"hidden": 72, "intermediate": 100, "heads": 3, "kv_heads": 1, "head_dim": 10},
        QuantOptions(bits=5, embedding_bits=6),
        {"q_proj": 3, "o_proj": 2, "up_proj": 1, "down_proj": 9},
        "small L1",
    ),
    (
        "w4-groups-wide-heads",
        {"hidden": 64, "intermediate": 96, "heads": 2, "kv_heads": 1, "head_dim": 128, "layers": 1},
        QuantOptions(bits=4, group_size=32),
        {},
        "",
    ),
]


@pytest.mark.gvsoc
@pytest.mark.parametrize(
    ("shape", "options", "ranks", "place"), [pytest.param(*c[1:], id=c[0]) for c in ODD]
)
def test_odd_models(
    tmp_path: Path,
    shape: dict[str, Any],
    options: QuantOptions,
    ranks: dict[str, int],
    place: str,
) -> None:
    """0 mismatches where the SoC's own instructions, DMA and flash do the work."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model", **shape)
    model = load_model(tmp_path / "model")
    add_adapters(model, ranks)
    graph, target, l1 = lower(model, options, 24), SIRACUSA, None
    sizes = shape_of(graph, model)
    if place == "flash":
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(sizes))
    elif place == "small L1":
        l1 = smallest_l1(sizes)
    program = compile_graph(graph, model, tmp_path / "out", target, l1)
    assert ({p.level for p in program.plan.placements} == {"flash"}) == (place == "flash")
    assert program.plan.kv_in_l1 == (place != "small L1")
    program.build("gvsoc")
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    program.prove("gvsoc", request, timeout_s=120)


SHORT_HEADS = [
    (16, 16, 4),
    (10, 5, 4),
    (9, 3, 8),
    (6, 3, 8),
]  # of the second and the last some are shared


@pytest.mark.gvsoc
@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHORT_HEADS)
def test_short_heads_in_a_long_context(
    tmp_path: Path, heads: int, kv_heads: int, head_dim: int, by_layer: bool
) -> None:
    """0 mismatches where scores become sums of values in one loop, with every number of positions behind the last
    whole block, and behind drafts of which not all count; the cache in L1, or a layer's."""
    need("gvsoc")
    write_tiny_llama(
        tmp_path / "model", hidden=heads * head_dim, intermediate=96, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, layers=3,
    )  # fmt: skip
    model = load_model(tmp_path / "model")
    graph = lower(model, QuantOptions(), 128)
    shape, l1 = shape_of(graph, model), SIRACUSA.l1
    while by_layer and make_plan(shape, SIRACUSA, l1).kv_in_l1:
        l1 -= 2 * KIB
    program = compile_graph(graph, model, tmp_path / "out", l1_budget=l1)
    buffers = {b.name for b in program.plan.l1}
    assert {"exp2", "kv_layer" if by_layer else "k_cache"} <= buffers
    program.build("gvsoc")
    request = random_request(program.graph, np.random.default_rng(2), 21, 34, GREEDY)
    program.prove("gvsoc", request, timeout_s=300)
    program.prove("gvsoc", replace(request, prompt_lookup=4), timeout_s=300)


LARGE_HEADS = [
    (3, 1, 32),
    (9, 3, 64),  # the ninth head is shared
    (2, 1, 36),  # no whole eights of channels
    (5, 1, 40),
    (8, 8, 64),  # a block of values is too long for a step's immediate
]


@pytest.mark.gvsoc
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), LARGE_HEADS)
def test_large_heads(tmp_path: Path, heads: int, kv_heads: int, head_dim: int) -> None:
    """0 mismatches where many channels' values are summed at a time, over every number of positions behind the last
    whole block: in prompts of many tokens, and one by one where heads are shared."""
    need("gvsoc")
    write_tiny_llama(
        tmp_path / "model", hidden=48, intermediate=64, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, layers=2,
    )  # fmt: skip
    model = load_model(tmp_path / "model")
    program = compile_graph(lower(model, QuantOptions(), 48), model, tmp_path / "out")
    program.build("gvsoc")
    request = random_request(program.graph, np.random.default_rng(2), 29, 9, GREEDY)
    program.prove("gvsoc", request, timeout_s=300)
