"""A sliding window smaller than the context: every integer on every machine, wherever the ring of keys and values is,
and whatever was processed before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiers import in_tiers
from helpers.tiny_families import logits_of, write_family
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.importer import load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Linear
from shrinkc.ir.steps import PassSizes
from shrinkc.memory.parts import kv_layers_bytes
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.model import layer_windows
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape, shapes_of_config
from shrinkc.simulate import KeptProgram
from shrinkc.simulate.proof import Request, compare, followed, parse, reference
from shrinkc.targets import KIB, SIRACUSA

from .programs import (
    ENV,
    WARM,
    Program,
    compile_graph,
    need,
    prove_on_host_and_qemu,
    random_request,
    shape_of,
    smallest_l1,
)

CONTEXT = 64
SIZES: dict[str, Any] = {
    "hidden": 40, "intermediate": 88, "heads": 4, "kv_heads": 2, "head_dim": 6, "layers": 3, "tied": False,
    "max_position": CONTEXT,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A window, the layers without it, and the plan: that of the largest L1 with which ``planned``."""

    window: int
    all_positions: tuple[int, ...] = ()
    planned: Callable[[Plan, PassSizes], bool] = lambda plan, _: plan.kv_in_l1 and plan.chunk > 1
    hyperram: bool = False
    kv_bits: int = 8


CASES = {
    "in L1": Case(11),
    "one token at a time": Case(7, planned=lambda plan, _: plan.chunk == 1),
    "in L1, some layers": Case(5, (1,)),
    "as long as a pass": Case(1, (2,)),
    "a layer in L1": Case(9, planned=lambda plan, sizes: not plan.kv_in_l1 and sizes.kv_layer_in_l1),
    "a layer in L1, some layers": Case(
        9, (0,), planned=lambda plan, sizes: not plan.kv_in_l1 and sizes.kv_layer_in_l1
    ),
    # a ring is always in L1, the cache of all positions only while it is short
    "rings in L1, others in pieces": Case(
        10, (1,), planned=lambda plan, sizes: 0 < min(sizes.cached) <= 4 * plan.kv_window_blocks < CONTEXT
    ),
    "in pieces": Case(22, (2,), planned=lambda plan, _: not plan.kv_in_l1 and not plan.kv_window_blocks),
    "in pieces from HyperRAM": Case(
        22, (1,), planned=lambda plan, _: not plan.kv_in_l1 and not plan.kv_window_blocks, hyperram=True
    ),
    "a layer in L1 from HyperRAM": Case(
        9, (0,), planned=lambda plan, sizes: not plan.kv_in_l1 and sizes.kv_layer_in_l1, hyperram=True
    ),
    "in L1, 4 bits": Case(5, (1,), kv_bits=4),
    "in pieces from HyperRAM, 4 bits": Case(
        22, (1,), planned=lambda plan, _: not plan.kv_in_l1 and not plan.kv_window_blocks, hyperram=True, kv_bits=4
    ),
}  # fmt: skip


def build_case(folder: Path, name: str) -> Program:
    case = CASES[name]
    write_tiny_llama(folder / "model", **SIZES)
    model = load_model(folder / "model")
    model.config = replace(
        model.config, sliding_window=case.window, global_layers=case.all_positions
    )
    graph, target = lower(model, QuantOptions(kv_bits=case.kv_bits), CONTEXT), SIRACUSA
    shape = shape_of(graph, model)
    assert shape.windows == tuple(
        0 if i in case.all_positions else case.window for i in range(SIZES["layers"])
    )
    budget = next(b for b in budgets_of(shape) if _is_planned(shape, b, case))
    if case.hyperram:  # no room in L2 but for one layer's cache on its way
        plan = make_plan(shape, target, budget)
        others = sum(b.bytes for b in plan.lower_buffers if b.name != "kv cache")
        levels = tuple(replace(v, writable=0) if v.name == "wmem" else v for v in target.levels)
        stage = max(kv_layers_bytes(shape, plan.chunk))
        target = replace(target, levels=levels).with_room(l2=others + stage)
    program = compile_graph(graph, model, folder / "out", target, budget)
    assert _is_planned(shape, budget, case)
    assert ("hyperram" in program.plan.kv_layers) == case.hyperram
    return program


