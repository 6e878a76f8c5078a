"""A KV cache of which no layer fits L2 streams from HyperRAM, and no number changes: contexts and pieces of all
lengths, prompts that end within a block, wrong drafts, and a conversation that goes back."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.memory.parts import kv_layers_bytes
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate import KeptProgram
from shrinkc.simulate.proof import Request, compare, followed, parse, reference
from shrinkc.targets import KIB, SIRACUSA, Target

from .programs import (
    ENV,
    WARM,
    Program,
    compile_graph,
    need,
    prove_on_host_and_qemu,
    random_request,
    shape_of,
)
from .test_declared_uses import REQUEST, watched

LAYERS = 3
WINDOWED = 12  # seeds of random sizes from which layers have windows


@dataclass(frozen=True)
class Case:
    """``l1``: budget in KiB with which the planner chooses ``chosen``: blocks of a piece, and tokens that attend at the
    same time.  ``chunk``: tokens of a pass; 0: several."""

    context: int
    l1: float
    chosen: tuple[int, int]
    chunk: int = 0
    kv_bits: int = 8
    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 10
    window: int = 0  # of all layers but the second one


CASES = {
    "four tokens": Case(90, 52, (2, 4)),
    "two tokens": Case(61, 41, (2, 2)),
    "one token, pieces of a block": Case(90, 40, (1, 1)),
    "passes of one token": Case(61, 20.75, (2, 4), chunk=1),
    "4 bits": Case(93, 36.5, (3, 4), kv_bits=4),
    "more heads than cores": Case(67, 53, (2, 2), heads=12, kv_heads=2, head_dim=16),
    "4 bits, long heads": Case(72, 63.5, (2, 4), kv_bits=4, heads=4, kv_heads=4, head_dim=32),
    "windows": Case(90, 37.5, (2, 4), window=11),
    "windows, one token at a time": Case(90, 39.75, (1, 1), window=11),
    "windows, passes of one token": Case(61, 22.75, (2, 4), chunk=1, window=6),
    "windows, 4 bits": Case(93, 36.5, (3, 4), kv_bits=4, window=9),
    "windows, a third of the context": Case(
        330, 36.5, (5, 4), heads=4, kv_heads=1, head_dim=8, window=110
    ),
    "long pieces": Case(330, 36.5, (5, 4), heads=4, kv_heads=1, head_dim=8),
}


def cramped(shape: ModelShape, l1: int) -> Target:
    """Siracusa with an L2 that lacks a sixteenth of a layer's cache, and no other memory for one."""
    levels = tuple(replace(v, writable=0) if v.name == "wmem" else v for v in SIRACUSA.levels)
    target = replace(SIRACUSA, levels=levels)
    plan = make_plan(shape, target, l1)
    assert not plan.kv_in_l1
    others = sum(b.bytes for b in plan.lower_buffers if b.level == "l2" and b.name != "kv cache")
    layer = max(kv_layers_bytes(shape, plan.chunk))
    return target.with_room(l2=others + layer - layer // 16)


def build_case(folder: Path, name: str) -> Program:
    case = CASES[name]
    write_tiny_llama(
        folder / "model", hidden=36, intermediate=74, layers=LAYERS, heads=case.heads,
        kv_heads=case.kv_heads, head_dim=case.head_dim, seed=5, max_position=512,
    )  # fmt: skip
    model = load_model(folder / "model")
    if case.window:
        model.config = replace(model.config, sliding_window=case.window, global_layers=(1,))
    graph = lower(model, QuantOptions(kv_bits=case.kv_bits), case.context)
    budget = int(case.l1 * KIB)
    target = cramped(shape_of(graph, model), budget)
    program = compile_graph(graph, model, folder / "out", target, budget)
    plan = program.plan
    assert plan.kv_layers == {"hyperram": LAYERS}
    assert (plan.kv_tile_blocks, plan.kv_streamed) == case.chosen
    assert plan.chunk == case.chunk or (plan.chunk > 1 and not case.chunk)
    return program


def request_of(program: Program) -> Request:
    """To the end of the context."""
    context = program.graph.context
    prompt = min(context // 2 + 1, 45)
    return random_request(
        program.graph, np.random.default_rng(3), prompt, min(context - prompt, 60), WARM
    )


@pytest.mark.parametrize(("name", "sanitizers"), in_tiers(CASES, "four tokens", "4 bits"))
def test_host_and_qemu(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    need("host")
    program = build_case(tmp_path, name)
    prove_on_host_and_qemu(program, request_of(program), sanitizers)


def streaming(shape: ModelShape, rng: np.random.Generator) -> tuple[Target, int]:
    """Return a target whose L2 lacks room for a layer's cache, and a budget of L1 with which the cache streams."""
    found = []
    for budget in range(96 * KIB, 12 * KIB, -3 * KIB):
        with suppress(DoesNotFit, AssertionError):
            target = cramped(shape, budget)
            if make_plan(shape, target, budget).kv_streamed:
                found.append((target, budget))
    return found[int(rng.integers(len(found)))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(18))
def test_random_sizes(tmp_path: Path, seed: int) -> None:
    """Contexts, heads and prompts of any size, and what the planner chooses for some budget of L1."""
    need("host")
    rng = np.random.default_rng(seed)
    kv_heads = int(rng.integers(1, 5))
    sizes = {"kv_heads": kv_heads, "heads": kv_heads * int(rng.integers(1, 5))}
    sizes["head_dim"] = 2 * int(rng.integers(2, 13))
    write_tiny_llama(
        tmp_path / "model",
        hidden=36,
        intermediate=74,
        layers=2,
        seed=seed,
        max_position=512,
        **sizes,
    )
    model = load_model(tmp_path / "model")
    context = int(rng.integers(40, 250))
    if seed >= WINDOWED:
        window = int(rng.integers(4, context))
        model.config = replace(model.config, sliding_window=window, global_layers=(1,))
    graph = lower(model, QuantOptions(kv_bits=8 if seed % 2 else 4), context)
    target, budget = streaming(shape_of(graph, model), rng)
    program = compile_graph(graph, model, tmp_path / "out", target, budget)
    program.build("host", CORES=str(rng.integers(1, 9)), LAZY="1")
    prompt = int(rng.integers(1, context))
    program.prove("host", random_request(graph, rng, prompt, min(context - prompt, 50), WARM))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four tokens", "one token, pieces of a block", "windows"])
def test_races(tmp_path: Path, name: str) -> None:
    """Eight threads, and transfers that come late or at once."""
    need("host")
    program = build_case(tmp_path, name)
    want = reference(program.graph, request_of(program))
    for lazy in ({}, {"LAZY": "1"}):
        program.build("host", SAN="thread", CORES="8", **lazy)
        program.prove("host", request_of(program), want)


@pytest.mark.slow
def test_no_step_touches_other_buffers(tmp_path: Path) -> None:
    """The address sanitizer lets each step access only the L1 buffers that its op declares."""
    need("host")
    program = watched(build_case(tmp_path, "four tokens"))
    code, lines, errors = program.run()
    assert code == 0, errors[:20]
    graph = program.program.graph
    verdict = compare(parse(lines), reference(graph, REQUEST), graph)
    assert verdict.ok and verdict.compared > 1000


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CASES)
def test_gvsoc(tmp_path: Path, name: str) -> None:
    need("gvsoc")
    program = build_case(tmp_path, name).build("gvsoc")
    program.prove("gvsoc", request_of(program), timeout_s=300)


@pytest.mark.parametrize(
    ("name", "sanitizers"),
    in_tiers(["four tokens", "two tokens", "windows"], "four tokens", "windows"),
)
def test_wrong_drafts(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    """The next pass writes to the blocks of rejected tokens once more."""
    need("host")
    program = build_case(tmp_path, name).build("host", **sanitizers)
    ids = np.random.default_rng(4).integers(3, program.graph.vocab, 5)
    request = Request((1, *map(int, (*ids, *ids[:4], *ids))), 40, ignore_eos=True)
    want = reference(program.graph, request)
    wrong = 0
    for most in (2, 8):
        got = parse(program.run("host", replace(request, prompt_lookup=most)))
        assert compare(got, want, program.graph).ok
        wrong += sum(p.tokens - p.kept for p in got.passes)
    assert wrong > 0


@pytest.mark.parametrize("on", ["host", pytest.param("gvsoc", marks=pytest.mark.gvsoc)])
def test_a_conversation_that_goes_back(tmp_path: Path, on: str) -> None:
    """Blocks of earlier texts are half overwritten."""
    need(on)
    program = build_case(tmp_path, "one token, pieces of a block").build(on)
    interpreter = Interpreter(program.graph)
    rng = np.random.default_rng(5)
    said: list[int] = []
    with closing(KeptProgram(program.out, on, env=ENV, target=program.target)) as kept:
        # tokens that stay of all so far, and new ones of the prompt
        for same, new in ((0, 30), (33, 3), (38, 2), (21, 30), (48, 2), (2, 9), (11, 4), (0, 3)):
            ids = (*said[:same], *map(int, rng.integers(3, program.graph.vocab, new)))
            request = Request(ids, 4, WARM, ignore_eos=True, kept=same, more=True)
            lines = kept.run(request.words(program.graph.context, Trace.PROOF), timeout_s=300).lines
            got = parse(lines)
            want = followed(program.graph, request, got.tokens, 1, interpreter)
            assert want is not None
            assert compare(got, want, program.graph).ok, (same, new)
            assert got.tokens == reference(program.graph, replace(request, kept=0)).tokens
            said = [*ids, *got.tokens]
