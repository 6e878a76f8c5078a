"""Where the cache lies below L1 never changes a number: L2, weight memory, HyperRAM, a layer here and one there;
in pieces, a layer at a time, or first this and then that; nor does where RoPE's rows and texts are read from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.simulate.proof import Record, Request, reference
from shrinkc.targets import KIB, SIRACUSA, Target

from .programs import WARM, Program, compile_graph, need, random_request, shape_of, smallest_l1

LAYERS = 4
CONTEXT = 90  # the last block of 4 positions is not whole


@dataclass(frozen=True)
class Model:
    """A lowered model, and what a run of it has to give."""

    model: FloatModel
    graph: Graph
    shape: ModelShape
    request: Request
    want: Record
    budgets: dict[str, int] = field(default_factory=dict)  # of L1, by mode


@pytest.fixture(scope="module", params=[8, 4], ids="{} bits".format)
def small(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    """Sizes that divide nothing; a prompt of several chunks, and most of the context filled."""
    folder = tmp_path_factory.mktemp("small") / "model"
    write_tiny_llama(
        folder, hidden=36, intermediate=74, layers=LAYERS, heads=6, kv_heads=3, head_dim=10, seed=5
    )
    model = load_model(folder)
    graph = lower(model, QuantOptions(kv_bits=request.param), CONTEXT)
    asked = random_request(graph, np.random.default_rng(3), 21, 50, WARM)
    return Model(model, graph, shape_of(graph, model), asked, reference(graph, asked))


def budget_for(m: Model, mode: str) -> int:
    """An L1 budget at which a layer's cache comes into L1 always, or in a part of the run; or in pieces."""
    if mode not in m.budgets:
        m.budgets[mode] = smallest_l1(m.shape) if mode == "pieces" else _searched(m, mode)
    return m.budgets[mode]


def _searched(m: Model, mode: str) -> int:
    for budget in range(SIRACUSA.l1, 0, -KIB // 4):
        plan = make_plan(m.shape, SIRACUSA, budget)
        if plan.kv_window_blocks and mode_of(m, plan) == mode:
            return budget
    raise AssertionError("no budget")


def mode_of(m: Model, plan: Plan) -> str:
    if not plan.kv_window_blocks:
        return "pieces"
    return "by layer" if 4 * plan.kv_window_blocks >= m.shape.context else "both"


@dataclass(frozen=True)
class Places:
    """Layers whose cache lies in L2 and in weight memory; that of the others lies in HyperRAM."""

    l2: int
    wmem: int

    def layers(self) -> dict[str, int]:
        found = {"l2": self.l2, "wmem": self.wmem, "hyperram": LAYERS - self.l2 - self.wmem}
        return {level: n for level, n in found.items() if n}


def cramped(m: Model, l1: int, places: Places) -> Target:
    """Siracusa with an L2 and a writable part of weight memory for so many layers' cache, and no table in L2."""
    plan = make_plan(m.shape, SIRACUSA, l1)
    others = sum(b.bytes for b in plan.lower_buffers if b.name != "kv cache")
    cache = sum(b.bytes for b in plan.lower_buffers if b.name == "kv cache") // LAYERS
    swapped = "hyperram" in places.layers()
    levels = tuple(
        replace(v, writable=places.wmem * cache) if v.name == "wmem" else v for v in SIRACUSA.levels
    )
    return replace(SIRACUSA, levels=levels).with_room(l2=others + (places.l2 + swapped) * cache)


def compiled(m: Model, out: Path, mode: str, places: Places) -> Program:
    l1 = budget_for(m, mode)
    program = compile_graph(m.graph, m.model, out, cramped(m, l1, places), l1)
    assert mode_of(m, program.plan) == mode and not program.plan.kv_in_l1
    positions = len(m.request.prompt) + m.request.new_tokens
    assert mode != "both" or 8 < 4 * program.plan.kv_window_blocks < positions
    assert program.plan.kv_layers == places.layers()
    assert {x.level for x in program.plan.tables} == {"wmem"}
    return program


MODES = pytest.mark.parametrize("mode", ["by layer", "both", "pieces"])
PLACES = pytest.mark.parametrize(
    "places",
    [Places(0, 4), Places(3, 1), Places(0, 0), Places(2, 0), Places(0, 2), Places(1, 1)],
    ids=lambda p: "-".join(p.layers()),
)


@pytest.mark.slow
@MODES
@PLACES
def test_on_the_host(tmp_path: Path, small: Model, mode: str, places: Places) -> None:
    """Late transfers and no bad access everywhere, no race where one place follows another."""
    need("host")
    races = len(places.layers()) > 1
    options = {"SAN": "thread" if races else "1", "LAZY": "1", "CORES": "8"}
    program = compiled(small, tmp_path / "out", mode, places).build("host", **options)
    program.prove("host", small.request, small.want)


@pytest.mark.slow
def test_transfers_that_come_at_once(tmp_path: Path, small: Model) -> None:
    """No race where the next layer's cache takes the place of one that cores have just looked at."""
    need("host")
    program = compiled(small, tmp_path / "out", "pieces", Places(0, 0)).build(
        "host", SAN="thread", CORES="8"
    )
    program.prove("host", small.request, small.want)


@pytest.mark.slow
@MODES
def test_under_qemu(tmp_path: Path, small: Model, mode: str) -> None:
    need("qemu")
    program = compiled(small, tmp_path / "out", mode, Places(1, 1)).build("qemu")
    program.prove("qemu", small.request, small.want)


@pytest.mark.gvsoc
@MODES
@PLACES
def test_on_the_soc(tmp_path: Path, small: Model, mode: str, places: Places) -> None:
    need("gvsoc")
    program = compiled(small, tmp_path / "out", mode, places).build("gvsoc")
    program.prove("gvsoc", small.request, small.want, timeout_s=120)


def with_tables_in_flash(m: Model, out: Path, names: tuple[str, ...], staged: bool) -> Program:
    """On a chip that is too small by little: these tables give their room to weights; staged: of weights too
    something comes from flash."""
    l1 = budget_for(m, "by layer")
    target = cramped(m, l1, Places(LAYERS, 0))
    target = replace(target, levels=tuple(v for v in target.levels if v.name != "hyperram"))
    for l2, wmem in itertools.product((24, 32), range(40)):
        smaller = target.with_room(wmem=wmem * KIB, l2=target.l2 + l2 * KIB)
        plan = make_plan(m.shape, smaller, l1)
        moved = {x.name for x in plan.tables if x.level == "flash"}
        if moved == set(names) and (plan.stage_bytes > 0) == staged:
            return compile_graph(m.graph, m.model, out, smaller, l1)
    raise AssertionError(f"no weight memory moves {names} alone")


TABLES = pytest.mark.parametrize(
    ("names", "staged"), [(("rope", "pieces"), True), (("rope",), True), (("rope",), False)]
)


@pytest.mark.slow
@TABLES
def test_tables_in_flash(
    tmp_path: Path, small: Model, names: tuple[str, ...], staged: bool
) -> None:
    need("host")
    program = with_tables_in_flash(small, tmp_path / "out", names, staged)
    program.build("host", SAN="1", LAZY="1", CORES="8")
    program.prove("host", small.request, small.want)


@pytest.mark.gvsoc
@TABLES
def test_tables_in_flash_on_the_soc(
    tmp_path: Path, small: Model, names: tuple[str, ...], staged: bool
) -> None:
    need("gvsoc")
    program = with_tables_in_flash(small, tmp_path / "out", names, staged).build("gvsoc")
    program.prove("gvsoc", small.request, small.want, timeout_s=120)
