"""What the pinned models answer: tokens, and digests of all logits and of every layer's outputs.

Other tests compare the C program with the interpreter; a change of both would pass them.  outputs.json says what
both gave when it was written.  Only a change of the numerics that is meant may change it:

    python -m pytest tests/golden --update-golden-outputs

writes it anew, from the interpreter.  ``--update-golden`` never does.

The runs on GVSoC count cycles too.  cycles.json has the last ones, and a run that takes others warns without
failing.  ``--update-golden`` writes it anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest

from shrinkc.abi import Trace
from shrinkc.build import build_program, find_tool
from shrinkc.core.artifact import read_manifest
from shrinkc.ir.graph import Graph
from shrinkc.ir.serialize import load
from shrinkc.numerics.sampling import Sampling
from shrinkc.simulate import run_program
from shrinkc.simulate.proof import Record, Request, parse, reference
from shrinkc.targets import TARGETS

from .models import compile_pinned

FOLDER = Path(__file__).parent
OUTPUTS, CYCLES = FOLDER / "outputs.json", FOLDER / "cycles.json"
ENV = dict(os.environ)
ONCE = (1, 448, 450, 317, 429)  # "Once upon a time" to examples/stories
WORDS = (1, 40, 7, 99, 12, 63, 5)  # ids that every tiny model has


@dataclass(frozen=True)
class Run:
    """A request to one of the models of ``models.MODELS``."""

    model: str
    request: Request


def _greedy(model: str, prompt: tuple[int, ...] = WORDS, tokens: int = 6) -> Run:
    return Run(model, Request(prompt, tokens, ignore_eos=True))


SAMPLED = Sampling(inv_temp_q16=32768, top_p_q16=64225, seed=3)  # temperature 2, top-p 0.98
RUNS = {
    "stories-8": _greedy("stories-8", ONCE),
    "stories-8-sampled": Run("stories-8", Request(ONCE, 6, SAMPLED)),
    "stories-4-groups": _greedy("stories-4-groups", ONCE),
    "stories-2": _greedy("stories-2", ONCE),
    "gptq": _greedy("gptq"),
    "cache-outside-l1": _greedy("groups"),
    "qwen3": _greedy("qwen3"),
    "qwen2": _greedy("qwen2"),
    "mistral": _greedy("mistral"),
    "rv32": _greedy("rv32", WORDS[:4], 5),
}
ON_QEMU = ("gptq", "rv32")
ON_GVSOC = ("stories-8", "gptq", "cache-outside-l1", "qwen3", "mistral")


@dataclass(frozen=True)
class Outputs:
    """What a run gave: its tokens, a digest of the logits that they were chosen from, and one of each layer's hashes at
    the same positions: the first 16 digits of SHA-256."""

    tokens: list[int]
    logits: str
    layers: list[str]

    @classmethod
    def of(cls, record: Record, graph: Graph, request: Request) -> Outputs:
        """Of a whole record: that of a run that was cut short, or that lacks a value, has no outputs."""
        assert record.complete
        count, first = len(record.tokens), len(request.prompt) - 1
        positions = range(first, first + count)
        assert count > 0 and sorted(record.logits) == list(positions)
        logits = np.stack([record.logits[at] for at in positions])
        assert logits.shape == (count, graph.vocab)
        layers = [
            np.array([record.hashes[at, layer] for at in positions], "<u4")
            for layer in range(graph.num_layers)
        ]
        return cls(record.tokens, _digest(logits.astype("<i4")), [_digest(v) for v in layers])


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """compiled(model): the directory of a model of ``models.MODELS``, compiled once."""
    return functools.cache(lambda name: compile_pinned(name, tmp_path_factory.mktemp(name)))


def check(name: str, record: Record, graph: Graph) -> None:
    """The record's outputs are the pinned ones of the run."""
    want = json.loads(OUTPUTS.read_text(encoding="utf-8"))[name]
    got = asdict(Outputs.of(record, graph, RUNS[name].request))
    assert got["tokens"] == want["tokens"]
    assert got["layers"] == want["layers"]
    assert got["logits"] == want["logits"]


def run_on(machine: str, name: str, out: Path) -> Record:
    """Build the program of the run for the machine, and run it."""
    manifest = read_manifest(out)
    target = TARGETS[manifest.target]
    tools = {"host": ["cc"], "qemu": ["riscv64-unknown-elf-gcc", "qemu-riscv32"]}.get(
        machine, ["riscv64-unknown-elf-gcc", "gvsoc"]
    )
    for needed in tools:
        tool = find_tool(needed, ENV, target.name if needed == "gvsoc" else None)
        if not tool.usable:
            pytest.skip(f"{tool.name}: {tool.problem}; {tool.fix}")
    build_program(out, target.programs[machine], env=ENV)
    words = RUNS[name].request.words(manifest.context, Trace.PROOF)
    done = run_program(out, machine, words, env=ENV, timeout_s=1200, target=target)
    assert done.exit_code == 0, (done.lines[-5:], done.errors[-5:])
    return parse(done.lines)


