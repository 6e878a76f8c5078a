"""Where the cache lies behind L1 never changes a number: L2, weight memory, a layer here and one there, in
pieces and a layer at a time; nor does where RoPE's rows and the tokens' texts are read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from shrinkc.importer import FloatModel
from shrinkc.ir.graph import Graph
from shrinkc.memory.plan import make_plan, planned_sizes
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate.proof import Record, Request, reference
from shrinkc.targets import KIB, SIRACUSA, Target

from .programs import WARM, Program, compile_graph, need, shape_of, smallest_l1

CONTEXT = 90  # the last block of 4 positions is not whole


@dataclass(frozen=True)
class Model:
    """A lowered model, and what a run of it has to give."""

    model: FloatModel
    graph: Graph
    shape: ModelShape
    request: Request
    want: Record


@pytest.fixture(scope="module")
def small(story_model: FloatModel) -> Model:
    graph = lower(story_model, QuantOptions(), CONTEXT)
    prompt = tuple(story_model.tokenizer.encode("Once upon a time there was a cat"))
    request = Request(prompt, 40, WARM, ignore_eos=True)
    return Model(
        story_model, graph, shape_of(graph, story_model), request, reference(graph, request)
    )


def by_layer(m: Model) -> int:
    """An L1 budget at which a layer's cache comes into L1."""
    for budget in range(SIRACUSA.l1, 0, -KIB):
        sizes = planned_sizes(m.shape, SIRACUSA, make_plan(m.shape, SIRACUSA, budget))
        if sizes.kv_layer_in_l1:
            return budget
    raise AssertionError("no budget")


def cramped(m: Model, l1: int, layers: int, **rooms: int) -> Target:
    """Siracusa with an L2 that has room for the cache of so many layers, and for no table."""
    plan = make_plan(m.shape, SIRACUSA, l1)
    others = sum(b.bytes for b in plan.beside if b.name != "kv cache")
    cache = sum(b.bytes for b in plan.beside if b.name == "kv cache") // m.shape.num_layers
    return SIRACUSA.with_room(l2=others + layers * cache, **rooms)


def compiled(m: Model, out: Path, mode: str, layers: int) -> Program:
    l1 = by_layer(m) if mode == "by layer" else smallest_l1(m.shape)
    program = compile_graph(m.graph, m.model, out, cramped(m, l1, layers), l1)
    sizes = planned_sizes(m.shape, program.target, program.plan)
    assert sizes.kv_layer_in_l1 == (mode == "by layer") and not program.plan.kv_in_l1
    want = {"l2": layers, "wmem": m.shape.num_layers - layers}
    assert program.plan.kv_layers == {level: n for level, n in want.items() if n}
    assert {x.level for x in program.plan.tables} == {"wmem"}
    return program


MODES = pytest.mark.parametrize("mode", ["by layer", "pieces"])
LAYERS = pytest.mark.parametrize("layers", [0, 2])


@MODES
@LAYERS
@pytest.mark.parametrize(
    "options",
    [{"SAN": "1", "LAZY": "1", "CORES": "8"}, {"SAN": "thread", "LAZY": "1", "CORES": "3"}, {}],
)
def test_on_the_host(
    tmp_path: Path, small: Model, mode: str, layers: int, options: dict[str, str]
) -> None:
    need("host")
    program = compiled(small, tmp_path / "out", mode, layers).build("host", **options)
    program.prove("host", small.request, small.want)


@MODES
def test_under_qemu(tmp_path: Path, small: Model, mode: str) -> None:
    need("qemu")
    program = compiled(small, tmp_path / "out", mode, 1).build("qemu")
    program.prove("qemu", small.request, small.want)


@pytest.mark.gvsoc
@MODES
@LAYERS
def test_on_the_soc(tmp_path: Path, small: Model, mode: str, layers: int) -> None:
    need("gvsoc")
    program = compiled(small, tmp_path / "out", mode, layers).build("gvsoc")
    program.prove("gvsoc", small.request, small.want, timeout_s=120)


def with_tables_in_flash(m: Model, out: Path, *names: str) -> Program:
    """Weights fill weight memory and flash; these tables give their room to weights."""
    l1 = by_layer(m)
    target = cramped(m, l1, m.shape.num_layers)
    for wmem in range(20 * KIB, 600 * KIB, 2 * KIB):
        smaller = target.with_room(wmem=wmem, l2=target.l2 + 72 * KIB)
        plan = make_plan(m.shape, smaller, l1)
        if {x.name for x in plan.tables if x.level == "flash"} == set(names):
            return compile_graph(m.graph, m.model, out, smaller, l1)
    raise AssertionError(f"no weight memory moves {names} alone")


TABLES = pytest.mark.parametrize("names", [("rope", "pieces"), ("rope",)])


@TABLES
@pytest.mark.parametrize("options", [{"SAN": "1", "LAZY": "1", "CORES": "8"}, {}])
def test_tables_in_flash(
    tmp_path: Path, small: Model, names: tuple[str, ...], options: dict[str, str]
) -> None:
    need("host")
    program = with_tables_in_flash(small, tmp_path / "out", *names).build("host", **options)
    program.prove("host", small.request, small.want)


@pytest.mark.gvsoc
@TABLES
def test_tables_in_flash_on_the_soc(tmp_path: Path, small: Model, names: tuple[str, ...]) -> None:
    need("gvsoc")
    program = with_tables_in_flash(small, tmp_path / "out", *names).build("gvsoc")
    program.prove("gvsoc", small.request, small.want, timeout_s=120)
