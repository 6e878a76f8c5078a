"""A program takes no more stack and static memory than its plan states."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Line, Trace
from shrinkc.build.layout import PROGRAM
from shrinkc.core.resources import resource
from shrinkc.importer import load_model
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate.proof import Request, parse
from shrinkc.targets import SIRACUSA

from .programs import ENV, GREEDY, WARM, compile_graph, need, shape_of, smallest_l1

STACK = re.compile(r"platform: stack bytes used by core (\d): (0x[0-9a-f]+)")
MEMORIES = {"l1": 0x10000000, "wmem": 0x10400000, "l2": 0x1C000000}


def sections(file: Path) -> dict[str, int]:
    """Memory -> end of the bytes that its sections take, without padding before the first."""
    command = ["riscv64-unknown-elf-size", "-A", str(file)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    taken = dict.fromkeys(MEMORIES, 0)
    for line in done.stdout.splitlines():
        f = line.split()
        if len(f) == 3 and f[1].isdecimal() and int(f[2]):
            level = max((n for n in MEMORIES if MEMORIES[n] <= int(f[2])), key=MEMORIES.__getitem__)
            taken[level] += int(f[1])
    return taken


def test_the_linker_reserves_the_stated_stacks() -> None:
    for name in ("siracusa", "pulp-open"):
        script = (resource("toolchain") / name / "link.ld").read_text()
        assert f"SC_FC_STACK = {SIRACUSA.program.stacks['fabric controller']};" in script
        assert "9 * SC_CL_STACK" in script
    assert SIRACUSA.program.stacks["cluster core"] == SIRACUSA.program.symbols["SC_CL_STACK"]


@pytest.mark.gvsoc
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("small", [False, True])
def test_stack_and_static_memory(tmp_path: Path, bits: int, small: bool) -> None:
    """With the least L1, weights, cache and activations are copied; 4 and 2 bits take other kernels."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=128, layers=2)
    model = load_model(tmp_path / "model")
    graph = lower(model, QuantOptions(bits=bits), 64)
    budget = {"l1_budget": smallest_l1(shape_of(graph, model))} if small else {}
    program = compile_graph(graph, model, tmp_path / "out", **budget)
    request = Request(tuple(range(3, 23)), 3, GREEDY if small else WARM, ignore_eos=True)
    lines = program.build("gvsoc", STACKS="1").run("gvsoc", request, timeout_s=300)
    used = {int(m[1]): int(m[2], 16) for line in lines if (m := STACK.match(line))}
    assert used.keys() == set(range(9))
    assert max(used.values()) < SIRACUSA.program.stacks["cluster core"]
    taken, plan = sections(program.out / PROGRAM["siracusa"]), program.plan
    assert taken["l1"] <= plan.used["l1"]
    assert taken["l2"] <= plan.used["l2"]
    assert taken["wmem"] <= plan.used["wmem"] + SIRACUSA.code_bytes + 64


@pytest.mark.gvsoc
def test_time_between_calls_of_the_layer_hook(tmp_path: Path) -> None:
    """Shorter than a pass, and at least a layer's share of one; the run's tokens and cycles stay."""
    need("gvsoc")
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=128, layers=4)
    model = load_model(tmp_path / "model")
    program = compile_graph(lower(model, QuantOptions(), 64), model, tmp_path / "out")
    request = Request(tuple(range(3, 23)), 3, GREEDY, ignore_eos=True)
    program.build("gvsoc")
    plain = program.run("gvsoc", request, trace=Trace.TIME, timeout_s=300)
    lines = program.run("gvsoc", request, trace=Trace.TIME | Trace.HOOK, timeout_s=300)
    (longest,) = [int(line.split()[1]) for line in lines if line.startswith(Line.HOOK)]
    assert not [line for line in plain if line.startswith(Line.HOOK)]
    got, want = parse(lines), parse(plain)
    assert got.tokens == want.tokens and got.prefill_time and want.prefill_time
    assert got.prefill_time < 1.02 * want.prefill_time
    assert got.prefill_time / 6 < longest < got.prefill_time
