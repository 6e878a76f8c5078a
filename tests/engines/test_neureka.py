"""N-EUREKA's engines: every integer of their programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from end_to_end.programs import (
    GREEDY,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    missing,
    need,
    random_request,
)
from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.engines import CORES, ENGINES, Engine
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.ops import Embed, Linear
from shrinkc.quantize import QuantOptions
from shrinkc.simulate.proof import Request, compare, parse, reference
from shrinkc.targets import SIRACUSA, Target

from .plain import lowered

CONTEXT = 40


@dataclass(frozen=True)
class Case:
    """A model of which one engine runs all that it can: ``on`` are names without their layer."""

    engine: str
    options: QuantOptions = field(default_factory=QuantOptions)
    sizes: dict[str, Any] = field(default_factory=dict)
    on: frozenset[str] = frozenset({"qkv", "o", "gate_up", "down", "head"})
    ranks: dict[str, int] = field(default_factory=dict)
    biased: bool = False


# heads of 10, 88 rows and 44 inputs, 204 and 107 rows: nothing divides by 8, 32, 36 or 64, and half a block
# of gates and ups is not full
SIZES: dict[str, Any] = {
    "hidden": 44, "intermediate": 102, "vocab": 83, "heads": 4, "kv_heads": 2, "head_dim": 10,
    "layers": 1, "seed": 4,
}  # fmt: skip
GROUPED = QuantOptions(bits=4, group_size=4, short_last_group=True)
CASES = {
    "1x1": Case("neureka_1x1"),
    "1x1, 4 bit, a head of its own": Case(
        "neureka_1x1", QuantOptions(bits=4), {"tied": False, "layers": 2}
    ),
    "1x1, biases, several jobs": Case(
        "neureka_1x1", sizes={"intermediate": 301, "vocab": 333}, biased=True
    ),
    "1x1, the head alone beside groups": Case("neureka_1x1", GROUPED, on=frozenset({"head"})),
    "1x1, beside adapters": Case(
        "neureka_1x1", on=frozenset({"o", "gate_up", "head"}), ranks={"k_proj": 3, "down_proj": 2}
    ),
    # the controller has the ninth of one token's heads, and its part of several tokens'
    "1x1, nine heads": Case("neureka_1x1", sizes={"heads": 9, "kv_heads": 3, "layers": 2}),
    # from position 14 on the workers share one token's heads, also the last one's of a prompt; the controller does not
    "1x1, heads that are shared": Case("neureka_1x1", sizes={"head_dim": 64}),
    "3x3, 8 bit": Case("neureka_3x3"),
    "3x3, 4 bit, biases": Case("neureka_3x3", QuantOptions(bits=4, embedding_bits=4), biased=True),
    "3x3, 3 bit, several tiles": Case(
        "neureka_3x3", QuantOptions(bits=3, embedding_bits=2), {"intermediate": 299}
    ),
    "3x3, two layers, a head of its own": Case("neureka_3x3", sizes={"layers": 2, "tied": False}),
    "3x3, 4 bit, remainders": Case(
        "neureka_3x3",
        QuantOptions(bits=4, embedding_bits=4),
        {"hidden": 256, "intermediate": 264},
        biased=True,
    ),
    "3x3, 8 bit, remainders, a head of its own": Case(
        "neureka_3x3", sizes={"intermediate": 513, "tied": False}
    ),
    # 568 inputs, of which every other job has remainders: of one job, two and four; down has them in all
    "3x3, remainders of every other job": Case(
        "neureka_3x3",
        QuantOptions(bits=4, embedding_bits=8),
        {"hidden": 568, "intermediate": 253, "vocab": 141},
        biased=True,
    ),
    # of 288 inputs they are bytes; 773 have 5 words behind the image, in nibbles 3
    "3x3, 4 bit, remainders of four channels": Case(
        "neureka_3x3", QuantOptions(bits=4, embedding_bits=4), {"hidden": 288, "intermediate": 773}
    ),
    "3x3, 3 bit, remainders": Case(
        "neureka_3x3", QuantOptions(bits=3, embedding_bits=3), {"intermediate": 773}
    ),
    "3x3, 2 bit": Case("neureka_3x3", QuantOptions(bits=2, embedding_bits=2), {"vocab": 259}),
    # jobs of all extents, the last one's rows no whole blocks
    "both": Case(
        "neureka_both", sizes={"hidden": 60, "intermediate": 102, "vocab": 333, "layers": 2}, biased=True
    ),
    "both, 4 bit": Case(
        "neureka_both", QuantOptions(bits=4, embedding_bits=4), {"hidden": 96, "intermediate": 301, "vocab": 651}
    ),
    # of one token vectors of 64 and 72 inputs are equally far apart
    "both, pitches alike": Case("neureka_both", sizes={"hidden": 64, "intermediate": 72}),
    "both, 2 and 3 bit": Case(
        "neureka_both", QuantOptions(bits=2, embedding_bits=3), {"intermediate": 1600, "vocab": 259}
    ),
}  # fmt: skip
ON_QEMU = (
    "1x1",
    "both",
    "3x3, 4 bit, biases",
    "3x3, 4 bit, remainders",
    "3x3, remainders of every other job",
)
ON_GVSOC = (
    "1x1, biases, several jobs", "1x1, beside adapters", "1x1, nine heads",
    "1x1, heads that are shared", "3x3, 4 bit, biases",
    "3x3, 3 bit, several tiles", "3x3, 4 bit, remainders", "3x3, remainders of every other job",
    "3x3, 4 bit, remainders of four channels", "3x3, 3 bit, remainders",
    "both", "both, 4 bit", "both, 2 and 3 bit",
    "both, pitches alike",
)  # fmt: skip
# too wide for chunks of more tokens than one job has pixels for, or beside matrices of the cores
SHORT_CHUNKS = (
    "1x1, beside adapters",
    "3x3, 4 bit, remainders of four channels",
    "both, 2 and 3 bit",
)


@pytest.fixture
def eager(register: Callable[[Engine], None]) -> None:
    """They run whatever they can."""
    for name in ENGINES.keys() - {CORES}:
        legal = ENGINES["neureka_1x1"].legal  # the second layout need not gain anything
        register(replace(ENGINES[name], cycles=lambda spec, tokens: 1, legal=legal))


def load(case: Case, folder: Path) -> FloatModel:
    sizes = {**SIZES, **case.sizes}
    if case.biased:
        rng, dim = np.random.default_rng(7), sizes["head_dim"]
        sizes["config"] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        sizes["overrides"] = {
            f"model.layers.{i}.self_attn.{p}_proj.bias": rng.standard_normal(n * dim).astype("f4")
            for i in range(sizes["layers"])
            for p, n in {"q": 4, "k": 2, "v": 2}.items()
        }
    write_tiny_llama(folder, **sizes)
    model = load_model(folder)
    add_adapters(model, case.ranks)
    return model


def target_of(case: Case) -> Target:
    """With the engine, and the one whose layout it also stores."""
    names = (CORES, ENGINES[case.engine].costs_as, case.engine)
    return replace(SIRACUSA, engines=tuple(filter(None, names)))


def compiled(case: Case, folder: Path) -> Program:
    model = load(case, folder / "model")
    graph = lowered(model, case.options, CONTEXT, target_of(case))
    return compile_graph(graph, model, folder / "out", target_of(case))


def engines_of(graph: Graph) -> dict[str, str]:
    found = {op.weight.name: op.weight.engine for op in graph.ops if isinstance(op, Linear)}
    return {name.split(".")[-1]: engine for name, engine in found.items()}


def prove(program: Program, on: str, *prompts: int, drafts: bool = True, **options: str) -> int:
    """Values compared of runs with prompts of so many tokens, of which chunks are made; ``drafts``:
    and of one that verifies drafts."""
    program.build(on, **options)
    rng, compared = np.random.default_rng(1), 0
    for n in prompts:
        request = random_request(program.graph, rng, n, 3, WARM if n == 3 else GREEDY)
        compared += program.prove(on, request, timeout_s=240).compared
    return compared + (prove_lookup(program, on) if drafts else 0)


def prove_lookup(program: Program, on: str) -> int:
    """Values compared of a run that verifies drafts: passes of several tokens, with all of their logits.
    Long enough for a text that comes back to what it said."""
    request = Request((1, *(40, 41, 42) * 2), CONTEXT - 7, ignore_eos=True, prompt_lookup=5)
    got = parse(program.run(on, request, timeout_s=240))
    verdict = compare(got, reference(program.graph, request), program.graph)
    assert verdict.ok, verdict
    assert max(p.tokens for p in got.passes) > 2
    return verdict.compared


@pytest.mark.parametrize(
    ("name", "sanitizers"), in_tiers(CASES, "1x1", "3x3, 4 bit, remainders", "both, 2 and 3 bit")
)
def test_every_integer_is_the_interpreters(
    name: str, sanitizers: dict[str, str], tmp_path: Path, eager: None
) -> None:
    """Where the chip is not: its sums in C, with sanitizers, threads and transfers that come late."""
    need("host")
    case = CASES[name]
    program = compiled(case, tmp_path)
    assert {n for n, e in engines_of(program.graph).items() if e == case.engine} == case.on
    assert case.engine != "neureka_3x3" or not program.plan.in_place, "its vectors are images"
    assert prove(program, "host", 1, 3, 4, 37, **sanitizers, LAZY="1", CORES="3") > 1000
    if sanitizers and name in ON_QEMU and missing("qemu") is None:
        assert prove(program, "qemu", 19) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "1x1, biases, several jobs",
        "1x1, nine heads",
        "1x1, heads that are shared",
        "3x3, 4 bit, biases",
        "3x3, 4 bit, remainders",
        "3x3, remainders of every other job",
        "both",
    ],
)
def test_no_two_threads_meet(name: str, tmp_path: Path, eager: None) -> None:
    need("host")
    assert prove(compiled(CASES[name], tmp_path), "host", 19, 2, SAN="thread", CORES="8") > 1000


def test_only_whole_blocks_are_joined_in_one_loop(tmp_path: Path, eager: None) -> None:
    """Gates and ups of 102 and of 72 channels: blocks have 4 of each."""
    for name, parts in (("1x1", True), ("both, pitches alike", False)):
        program = compiled(CASES[name], tmp_path / name)
        assert ("sc_join_gates" in program.sources) == parts


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", ON_GVSOC)
def test_on_the_chips_simulator(name: str, tmp_path: Path, eager: None) -> None:
    """The engine itself: jobs of one token, of several, and of so many that it adds their sums up; a last chunk that is
    none of the others."""
    need("gvsoc")
    prompts = (37, 20, 18, 3) if name in ("1x1, biases, several jobs", "both") else (37, 3)
    drafts = True
    if name.startswith(
        "3x3"
    ):  # takes tokens one by one, however many: drafts in one case are enough
        prompts, drafts = (19, 3), name == "3x3, 4 bit, remainders"
    program = compiled(CASES[name], tmp_path)
    assert (program.plan.chunk > 18) == (name not in SHORT_CHUNKS)
    assert prove(program, "gvsoc", *prompts, drafts=drafts) > 500


@pytest.mark.gvsoc
def test_jobs_of_workers_are_over_before_the_controllers(tmp_path: Path) -> None:
    """Drafts that are verified without a proof: between the last layer's products, for which a worker starts jobs, and
    the head, whose first ones the controller writes, nobody meets anybody."""
    need("gvsoc")
    write_tiny_llama(
        tmp_path / "model",
        **SIZES | {"hidden": 128, "head_dim": 32, "intermediate": 256, "vocab": 400},
    )
    model = load_model(tmp_path / "model")
    graph = lowered(model, QuantOptions(bits=4, group_size=32), CONTEXT, SIRACUSA)
    program = compile_graph(graph, model, tmp_path / "out").build("gvsoc")
    engines = engines_of(graph)
    assert engines["head"] != CORES and engines["down"] == CORES and program.plan.verified > 2
    assert "sc_matrix_products(" in program.sources
    request = Request((1, *(40, 41, 42) * 2), CONTEXT - 7, ignore_eos=True, prompt_lookup=5)
    got = parse(program.run("gvsoc", request, timeout_s=240, trace=Trace.TIME))
    assert got.tokens == reference(graph, request).tokens and max(p.tokens for p in got.passes) > 2


def with_remainders_and_second_layouts(folder: Path) -> Program:
    """Matrices with remainders and matrices with a second layout; one token's and prompts' form alike."""
    target = replace(SIRACUSA, engines=(CORES, "neureka_1x1", "neureka_3x3", "neureka_both"))
    options = QuantOptions(bits=4, embedding_bits=8)
    sizes = {**SIZES, "hidden": 96, "intermediate": 508}
    write_tiny_llama(folder / "model", **sizes)
    model = load_model(folder / "model")
    program = compile_graph(lowered(model, options, CONTEXT, target), model, folder / "out", target)
    assert engines_of(program.graph) == {
        "qkv": "neureka_both", "o": "neureka_both", "gate_up": "neureka_both", "down": "neureka_3x3",
        "head": "neureka_both",
    }  # fmt: skip
    assert all(name in program.sources for name in ("m->remainders", "m->taps"))
    return program


@pytest.mark.slow
def test_remainders_and_second_layouts_in_one_program(tmp_path: Path) -> None:
    need("host")
    program = with_remainders_and_second_layouts(tmp_path)
    assert prove(program, "host", 3, 19, SAN="1", LAZY="1", CORES="3") > 1000
    if missing("qemu") is None:
        program.build("gvsoc")


@pytest.mark.gvsoc
def test_remainders_and_second_layouts_in_one_program_on_the_chips_simulator(
    tmp_path: Path,
) -> None:
    need("gvsoc")
    assert prove(with_remainders_and_second_layouts(tmp_path), "gvsoc", 18, 3) > 500


def test_the_embedding_is_read_from_bit_planes(tmp_path: Path, eager: None) -> None:
    """Tied: no second copy for the cores; each of the programs above reads its rows so."""
    for name in ("1x1", "3x3, 8 bit"):
        graph = compiled(CASES[name], tmp_path / name).graph
        table = next(op.table for op in graph.ops if isinstance(op, Embed))
        assert table.engine == CASES[name].engine
        assert table is next(op.weight for op in graph.ops if op.out == "logits")  # type: ignore[attr-defined]


def test_who_runs_a_matrix_changes_no_integer(tmp_path: Path) -> None:
    """Of one scale per row, whoever runs it."""
    model = load(CASES["1x1"], tmp_path / "model")
    graphs = [
        lowered(model, QuantOptions(bits=4), 16, replace(SIRACUSA, engines=engines))
        for engines in ((CORES,), SIRACUSA.engines)
    ]
    assert set(engines_of(graphs[0]).values()) == {CORES}
    assert (
        set(engines_of(graphs[1]).values()) > {CORES} or CORES not in engines_of(graphs[1]).values()
    )
    for mine, theirs in zip(*(g.ops for g in graphs), strict=True):
        if isinstance(mine, Linear) and isinstance(theirs, Linear):
            a, b = mine.weight, theirs.weight
            for field_name in ("q", "r"):
                np.testing.assert_array_equal(getattr(a, field_name), getattr(b, field_name))
            assert (a.shift, a.frac, a.x_bits, a.group) == (b.shift, b.frac, b.x_bits, b.group)
