"""An op that no product has, from one Python class and one C file: everything else picks it up.

``Leak`` scales what the down matrix reads, with a factor per layer, into an L1 buffer of its own.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from engines.plain import lowered
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import Trace
from shrinkc.core.errors import IllegalIR, PlanInvalid
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.dump import dump
from shrinkc.ir.graph import Graph, State
from shrinkc.ir.ops import OPS, Linear, Op
from shrinkc.ir.rules import check
from shrinkc.ir.serialize import load, save
from shrinkc.ir.steps import Access, PassSizes, Step, Use
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.numerics.fixed import I64, round_shift
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import (
    Request,
    compare,
    locate,
    op_values,
    parse,
    reference,
)
from shrinkc.targets import KIB, SIRACUSA

from .programs import ENV, Program, compile_graph, need, shape_of

SHIFT = 15
WRONG = 1 << 22  # enough to survive the quantisation that follows
LEAK_C = Path(__file__).with_name("leak.c")


# --- what would be ir/ops/leak.py -----------------------------------------------------------


def rule_leak(graph: Graph, op: Leak) -> str | None:
    if not 1 <= op.factor < 1 << SHIFT:
        return f"factor {op.factor} outside 1..{(1 << SHIFT) - 1}"
    return None


@dataclass
class Leak(Op):
    """i32 -> i32 of the same fixed point: x * factor / 2**15."""

    RULES = (rule_leak,)
    KERNEL = "sc_step_leak"
    NUMBERS = MappingProxyType({"leak_factor": "int32_t"})

    factor: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        return round_shift(np.asarray(args[0], I64) * self.factor, SHIFT)

    def numbers(self) -> tuple[int, ...]:
        return (self.factor,)

    def macros(self) -> dict[str, int | str]:
        return {"LEAK_SHIFT": SHIFT}

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        return "leaked"

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield Use(sizes.buffer(step.inputs[0]), Access.READ)
        yield Use("leaked", Access.WRITE, sizes.words(sizes.width(step.inputs[0])))


# --- what would be a few lines of quantize/lower.py ------------------------------------------


def with_leaks(graph: Graph) -> Graph:
    """A copy in which every layer's down matrix reads what has leaked."""
    g = copy.deepcopy(graph)
    for layer in range(g.num_layers):
        h, quant = f"layer{layer}.h", f"layer{layer}.down_in.q"
        at = next(i for i, op in enumerate(g.ops) if op.out == quant)
        leak = Leak(f"layer{layer}.leak", (h,), layer, 9000 + 5000 * layer)
        g.ops[at].inputs = (leak.out,)
        g.ops.insert(at, leak)
        g.types[leak.out] = g.types[h]
    return g


OPS.pop("Leak")  # known in this file's tests only


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPS, "Leak", Leak)


@pytest.fixture(scope="module")
def plain(story_model: FloatModel) -> Graph:
    return lower(story_model, QuantOptions(), 32)


@pytest.fixture
def leaking(plain: Graph) -> Graph:
    return with_leaks(plain)


def program(
    graph: Graph, model: FloatModel, out: Path, budget: int | None = None, wrong: bool = False
) -> Program:
    made = compile_graph(graph, model, out, SIRACUSA, budget, whole_runtime=True)
    kernel = out / "src" / "runtime" / "sc_leak.c"
    shutil.copyfile(LEAK_C, kernel)
    if wrong:
        kernel.write_text(f"#define WRONG {WRONG}\n" + kernel.read_text())
    return made


REQUEST = Request((1, 5, 9, 100, 7, 2, 44, 12, 3, 80, 6), 6, ignore_eos=True)


def test_rules_and_files(leaking: Graph, tmp_path: Path) -> None:
    check(leaking)
    save(leaking, tmp_path / "ir")
    assert dump(load(tmp_path / "ir")) == dump(leaking)
    assert "%layer0.leak: i32[" in dump(leaking) and "leak(layer0.h) {factor = 9000}" in dump(
        leaking
    )
    leak = next(op for op in leaking.ops if isinstance(op, Leak))
    leak.factor = 1 << SHIFT
    with pytest.raises(IllegalIR, match=r"leak layer0.leak: factor 32768 outside .* \(rule_leak\)"):
        check(leaking)
    leak.factor, leak.inputs = 1, ("layer0.attn_in.q",)
    with pytest.raises(IllegalIR, match=r"takes \('i32',\), got \('q16',\)"):
        check(leaking)


