"""Every chip that GVSoC knows gives the interpreter's integers, beside Siracusa, which the other files
are about."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import shrinkc
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import load_model
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate.proof import Request
from shrinkc.targets import CHIPS, DEFAULT, TARGETS

from .programs import (
    WARM,
    compile_graph,
    l2_without_weights,
    need,
    random_request,
    shape_of,
)
from .test_profile import prove_and_profile

OTHERS = pytest.mark.parametrize("name", [name for name in CHIPS if name != DEFAULT.name])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chips") / "model"
    write_tiny_llama(path, hidden=64, intermediate=128, layers=2)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("option", ["", "PROFILE=1"])
def test_it_is_built_without_a_warning(model: Path, tmp_path: Path, name: str, option: str) -> None:
    """Whatever part of the runtime a model leaves unused."""
    need("qemu")
    out = tmp_path / "out"
    shrinkc.compile(model, output=out, target=name, context=32, engines="cores")
    done = subprocess.run(
        ["make", "-s", "-C", out, name, *filter(None, [option])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.gvsoc
@OTHERS
def test_the_same_integers_on_all_its_machines(model: Path, tmp_path: Path, name: str) -> None:
    """From a model directory to a verdict, as a user does it."""
    target, out = TARGETS[name], tmp_path / "out"
    compiled = shrinkc.compile(model, output=out, target=name, context=32)
    assert {f.name for f in (out / "blobs").iterdir()} == {
        "tokenizer.bin", *(f"{v.name}.bin" for v in target.stored)
    }  # fmt: skip
    assert set(compiled.prepared.plan.capacity) == {v.name for v in target.levels}
    tokens = []
    for machine in target.runs_on:
        need(machine, target)
        done = shrinkc.run(out, on=machine, prompt_ids=[3, 4, 5], tokens=6, ignore_eos=True)
        assert done.verdict is not None and done.verdict.compared > 0
        tokens.append(done.new_tokens)
    assert tokens == tokens[:1] * len(target.runs_on)


@pytest.mark.gvsoc
@OTHERS
def test_weights_from_flash(model: Path, tmp_path: Path, name: str) -> None:
    """Every width of weights, odd groups, all of it fetched."""
    target, loaded = TARGETS[name], load_model(model)
    need("gvsoc", target)
    graph = lower(loaded, QuantOptions(bits=4, group_size=24, short_last_group=True), 24)
    sizes = shape_of(graph, loaded)
    rooms = {v.name: 0 for v in target.on_chip} | {"l2": l2_without_weights(sizes, target=target)}
    program = compile_graph(graph, loaded, tmp_path / "out", target.with_room(**rooms))
    assert {p.level for p in program.plan.placements} == {"flash"}
    request = random_request(graph, np.random.default_rng(1), 9, 7, WARM)
    program.build("gvsoc").prove("gvsoc", request, timeout_s=120)


@pytest.mark.gvsoc
@OTHERS
def test_the_smallest_and_the_whole_l1(model: Path, tmp_path: Path, name: str) -> None:
    target, loaded = TARGETS[name], load_model(model)
    need("gvsoc", target)
    graph = lower(loaded, QuantOptions(bits=2, embedding_bits=3), 40)
    request = random_request(graph, np.random.default_rng(2), 11, 5)
    for l1 in (target.l1, target.l1 // 2):
        program = compile_graph(graph, loaded, tmp_path / str(l1), target, l1)
        program.build("gvsoc").prove("gvsoc", request, timeout_s=120)


@pytest.mark.gvsoc
@OTHERS
def test_a_profile(model: Path, tmp_path: Path, name: str) -> None:
    target, loaded = TARGETS[name], load_model(model)
    need("gvsoc", target)
    program = compile_graph(lower(loaded, QuantOptions(), 32), loaded, tmp_path / "out", target)
    prefill, decode = prove_and_profile(
        program, Request(tuple(range(3, 14)), 4, WARM, ignore_eos=True)
    )
    assert prefill.total.transfers > 0 and decode.total.icache > 0


@OTHERS
def test_what_does_not_fit_is_refused_with_its_numbers(model: Path, name: str) -> None:
    target = TARGETS[name]
    with pytest.raises(
        shrinkc.errors.UsageError, match=f"more than the L1 memory of {name}, {target.l1} bytes"
    ):
        shrinkc.plan(model, target=name, l1=target.l1 + 1)
    short = shrinkc.plan(model, target=name, l1=12 * 1024)
    assert not short.fits and short.target is target
    assert f"on {name}: L1: need" in short.error.message
