"""Compile, build, run and prove one model: what the tests of this folder share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from helpers.layer import MODULES
from shrinkc.abi import Trace
from shrinkc.build import build_program, find_tool
from shrinkc.codegen.emit import emit
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import FloatModel
from shrinkc.importer.model import LowRankAdapter
from shrinkc.ir.graph import Graph
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import verify
from shrinkc.numerics.sampling import Sampling
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape, shapes_of_graph
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import (
    Record,
    Request,
    Verdict,
    compare,
    parse,
    reference,
)
from shrinkc.targets import SIRACUSA, Target

ENV = dict(os.environ)
NEEDS = {
    "host": ("cc",),
    "qemu": ("riscv64-unknown-elf-gcc", "qemu-riscv32"),
    "gvsoc": ("riscv64-unknown-elf-gcc", "gvsoc"),
}
GREEDY = Sampling()
WARM = Sampling(inv_temp_q16=65536, top_p_q16=58982, seed=7)  # temperature 1, top-p 0.9


def missing(on: str, target: Target = SIRACUSA) -> str | None:
    """Why programs for the machine ``on`` cannot be built or run here, or None."""
    emulator = target.program.emulator[:1] if on == "qemu" and target.board else ()
    for name in ("make", *NEEDS[on], *emulator):
        tool = find_tool(name, ENV, target.name if name == "gvsoc" else None)
        if not tool.usable:
            return f"{tool.name}: {tool.problem}; {tool.fix}"
    return None


def need(on: str, target: Target = SIRACUSA) -> None:
    """Skip the test, naming what is missing."""
    reason = missing(on, target)
    if reason is not None:
        pytest.skip(reason)


@dataclass
class Program:
    """A compiled directory with what the compiler knew when it wrote it."""

    out: Path
    graph: Graph
    shape: ModelShape
    plan: Plan
    target: Target = SIRACUSA

    @property
    def sources(self) -> str:
        """The text of all C files."""
        files = sorted((self.out / "src").rglob("*.[ch]"))
        return "".join(file.read_text(encoding="utf-8") for file in files)

    def build(self, on: str, **options: str) -> Program:
        """Build for the machine ``on``; options are those of the generated Makefile."""
        build_program(self.out, self.target.programs[on], env=ENV, options=options)
        return self

    def run(
        self, on: str, request: Request, timeout_s: float = 60, trace: int = Trace.PROOF
    ) -> list[str]:
        """The lines of a run, of a proof if ``trace`` is not another, that ended by itself with exit code 0."""
        words = request.words(self.graph.context, trace)
        done = run_program(self.out, on, words, env=ENV, timeout_s=timeout_s, target=self.target)
        assert done.exit_code == 0, (done.lines[-5:], done.errors[-20:])
        return done.lines

    def prove(
        self, on: str, request: Request, want: Record | None = None, timeout_s: float = 60
    ) -> Verdict:
        """Run and compare with the interpreter; every value equal and more than none compared."""
        got = parse(self.run(on, request, timeout_s))
        want = reference(self.graph, request) if want is None else want
        verdict = compare(got, want, self.graph)
        assert verdict.compared > 0
        assert verdict.mismatched == 0, f"{on}: {verdict}"
        assert verdict.ok
        return verdict


def compile_graph(
    graph: Graph,
    model: FloatModel,
    out: Path,
    target: Target = SIRACUSA,
    l1_budget: int | None = None,
    name: str = "model",
    *,
    whole_runtime: bool = False,
) -> Program:
    """Plan, verify and emit a lowered model into the new directory ``out``; with the kernels that it does not use, too,
    if a test changes what is used."""
    shape = shape_of(graph, model)
    plan = make_plan(shape, target, l1_budget)
    assert verify(plan, shape, target) > 0
    out.mkdir(parents=True)
    emit(
        graph, shape, plan, target, model.tokenizer, out, "shrinkc compile test", name=name,
        whole_runtime=whole_runtime,
    )  # fmt: skip
    return Program(out, graph, shape, plan, target)


def compile_model(
    model: FloatModel,
    out: Path,
    options: QuantOptions = QuantOptions(),  # noqa: B008 - frozen
    context: int = 32,
    target: Target = SIRACUSA,
    l1_budget: int | None = None,
    name: str = "model",
    *,
    whole_runtime: bool = False,
) -> Program:
    """Everything between a float model and a directory that make can build."""
    graph = lower(model, options, context)
    return compile_graph(graph, model, out, target, l1_budget, name, whole_runtime=whole_runtime)


def shape_of(graph: Graph, model: FloatModel) -> ModelShape:
    """The storage shapes of a lowered model."""
    return shapes_of_graph(graph, sum(map(len, model.tokenizer.decode_table())))


def smallest_l1(shape: ModelShape, target: Target = SIRACUSA) -> int:
    """The smallest L1 budget in bytes that plans."""
    low, high = 0, target.l1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check_fits(shape, target, middle)
            high = middle
        except DoesNotFit:
            low = middle
    return high


def l2_without_weights(
    shape: ModelShape, l1_budget: int | None = None, target: Target = SIRACUSA
) -> int:
    """Bytes of L2 that a program takes whose weights are all in flash."""
    others = {v.name: 0 for v in target.on_chip}
    with pytest.raises(DoesNotFit) as refused:
        make_plan(shape, target.with_room(**others | {"l2": target.l2_system}), l1_budget)
    return int(refused.value.message.split("need ")[1].split()[0])


def add_adapters(model: FloatModel, ranks: Mapping[str, int], seed: int = 0) -> None:
    """Hang a random adapter next to the named modules (``q_proj`` ...) of every layer."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for module, rank in ranks.items():
            rows, k = getattr(layer, MODULES[module].field).shape
            layer.adapters[module] = LowRankAdapter(
                (rng.standard_normal((rank, k)) / np.sqrt(k)).astype(np.float32),
                (rng.standard_normal((rows, rank)) / np.sqrt(rank)).astype(np.float32),
            )


def random_request(
    graph: Graph, rng: np.random.Generator, prompt: int, new: int, sampling: Sampling = GREEDY
) -> Request:
    """A prompt of random ids; generation goes on past an end token."""
    ids = tuple(int(v) for v in rng.integers(0, graph.vocab, prompt))
    return Request(ids, new, sampling, ignore_eos=True)


def prove_on_host_and_qemu(
    program: Program, request: Request, sanitizers: Mapping[str, str]
) -> None:
    """0 mismatches: threads whose transfers come late; with sanitizers one core as well, and the 32-bit program."""
    want = reference(program.graph, request)
    if not sanitizers:
        program.build("host", CORES="3", LAZY="1").prove("host", request, want)
        return
    for options in (dict(sanitizers), {"CORES": "3", "LAZY": "1"}):
        program.build("host", **options).prove("host", request, want)
    need("qemu")
    program.build("qemu").prove("qemu", request, want)