def test_plan(leaking: Graph, plain: Graph, story_model: FloatModel, tmp_path: Path) -> None:
    """Its buffer lives from it to its reader, and the verifier knows that by itself."""
    made = compile_graph(leaking, story_model, tmp_path / "out")
    names = [step.name for step in made.shape.steps]
    at = names.index("leak")
    assert names[at - 1 : at + 2] == ["h", "leak", "down_in.q"] and leaking.device_ops() == names
    i, buffer = next((i, b) for i, b in enumerate(made.plan.l1) if b.name == "leaked")
    assert buffer.live == (at, at + 1)
    assert buffer.bytes == 4 * made.plan.chunk * (-(-leaking.ffn // 4) * 4)
    h = next(b for b in made.plan.l1 if b.name == "h")
    for change, words in (
        ({"offset": h.offset}, "overlap by"),
        ({"bytes": buffer.bytes - 16}, f"leaked: {buffer.bytes - 16} bytes for"),
        ({"live": (at,)}, "leaked: used in down_in.q, planned for"),
    ):
        bad = copy.deepcopy(made.plan)
        bad.l1[i] = type(buffer)(**{**vars(buffer), **change})
        assert any(words in fault for fault in faults_of(bad, made.shape, SIRACUSA)), words
    del made.plan.l1[i]
    with pytest.raises(PlanInvalid, match="leaked: no buffer for"):
        verify(made.plan, made.shape, SIRACUSA)
    # sc_layer has grown by the factor, which the planner knows
    other = compile_graph(plain, story_model, tmp_path / "plain")
    for made_, size in ((made, 32), (other, 28)):
        header = (made_.out / "src" / "model.h").read_text()
        assert f"#define SC_LAYER_BYTES {size}\n" in header


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 24 * KIB], ids=["all of L1", "24 KiB"])
def test_integers_on_the_host(
    leaking: Graph, plain: Graph, story_model: FloatModel, tmp_path: Path, budget: int | None
) -> None:
    """With sanitizers, every integer, and they are not those of the model without it."""
    need("host")
    made = program(leaking, story_model, tmp_path / "out", budget).build("host", SAN="1", CORES="3")
    want = reference(leaking, REQUEST)
    verdict = made.prove("host", REQUEST, want)
    assert verdict.compared > 1000
    assert not compare(want, reference(plain, REQUEST), plain).ok


@pytest.mark.slow
def test_a_wrong_kernel_is_named(leaking: Graph, story_model: FloatModel, tmp_path: Path) -> None:
    """The dump of a layer has the op in its place."""
    need("host")
    made = program(leaking, story_model, tmp_path / "out", wrong=True).build("host")
    want = reference(leaking, REQUEST)
    verdict = compare(parse(made.run("host", REQUEST)), want, leaking)
    first = verdict.first_difference
    assert not verdict.ok and first is not None and (first.step, first.layer) == (0, 0)
    words = REQUEST.words(leaking.context, Trace.PROOF | Trace.DUMP, (0, 0))
    got = parse(run_program(made.out, "host", words, env=ENV, timeout_s=60).lines)
    found = locate(got.dumps, op_values(leaking, REQUEST, want, 0, 0), leaking, 0, 0)
    assert found is not None and (found.op, found.index) == ("leak", 7)
    assert isinstance(found.expected, int) and found.got == found.expected + WRONG


@pytest.mark.slow
def test_vectors_in_the_place_of_its_result(tmp_path: Path) -> None:
    """An in-place plan makes what down reads where the op before has left its result, whichever that is."""
    need("host")
    sizes: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 10, "vocab": 83, "layers": 3}
    write_tiny_llama(tmp_path / "model", hidden=64, intermediate=302, seed=4, **sizes)
    model = load_model(tmp_path / "model")
    leaks = with_leaks(lowered(model, QuantOptions(), 32, SIRACUSA))
    shape = shape_of(leaks, model)
    budgets = range(60 * KIB, 120 * KIB, KIB)
    plans = [(b, plan) for b in budgets if (plan := make_plan(shape, SIRACUSA, b)).in_place]
    budget = max(plans, key=lambda found: found[1].chunk)[0]
    made = program(leaks, model, tmp_path / "out", budget).build("host", SAN="1", CORES="3")
    assert made.plan.in_place and made.plan.chunk > 9
    assert "SC_SOURCE_OF_DOWN SC_AT_LEAKED\n" in (made.out / "src" / "model.h").read_text()
    for tokens in (2, made.plan.chunk, made.plan.chunk + 1):
        request = Request(tuple(range(1, tokens + 1)), 4, ignore_eos=True)
        assert made.prove("host", request).compared > 100


@pytest.mark.gvsoc
def test_integers_on_the_soc(leaking: Graph, story_model: FloatModel, tmp_path: Path) -> None:
    need("gvsoc")
    made = program(leaking, story_model, tmp_path / "out").build("gvsoc")
    assert made.prove("gvsoc", REQUEST, timeout_s=120).compared > 1000


def test_down_reads_it(leaking: Graph) -> None:
    down = [op for op in leaking.ops if isinstance(op, Linear) and op.name == "out"]
    quants = {op.out: op for op in leaking.ops}
    assert [quants[op.inputs[0]].inputs for op in down] == [
        (f"layer{i}.leak",) for i in range(leaking.num_layers)
    ]
