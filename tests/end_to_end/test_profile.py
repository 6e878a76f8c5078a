"""Profiling counts, and changes neither integers nor where anything lies; without it nothing of it is there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.build.layout import PROGRAM
from shrinkc.importer import FloatModel, load_model
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate.profile import Phase, read_profile
from shrinkc.simulate.proof import Request, compare, parse, reference

from .programs import (
    ENV,
    GREEDY,
    WARM,
    Program,
    compile_graph,
    compile_model,
    need,
    shape_of,
    smallest_l1,
)

TOLERANCE = 0.03  # of the run's own cycles: what is between two ops


def tool(name: str, *arguments: object) -> str:
    command = [f"riscv64-unknown-elf-{name}", *map(str, arguments)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, check=True).stdout


def symbols(program: Program) -> dict[str, tuple[str, ...]]:
    """Name -> address and size."""
    lines = tool("nm", "-S", program.out / PROGRAM["siracusa"]).splitlines()
    return {f[-1]: tuple(f[:-2]) for f in map(str.split, lines)}


def counters(program: Program) -> set[str]:
    """The control and status registers that any instruction names."""
    code = tool("objdump", "-d", program.out / PROGRAM["siracusa"])
    return {
        f[-1].split(",")[-1] for line in code.splitlines() if "csrr" in line for f in [line.split()]
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Program:
    need("gvsoc")
    folder = tmp_path_factory.mktemp("profile")
    # more layers than samples are kept of
    write_tiny_llama(folder / "model", hidden=40, intermediate=56, layers=10, heads=4, kv_heads=2)
    return compile_model(load_model(folder / "model"), folder / "out", context=32)


@pytest.mark.gvsoc
def test_what_is_in_a_program(tiny: Program) -> None:
    """Without PROFILE not a symbol, not a counter that is read; with it all buffers in L1 as before."""
    tiny.build("gvsoc")
    plain, plain_counters = symbols(tiny), counters(tiny)
    tiny.build("gvsoc", PROFILE="1")
    profiled, profiled_counters = symbols(tiny), counters(tiny)
    own = {"sc_profile_start", "sc_profile_op", "sc_profile_report", "sc_waits"}
    assert own <= set(profiled)
    assert not {name for name in plain if "profile" in name} | own & set(plain)
    assert plain_counters == {"mhartid", "mcause", "mepc"}
    assert profiled_counters - plain_counters >= {"mcycle", "mscratch", "0x780", "0x784"}
    assert "sc_arena" in plain
    l1 = {name: at for name, at in plain.items() if at and at[0].startswith("100")}
    assert {name: profiled[name] for name in l1} == l1


def prove_and_profile(program: Program, request: Request) -> tuple[Phase, Phase]:
    """Both phases of a proved run with PROFILE=1, after what holds for every profile."""
    plain = parse(program.build("gvsoc").run("gvsoc", request, timeout_s=300))
    lines = program.build("gvsoc", PROFILE="1").run("gvsoc", request, timeout_s=300)
    got, want = parse(lines), reference(program.graph, request)
    verdict = compare(got, want, program.graph)
    assert verdict.ok and verdict.compared > 0
    assert (got.hashes, got.tokens) == (plain.hashes, plain.tokens)
    assert read_profile([f"@C P {plain.prefill_time}"], 1, []) is None
    profile = read_profile(lines, got.prefill_time, got.decode_times)
    assert profile is not None and profile.decode is not None
    layers = range(program.graph.num_layers)
    for phase in (profile.prefill, profile.decode):
        ops = program.graph.device_ops()
        inner = [op.name for op in program.graph.body(0) if op.name in ops]
        at = ops.index(inner[0])
        order = [(None, op) for op in ops[:at]] + [(i, op) for i in layers for op in inner]
        assert list(phase.counts) == order + [(None, op) for op in ops[at + len(inner) :]]
        assert phase.total.elapsed == pytest.approx(phase.cycles, rel=TOLERANCE)
        for key, c in phase.counts.items():
            # a core that sleeps counts no cycles; reading the counters takes some, and a line of that code
            # that the instruction cache has lost 20 more
            assert 0 < c.active <= c.elapsed + 30, key
            assert c.active <= c.busiest and c.load_stalls + c.icache < c.active, key
            assert 0 < c.instructions < c.active, key
    assert profile.decode.steps == request.new_tokens - 1
    return profile.prefill, profile.decode


@pytest.mark.gvsoc
def test_a_tiny_model(tiny: Program) -> None:
    prove_and_profile(tiny, Request(tuple(range(3, 14)), 5, WARM, ignore_eos=True))


@pytest.mark.gvsoc
def test_a_model_in_chunks_with_a_cache_in_l2(tmp_path: Path) -> None:
    """Transfers are found where they are waited for, and only there."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=128, layers=2)
    model = load_model(tmp_path / "model")
    graph = lower(model, QuantOptions(), 64)
    program = compile_graph(
        graph, model, tmp_path / "out", l1_budget=smallest_l1(shape_of(graph, model))
    )
    assert not program.plan.kv_in_l1
    request = Request(tuple(range(3, 23)), 4, GREEDY, ignore_eos=True)
    for phase in prove_and_profile(program, request):
        waiting = {op for op, counts in phase.ops.items() if counts.transfers > 0}
        assert {"qkv", "attn", "logits"} <= waiting
        assert not waiting & {"attn_in.q", "q8", "o_in.q", "mlp_in.q", "down_in.q"}


@pytest.mark.gvsoc
def test_the_example(story_model: FloatModel, tmp_path: Path) -> None:
    need("gvsoc")
    program = compile_model(story_model, tmp_path / "out", context=128)
    ids = tuple(story_model.tokenizer.encode("Once upon a time"))
    _, decode = prove_and_profile(program, Request(ids, 20))
    ops = decode.ops
    assert max(ops, key=lambda op: ops[op].elapsed) == "h"  # gate and up: the largest matrices
