"""Programs with a second engine: every integer is the interpreter's, wherever a matrix is run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from end_to_end.programs import (
    ENV,
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_model,
    missing,
    need,
    random_request,
    shape_of,
    smallest_l1,
)
from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.engines import CORES, THE_CORES, Engine
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.linear import QLinear
from shrinkc.ir.ops import Embed, Linear
from shrinkc.quantize import QuantOptions
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Request, locate, op_values, parse, reference

from .plain import CORES_ALONE, EAGER, PLAIN, WITH_PLAIN, compiled, lowered

CONTEXT = 32
SIZES: dict[str, Any] = {
    "hidden": 64, "intermediate": 130, "vocab": 112, "heads": 4, "kv_heads": 2, "seed": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and what plain runs of it: ``on`` are names without their layer."""

    on: frozenset[str]
    sizes: dict[str, Any] = field(default_factory=dict)
    options: QuantOptions = field(default_factory=QuantOptions)
    ranks: dict[str, int] = field(default_factory=dict)
    biased: bool = False
    engine: Engine = EAGER


# Costs that no calibration of the cores comes near: matrices of 8,192 weights and more for nothing, others for much.
FOR_LARGE = replace(PLAIN, cycles=lambda spec, tokens: 1 if spec.rows * spec.k >= 8192 else 10**6)
SLOTS = frozenset({"qkv", "o", "gate_up", "down"})
CASES = {
    "all with biases, and the embedding's rows": Case(SLOTS | {"head"}, biased=True),
    "chosen by cost": Case(
        frozenset({"qkv", "gate_up", "down"}), {"intermediate": 400, "vocab": 107}, engine=FOR_LARGE
    ),
    "a head of its own, groups of 16": Case(
        SLOTS | {"head"}, {"tied": False, "intermediate": 144},
        QuantOptions(bits=4, group_size=16, embedding_bits=4),
    ),
    "adapters stay with the cores": Case(
        frozenset({"o", "gate_up", "head"}), {}, QuantOptions(bits=4),
        {"k_proj": 3, "down_proj": 2},
    ),
    "padded to 252 and more": Case(
        SLOTS | {"head"}, {"layers": 1, "intermediate": 300}, QuantOptions(bits=4),
        engine=replace(EAGER, cut=lambda k, group, bits: (k, 252)),
    ),
    "3 bit, a short last group": Case(
        SLOTS, {"vocab": 107, "hidden": 72, "heads": 3, "kv_heads": 1},
        QuantOptions(bits=3, group_size=32, short_last_group=True),
    ),
}  # fmt: skip

ON_QEMU = ("all with biases, and the embedding's rows", "a head of its own, groups of 16")


def load(case: Case, folder: Path) -> FloatModel:
    sizes = {**SIZES, **case.sizes}
    if case.biased:
        rng, heads = np.random.default_rng(7), {"q": 4, "k": 2, "v": 2}
        sizes["config"] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        sizes["overrides"] = {
            f"model.layers.{i}.self_attn.{p}_proj.bias": rng.standard_normal(n * 16).astype("f4")
            for i in range(2)
            for p, n in heads.items()
        }
    write_tiny_llama(folder, **sizes)
    model = load_model(folder)
    add_adapters(model, case.ranks)
    return model


def weights(graph: Graph) -> dict[str, QLinear]:
    return {op.weight.name: op.weight for op in graph.ops if isinstance(op, Linear)}


def requests(graph: Graph) -> list[Request]:
    rng = np.random.default_rng(1)
    return [random_request(graph, rng, 13, 11, GREEDY), random_request(graph, rng, 1, 9, WARM)]


def prove(program: Program, on: str, **options: str) -> int:
    """Values compared of all requests, the greedy one also with drafts."""
    program.build(on, **options)
    asked = requests(program.graph)
    if program.plan.verified > 1:
        asked.append(replace(asked[0], prompt_lookup=5))
    return sum(program.prove(on, r).compared for r in asked)