@pytest.mark.parametrize("name", RUNS)
def test_interpreter(
    name: str, compiled: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    run = RUNS[name]
    graph = load(compiled(run.model) / "ir.safetensors")
    record = reference(graph, run.request)
    if request.config.getoption("--update-golden-outputs"):
        outputs = asdict(Outputs.of(record, graph, run.request))
        _write(OUTPUTS, {**json.loads(OUTPUTS.read_text(encoding="utf-8")), name: outputs})
    check(name, record, graph)


@pytest.mark.parametrize("name", RUNS)
def test_host_program(name: str, compiled: Callable[[str], Path]) -> None:
    out = compiled(RUNS[name].model)
    check(name, run_on("host", name, out), load(out / "ir.safetensors"))


@pytest.mark.qemu
@pytest.mark.parametrize("name", ON_QEMU)
def test_qemu_program(name: str, compiled: Callable[[str], Path]) -> None:
    out = compiled(RUNS[name].model)
    check(name, run_on("qemu", name, out), load(out / "ir.safetensors"))


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", ON_GVSOC)
def test_gvsoc_program(
    name: str, compiled: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    out = compiled(RUNS[name].model)
    record = run_on("gvsoc", name, out)
    check(name, record, load(out / "ir.safetensors"))
    assert record.prefill_time
    cycles = Cycles(_simulator(), _compiler(), record.prefill_time, record.decode_times)
    last = json.loads(CYCLES.read_text(encoding="utf-8"))
    if request.config.getoption("--update-golden"):
        _write(CYCLES, {**last, name: asdict(cycles)})
    elif difference := cycles.difference(Cycles(**last[name])):
        warnings.warn(f"cycles of {name}: {difference}", CyclesChanged, stacklevel=1)


def test_pinned_runs_are_those_of_this_file() -> None:
    pinned = json.loads(OUTPUTS.read_text(encoding="utf-8"))
    assert list(pinned) == list(RUNS)
    assert pinned["stories-8-sampled"]["tokens"] != pinned["stories-8"]["tokens"]
    assert list(json.loads(CYCLES.read_text(encoding="utf-8"))) == list(ON_GVSOC)


def test_pinned_cycles_are_of_the_simulator_that_the_image_builds() -> None:
    dockerfile = (FOLDER.parents[1] / "Dockerfile").read_text(encoding="utf-8")
    commits = re.findall(r"^ARG GVSOC\w*=([0-9a-f]{7})", dockerfile, re.MULTILINE)
    pinned = json.loads(CYCLES.read_text(encoding="utf-8"))
    assert {run["simulator"] for run in pinned.values()} == {" ".join(commits)}


class CyclesChanged(UserWarning):
    """A program takes other cycles than when cycles.json was written."""


@dataclass(frozen=True)
class Cycles:
    """Cluster cycles of a run: of the prefill and of each decode step, by which GVSoC and compiler."""

    simulator: str
    compiler: str
    prefill: int
    decode: list[int]

    def difference(self, last: Cycles) -> str:
        """What differs from the ``last`` ones, in words; empty where nothing does."""
        parts = [
            f"{what} {old:,} → {new:,} ({100 * (new - old) / old:+.2f} %)"
            for what, old, new in (
                ("prefill", last.prefill, self.prefill),
                ("decode", sum(last.decode), sum(self.decode)),
            )
            if old != new
        ]
        if parts and self.simulator != last.simulator:
            parts.append(f"by GVSoC {self.simulator} instead of {last.simulator}")
        if parts and self.compiler != last.compiler:
            parts.append(f"by {self.compiler} instead of {last.compiler}")
        return ", ".join(parts)


def test_a_change_of_cycles_is_said_with_both_figures() -> None:
    last = Cycles("a", "gcc 1", 1000, [200, 300])
    assert last.difference(last) == ""
    assert Cycles("b", "gcc 2", 1000, [200, 300]).difference(last) == ""
    assert Cycles("a", "gcc 1", 1010, [200, 299]).difference(last) == (
        "prefill 1,000 → 1,010 (+1.00 %), decode 500 → 499 (-0.20 %)"
    )
    assert Cycles("b", "gcc 2", 990, [200, 300]).difference(last) == (
        "prefill 1,000 → 990 (-1.00 %), by GVSoC b instead of a, by gcc 2 instead of gcc 1"
    )


def _compiler() -> str:
    """Name and version of the compiler of the chip's programs."""
    return str(find_tool("riscv64-unknown-elf-gcc", ENV).version)


def _simulator() -> str:
    """The commits of the installed GVSoC, core and pulp: of the Git directories that it was built in, or what its
    installation says of itself."""
    launcher = find_tool("gvsoc", ENV).path
    assert launcher is not None
    root = launcher.resolve().parents[1]
    if (root / "commits").is_file():
        return (root / "commits").read_text(encoding="utf-8").strip()
    commits = []
    for folder in (root.parent, root.parent / "core", root.parent / "pulp"):
        asked = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        commits.append(done.stdout.strip() or "unknown")
    return " ".join(commits)


def _write(path: Path, content: dict[str, object]) -> None:
    """A line per run, in the order of ``RUNS``."""
    lines = [f'"{name}": {json.dumps(content[name])}' for name in RUNS if name in content]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