def budgets_of(shape: ModelShape) -> list[int]:
    """Budgets of L1 to try, from the largest on: many near the smallest that plans."""
    low = smallest_l1(shape)
    near = range(low, low + 6 * KIB, KIB // 4)
    return [*range(low + 6 * KIB, low + 20 * KIB, KIB)][::-1] + [*near][::-1]


def _is_planned(shape: ModelShape, budget: int, case: Case) -> bool:
    plan = make_plan(shape, SIRACUSA, budget)
    return case.planned(plan, planned_sizes(shape, SIRACUSA, plan))


def ends_of(program: Program) -> list[Request]:
    """Tokens decoded round the ring, one after a prompt that goes round it."""
    ring = min(planned_sizes(program.shape, program.target, program.plan).cached)
    rng = np.random.default_rng(3)
    lengths = (3, min(ring + 2, 45))
    return [random_request(program.graph, rng, n, CONTEXT - n, WARM) for n in lengths]


@pytest.mark.parametrize(
    ("name", "sanitizers"), in_tiers(CASES, "in L1, some layers", "rings in L1, others in pieces")
)
def test_host_and_qemu(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    need("host")
    program = build_case(tmp_path, name)
    for request in ends_of(program):
        prove_on_host_and_qemu(program, request, sanitizers)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CASES)
def test_gvsoc(tmp_path: Path, name: str) -> None:
    need("gvsoc")
    program = build_case(tmp_path, name).build("gvsoc")
    for request in ends_of(program):
        program.prove("gvsoc", request, timeout_s=300)


@pytest.mark.parametrize(
    ("name", "sanitizers"),
    in_tiers(["in L1", "rings in L1, others in pieces", "in pieces"], "in L1"),
)
def test_wrong_drafts(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    """They overwrite positions of the ring, but none that the next token attends to."""
    need("host")
    program = build_case(tmp_path, name).build("host", **sanitizers)
    ids = np.random.default_rng(3).integers(3, program.graph.vocab, 5)
    request = Request((1, *map(int, (*ids, *ids[:4], *ids))), CONTEXT - 15, ignore_eos=True)
    want = reference(program.graph, request)
    wrong = 0
    for most in (2, 8):
        got = parse(program.run("host", replace(request, prompt_lookup=most)))
        assert compare(got, want, program.graph).ok
        wrong += sum(p.tokens - p.kept for p in got.passes)
    assert (wrong > 0) == (program.plan.verified > 1)


@pytest.mark.parametrize(
    ("name", "on"),
    [
        pytest.param("in L1, some layers", "host"),
        pytest.param("one token at a time", "host", marks=pytest.mark.slow),
        pytest.param("one token at a time", "gvsoc", marks=pytest.mark.gvsoc),
    ],
)
def test_a_conversation_that_goes_back(tmp_path: Path, name: str, on: str) -> None:
    """By one token and within the room of a pass the ring still has the window; by more it is made again."""
    need(on)
    program = build_case(tmp_path, name).build(on)
    interpreter = Interpreter(program.graph)
    rng = np.random.default_rng(5)
    said: list[int] = []
    with closing(KeptProgram(program.out, on, env=ENV, target=program.target)) as kept:
        # tokens that stay of all so far, and new ones of the prompt
        for same, new in ((0, 30), (33, 3), (38, 2), (20, 30), (48, 2), (2, 9), (11, 4), (0, 3)):
            ids = (*said[:same], *map(int, rng.integers(3, program.graph.vocab, new)))
            request = Request(ids, 4, WARM, ignore_eos=True, kept=same, more=True)
            lines = kept.run(request.words(CONTEXT, Trace.PROOF), timeout_s=300).lines
            got = parse(lines)
            want = followed(program.graph, request, got.tokens, 1, interpreter)
            assert want is not None
            assert compare(got, want, program.graph).ok, (same, new)
            assert got.tokens == reference(program.graph, replace(request, kept=0)).tokens
            said = [*ids, *got.tokens]


def test_float_logits_and_the_interpreter(tmp_path: Path) -> None:
    """The integer model of a windowed family is as close to transformers' as without a window."""
    theirs = write_family(tmp_path / "m", "mistral", sliding_window=5)
    model = load_model(tmp_path / "m")
    ids = np.random.default_rng(2).integers(3, 280, CONTEXT).tolist()
    want = logits_of(theirs, ids)
    error = {}
    for window in (5, 6):
        model.config = replace(model.config, sliding_window=window)
        graph = lower(model, QuantOptions(), CONTEXT)
        last = next(op for op in graph.ops if isinstance(op, Linear) and op.layer < 0)
        got = Interpreter(graph).forward(ids, all_logits=True) * 2.0 ** -graph.types[last.out].frac
        error[window] = float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))
    assert error[5] < 0.04 < 0.1 < error[6]


def test_the_sizes_are_known_before_the_weights(tmp_path: Path) -> None:
    write_family(tmp_path / "m", "mistral", sliding_window=5)
    model = load_model(tmp_path / "m")
    known = shapes_of_config(model.config, QuantOptions(), 25, 100, {})
    found = shape_of(lower(model, QuantOptions(), 25), model)
    assert known == replace(found, piece_bytes=100)
    assert known.windows == (5, 5)
    assert layer_windows(model.config, 5) == ()


def test_a_ring_takes_less(tmp_path: Path) -> None:
    """A layer with a window of 20 takes the cache of the window and of the other tokens of a pass."""
    write_tiny_llama(tmp_path / "m", **{**SIZES, "max_position": 1024})
    model = load_model(tmp_path / "m")
    model.config = replace(model.config, sliding_window=20, global_layers=(1,))
    plan = make_plan(shapes_of_config(model.config, QuantOptions(), 1024, 100, {}), SIRACUSA)
    ring = -(-(20 + plan.chunk - 1) // 4)
    assert plan.kv_in_l1
    v_cache = next(b for b in plan.l1 if b.name == "v_cache")
    assert v_cache.bytes == -(-(2 * ring + 256) * 4 * 2 * 6 // 16) * 16
