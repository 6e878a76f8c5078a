"""The SoC simulator gives the interpreter's integers over 64 steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from shrinkc.importer import FloatModel
from shrinkc.ir.interpreter import Sampling
from shrinkc.quantize import QuantOptions
from shrinkc.simulate.proof import Request, parse

from .programs import GREEDY, Program, compile_model, need

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
