"""The SoC simulator gives the interpreter's integers over 64 steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import FloatModel, load_hf
from shrinkc.ir.interpreter import Sampling
from shrinkc.memory.plan import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import shapes_of_graph
from shrinkc.simulate.proof import Request, parse
from shrinkc.targets import KIB, SIRACUSA

from .programs import (
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_model,
    need,
    random_request,
)

STEPS = 64
RUNS = [
    pytest.param("Once upon a time", GREEDY, id="greedy"),
    pytest.param("The little dog", Sampling(65536, 58982, seed=7), id="seed-7"),
    pytest.param("Lily and Tom", Sampling(81920, 65536, seed=8), id="seed-8"),
]


@pytest.fixture(scope="module")
def program(
    story_model: FloatModel, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    need("gvsoc")
    out = tmp_path_factory.mktemp("gvsoc") / "out"
    return compile_model(story_model, out, QuantOptions(), context=128).build("gvsoc")


@pytest.mark.gvsoc
@pytest.mark.parametrize(("prompt", "sampling"), RUNS)
def test_64_steps(
    program: Program, story_model: FloatModel, prompt: str, sampling: Sampling
) -> None:
    """0 mismatches over every layer of 64 steps."""
    ids = tuple(story_model.tokenizer.encode(prompt))
    request = Request(ids, STEPS, sampling, ignore_eos=True)
    verdict = program.prove("gvsoc", request, timeout_s=300)
    g = program.graph
    steps = len(ids) + STEPS - 1
    assert verdict.compared == steps * g.num_layers * g.hidden + STEPS * g.vocab + STEPS


@pytest.mark.gvsoc
def test_cycles_are_reported_for_every_step(program: Program, story_model: FloatModel) -> None:
    request = Request(tuple(story_model.tokenizer.encode("A")), 3, ignore_eos=True)
    got = parse(program.run("gvsoc", request, timeout_s=300))
    assert got.prefill_time is not None and got.prefill_time > 0
    assert len(got.decode_times) == 2 and min(got.decode_times) > 0


def _l2_without_weights(model: FloatModel, options: QuantOptions, context: int) -> int:
    """Bytes of L2 that a program takes whose weights are all in flash."""
    shape = shapes_of_graph(
        lower(model, options, context), sum(map(len, model.tokenizer.decode_table()))
    )
    with pytest.raises(DoesNotFit) as refused:
        make_plan(shape, replace(SIRACUSA, wmem=0, l2=SIRACUSA.l2_system), None)
    return int(refused.value.message.split("need ")[1].split()[0])


ODD: list[tuple[str, dict[str, Any], QuantOptions, dict[str, int], str]] = [
    # the SIMD kernels of every storage format, with odd heads, side paths and tails
    (
        "w4-asymmetric-sides",
        {"hidden": 40, "intermediate": 88, "heads": 4, "kv_heads": 2, "head_dim": 6, "tied": False},
        QuantOptions(bits=4, asymmetric=True, head_bits=4),
        {"q_proj": 3, "o_proj": 2, "up_proj": 1, "down_proj": 9},
        "flash",
    ),
    (
        "w8-groups-small-l1",
        {"hidden": 37, "intermediate": 91, "heads": 3, "kv_heads": 1, "head_dim": 10, "vocab": 203},
        QuantOptions(group=17, short_last_group=True),
        {},
        "small L1",
    ),
    (
        "w4-groups-wide-heads",
        {"hidden": 64, "intermediate": 96, "heads": 2, "kv_heads": 1, "head_dim": 128, "layers": 1},
        QuantOptions(bits=4, group=32),
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
    model = load_hf(tmp_path / "model")
    add_adapters(model, ranks)
    context, target, l1 = 24, SIRACUSA, None
    if place == "flash":
        l2 = _l2_without_weights(model, options, context)
        target = replace(SIRACUSA, wmem=0, l2=l2)
    elif place == "small L1":
        l1 = 24 * KIB
    program = compile_model(model, tmp_path / "out", options, context, target, l1)
    if place == "flash":
        assert {p.level for p in program.plan.placements} == {"flash"}
    if place == "small L1":
        assert not program.plan.kv_in_l1
    program.build("gvsoc")
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    program.prove("gvsoc", request, timeout_s=120)
