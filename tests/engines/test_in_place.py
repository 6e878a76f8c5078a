"""Plans that share L1 more closely: vectors made in place, a cache that comes with its own layer's matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from end_to_end.programs import ENV, Program, compile_graph, missing, need, shape_of
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Request, locate, op_values, parse, reference
from shrinkc.targets import KIB, SIRACUSA, Target

from .plain import lowered
from .test_neureka import prove

pytestmark = pytest.mark.slow  # a search of budgets, sanitizers

CONTEXT = 60
# vectors of o and of down in place: the first of 80 inputs, no whole vectors of 32, beside 44 of a norm; of 102
# and 1,000 inputs the last ones are no four, and what is set aside ends within them
CASES: dict[str, dict[str, Any]] = {
    "down": {"hidden": 64, "intermediate": 302, "heads": 4, "kv_heads": 2, "head_dim": 10},
    "o and down": {"hidden": 44, "intermediate": 102, "heads": 4, "kv_heads": 2, "head_dim": 20},
    "o, longer than down": {"hidden": 24, "intermediate": 62, "heads": 6, "kv_heads": 3, "head_dim": 14},
    "nine heads, a wide down": {"hidden": 36, "intermediate": 1000, "heads": 9, "kv_heads": 3, "head_dim": 4},
    # of o and of down as far apart, and not as long
    "rooms alike": {"hidden": 16, "intermediate": 48, "heads": 2, "kv_heads": 1, "head_dim": 12},
    "nothing in place": {"hidden": 28, "intermediate": 20, "heads": 5, "kv_heads": 1, "head_dim": 4},
}  # fmt: skip


def graph_of(case: str, folder: Path, target: Target = SIRACUSA) -> tuple[Graph, FloatModel]:
    write_tiny_llama(folder / "model", **CASES[case], vocab=83, layers=3, seed=4)
    model = load_model(folder / "model")
    return lowered(model, QuantOptions(), CONTEXT, target), model


def in_place_budget(graph: Graph, model: FloatModel, whole: bool = True) -> int:
    """The least L1 of which a plan is in place and has the longest chunks of such plans, whose cache comes a layer at a
    time, always or as long as it is short."""
    shape, found = shape_of(graph, model), []
    for budget in range(16 * KIB, 160 * KIB, KIB):
        try:
            plan = make_plan(shape, SIRACUSA, budget)
        except DoesNotFit:
            continue
        positions = 4 * plan.kv_window_blocks
        if plan.in_place and positions and (positions >= graph.context) == whole:
            found.append((plan.chunk, -budget))
    return -max(found)[1]


def program(case: str, folder: Path, whole: bool = True, target: Target = SIRACUSA) -> Program:
    graph, model = graph_of(case, folder, target)
    budget = in_place_budget(graph, model, whole)
    return compile_graph(graph, model, folder / "out", SIRACUSA, budget)


@pytest.mark.parametrize("case", CASES)
def test_every_integer_is_the_interpreters(case: str, tmp_path: Path) -> None:
    need("host")
    found = program(case, tmp_path)
    assert found.plan.in_place and found.plan.chunk >= 8
    assert prove(found, "host", 1, 2, 3, 18, 37, SAN="1", LAZY="1", CORES="3") > 1000
    if missing("qemu") is None and case in ("o and down", "nothing in place"):
        assert prove(found, "qemu", 19) > 0


def test_a_cache_that_outgrows_its_room(tmp_path: Path) -> None:
    """It comes a layer at a time as long as it is short, and then in pieces, to where it came as a whole."""
    need("host")
    found = program("o and down", tmp_path, whole=False)
    assert 0 < 4 * found.plan.kv_window_blocks < CONTEXT
    assert prove(found, "host", 3, 19, 50, SAN="1", LAZY="1", CORES="3") > 1000


def test_an_engine_without_copies(tmp_path: Path) -> None:
    need("host")
    found = program(
        "o and down", tmp_path, target=replace(SIRACUSA, engines=("cores", "neureka_1x1"))
    )
    assert {m.engine for m in found.shape.matrices} == {"neureka_1x1"}
    assert prove(found, "host", 2, 19, SAN="1", LAZY="1", CORES="1") > 1000


def test_no_two_threads_meet(tmp_path: Path) -> None:
    need("host")
    assert prove(program("o and down", tmp_path), "host", 19, 2, SAN="thread", CORES="8") > 1000


def test_a_dumped_position_of_the_last_layer(tmp_path: Path) -> None:
    """Before which its pass leaves tokens out: others lie where they would without."""
    need("host")
    found = program("o and down", tmp_path).build("host", SAN="1", CORES="3")
    request, at, layer = Request(tuple(range(3, 21)), 2, ignore_eos=True), 5, 2
    want = reference(found.graph, request)
    words = request.words(CONTEXT, Trace.PROOF | Trace.DUMP, (at, layer))
    got = parse(run_program(found.out, "host", words, env=ENV, timeout_s=60).lines)
    values = op_values(found.graph, request, want, at, layer)
    assert {"mid", "down_in.q"} <= {*got.dumps} & {*values}, (*got.dumps, *values)
    assert locate(got.dumps, values, found.graph, at, layer) is None


@pytest.mark.gvsoc
@pytest.mark.parametrize("case", ["o and down", "rooms alike"])
def test_on_the_chips_simulator(case: str, tmp_path: Path) -> None:
    need("gvsoc")
    assert prove(program(case, tmp_path), "gvsoc", 37, 19, 3, 2) > 500