@pytest.mark.parametrize(
    ("name", "sanitizers"), in_tiers(CASES, "all with biases, and the embedding's rows")
)
def test_every_integer_is_the_interpreters(
    name: str, sanitizers: dict[str, str], tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """Host with sanitizers, threads and transfers that come late, and 32-bit programs."""
    need("host")
    case = CASES[name]
    register(case.engine)
    model = load(case, tmp_path / "model")
    graph = lowered(model, case.options, CONTEXT)
    found = weights(graph)
    assert {n.split(".")[-1] for n, w in found.items() if w.engine == "plain"} == case.on
    assert all(w.engine in (CORES, "plain") for w in found.values())
    for w in found.values():
        engine = case.engine if w.engine == "plain" else THE_CORES
        assert (w.group, w.pad) == engine.cut_of(w.k, w.group_size, w.d is not None, w.bits)
        assert (w.group, w.x_bits > 0) == (
            engine.cut(w.k, w.group_size, w.bits)[0] if w.d is not None else w.k,
            w.d is None,
        )
    program = compiled(graph, model, tmp_path / "out")
    assert {p.name for p in program.plan.placements if p.engine == "plain"} == {
        n for n, w in found.items() if w.engine == "plain"
    }
    assert prove(program, "host", **sanitizers, LAZY="1", CORES="3") > 0
    if sanitizers and name in ON_QEMU and missing("qemu") is None:
        assert prove(program, "qemu") > 0


@pytest.mark.gvsoc
def test_on_the_chips_simulator(tmp_path: Path, register: Callable[[Engine], None]) -> None:
    """Eight cores, and weights that are read from weight memory."""
    need("gvsoc")
    register(EAGER)
    model = load(CASES[ON_QEMU[0]], tmp_path / "model")
    program = compiled(lowered(model, QuantOptions(), CONTEXT), model, tmp_path / "out")
    assert prove(program, "gvsoc") > 0


def test_qemu_is_there_for_the_proofs_above() -> None:
    need("qemu")


@pytest.mark.slow
def test_no_race_between_what_it_sums_and_what_the_cores_store(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    need("host")
    register(EAGER)
    model = load(Case(SLOTS), tmp_path / "model")
    graph = lowered(model, QuantOptions(), CONTEXT)
    program = compiled(graph, model, tmp_path / "out")
    assert prove(program, "host", SAN="thread", CORES="8") > 0
    # What a norm makes of a vector is written by the controller, behind what the step ends with.
    request, position, layer = requests(graph)[0], 15, 1
    want = reference(graph, request)
    words = request.words(graph.context, Trace.PROOF | Trace.DUMP, (position, layer))
    got = parse(run_program(program.out, "host", words, env=ENV, timeout_s=60).lines)
    values = op_values(graph, request, want, position, layer)
    assert "attn_in.s" in got.dumps and "mlp_in.s" in got.dumps
    assert locate(got.dumps, values, graph, position, layer) is None


@pytest.mark.slow
def test_beside_tiles_from_everywhere(tmp_path: Path, register: Callable[[Engine], None]) -> None:
    """The weight memory holds what is read in place; what is copied comes from L2 and flash, in the
    smallest L1."""
    need("host")
    register(replace(EAGER, legal=lambda s: None if "o" in s.name[-2:] else "is not wanted here"))
    model = load(Case(SLOTS, {"tied": False}), tmp_path / "model")
    graph = lowered(model, QuantOptions(), CONTEXT)
    shape = shape_of(graph, model)
    sizes = {m.name: m.bytes for m in shape.matrices}
    room = sum(size + 64 for name, size in sizes.items() if name.endswith(".o"))
    t = WITH_PLAIN.with_room(wmem=room)
    l1 = smallest_l1(shape, t)
    fixed = compiled(graph, model, tmp_path / "all", t, l1).plan
    l2 = (
        sum(b.bytes for b in fixed.lower_buffers if b.level == "l2")
        + sizes["layer0.qkv"]
        + 2 * fixed.tile_bytes
        + 4096
    )
    program = compiled(graph, model, tmp_path / "out", t.with_room(l2=l2), l1)
    places = {(p.engine, p.level) for p in program.plan.placements}
    assert places >= {("plain", "wmem"), (CORES, "l2"), (CORES, "flash")}
    assert prove(program, "host", SAN="1", LAZY="1", CORES="3") > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        (EAGER, QuantOptions()),
        (replace(EAGER, cut=THE_CORES.cut), QuantOptions(group_size=16, short_last_group=True)),
    ],
    ids=["one scale per row", "the cores' groups"],
)
def test_where_a_matrix_is_run_changes_no_integer(
    engine: Engine, options: QuantOptions, tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """Of one scale per row, or where an engine asks for the cores' groups, its program is that of the
    cores, line for line."""
    need("host")
    register(engine)
    model = load(Case(SLOTS), tmp_path / "model")
    there = compiled(lowered(model, options, CONTEXT), model, tmp_path / "there")
    here = compile_model(model, tmp_path / "here", options, CONTEXT)
    assert {w.engine for w in weights(there.graph).values()} == {"plain"}
    assert {w.engine for w in weights(here.graph).values()} == {CORES}
    there.build("host")
    here.build("host")
    for request in requests(here.graph):
        lines = here.run("host", request)
        # another chunk hashes layers in another order
        assert sorted(there.run("host", request)) == sorted(lines)
        assert reference(there.graph, request).tokens == reference(here.graph, request).tokens


def test_its_groups_decide_numbers(tmp_path: Path, register: Callable[[Engine], None]) -> None:
    """Of groups; else the test above would show nothing."""
    register(EAGER)
    model = load(Case(SLOTS), tmp_path / "model")
    options = QuantOptions(group_size=16, short_last_group=True)
    there = lowered(model, options, CONTEXT)
    here = lowered(model, options, CONTEXT, CORES_ALONE)
    request = requests(here)[0]
    got, other = (reference(graph, request).logits for graph in (there, here))
    first = min(got)
    assert first == min(other) and not np.array_equal(got[first], other[first])


def test_a_wrong_sum_of_it_is_found(tmp_path: Path, register: Callable[[Engine], None]) -> None:
    need("host")
    register(EAGER)
    model = load(Case(SLOTS), tmp_path / "model")
    program = compiled(lowered(model, QuantOptions(), CONTEXT), model, tmp_path / "out")
    source = tmp_path / "out" / "src" / "plain.c"
    text = source.read_text()
    wrong = text.replace("= wide_sum(m, w, q);", "= wide_sum(m, w, q) + (row == 5) * 1000000;")
    assert wrong != text
    source.write_text(wrong)
    program.build("host")
    with pytest.raises(AssertionError, match="mismatched="):
        program.prove("host", requests(program.graph)[0])


def test_a_program_of_the_cores_alone_has_none_of_it(tmp_path: Path) -> None:
    """Its text says nothing of engines, and no function of theirs is in it."""
    need("host")
    model = load(Case(SLOTS), tmp_path / "model")
    program = compile_model(model, tmp_path / "out", QuantOptions(), CONTEXT)
    for file in ("model.h", "model.c"):
        assert "engine" not in (tmp_path / "out" / "src" / file).read_text().lower()
    program.build("host")
    symbols = subprocess.run(
        ["nm", str(tmp_path / "out" / "build" / "host" / "model")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "sc_forward" in symbols
    assert "sc_engines" not in symbols and "sc_matrix_rows" not in symbols


def test_the_embedding_reads_what_its_engine_stored(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """Tied: one matrix, of plain's; the program has its rows from there."""
    register(EAGER)
    model = load(Case(SLOTS), tmp_path / "model")
    graph = lowered(model, QuantOptions(), CONTEXT)
    table = next(op.table for op in graph.ops if isinstance(op, Embed))
    assert table.engine == "plain" and table is weights(graph)["head"]
    compiled(graph, model, tmp_path / "out")
    text = (tmp_path / "out" / "src" / "model.c").read_text()
    _, _, embedding = text.partition("SC_L1_DATA const sc_matrix sc_embedding")
    assert ".engine = SC_ON_PLAIN" in embedding.partition("};")[0]
