"""Fits the cost model to runs on GVSoC: writes compiler/shrinkc/costs/<target>.json, and its errors into
docs/results/data/cost_model.json.

    python examples/bench/calibrate.py [--work DIR] [--jobs N] [--output FILE] [--formats NAME...]

Small random models of many shapes, widths, contexts and prompts are compiled.  A profile build measures the cycles of
every op; a plain build tells how many of these the counters cost.  Each op's cycles are fitted to its features
(``Op.work``, an engine's ``features``) by non-negative least squares of relative errors.  Shapes in HELD_OUT take
no part in the fit; the errors in the file are measured on them.

With ``--formats`` only these formats of calibration_shapes.py are measured, and only the features of their widths are
fitted: for a new weight format, while nothing else has changed.

With ``--work`` measurements are kept, and no program runs twice: an interrupted calibration resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import figures
import numpy as np
from calibration_shapes import (
    FITTED,
    FORMATS,
    HELD_OUT,
    ON_ENGINES_FITTED,
    ON_ENGINES_HELD_OUT,
    Shape,
)
from cost_fit import Sample, error_of, fit, fit_more
from figures import ROOT
from models import write_llama

import shrinkc
from shrinkc.core.errors import ShrinkcError
from shrinkc.core.output import write_file
from shrinkc.costs import CostTable, Work, cost_table, read_table
from shrinkc.costs.table import Error
from shrinkc.costs.work import total
from shrinkc.engines import CORES, engine_named
from shrinkc.memory.cycles import Passes, StepWork, cost_of
from shrinkc.storage import WIDEST
from shrinkc.targets import TARGETS

NEW = 4  # tokens of a run; the first comes from prefill, the others from decode steps
NEW_ON_ENGINES = 2  # simulating an engine takes a hundred times as long as simulating a core
CLOCK_MHZ = 72.0
FLASH = 0.996  # bytes per cycle, of long transfers
RATES = tuple(round(7.9 - 0.1 * i, 1) for i in range(40))  # of the DMA, 7.98 alone
BOUND = 0.9  # of that rate: from there on an op may have waited
ROUNDS = 6
COSTS = ROOT / "compiler/shrinkc/costs"
SIMULATOR = "GVSoC edfcd83 (core ac27d00, pulp 9968c4e)"

OPERATIONS = {
    "attention": "attention", "embed": "embedding", "linear": "matrix product", "normquant": "RMSNorm and quantisation",
    "normadd": "RMSNorm after a block",
    "quant": "quantisation", "ropecache": "RoPE and KV cache", "sample": "choice of a token",
    "silumul": "gate, up and SiLU", "pass": "whole decode step or prompt",
}  # fmt: skip

# Operations that no program of a calibration has. Those of Gemma 3: fitted to 32 decode steps and prompts of hidden
# sizes 64 to 320 on GVSoC, with a median error of 1.0 %.
APART = ("normadd",)

ENGINES = {name: target.engines for name, target in TARGETS.items()}


@dataclass(frozen=True)
class Job:
    """One program and the shape that it is of; ``alone``: the cores run all; ``copies``: engines that have any may
    run something."""

    shape: Shape
    format: str
    target: str
    alone: bool
    copies: bool = False

    @property
    def held_out(self) -> bool:
        return self.shape in HELD_OUT + ON_ENGINES_HELD_OUT

    @property
    def prompts(self) -> tuple[int, ...]:
        s = self.shape
        return s.prompts if self.format == s.formats[0] else s.prompts[:1]

    @property
    def new(self) -> int:
        return NEW if self.alone else NEW_ON_ENGINES

    @property
    def builds(self) -> tuple[bool, ...]:
        """With counters; and without, to measure the cost of the counters and the error of whole passes."""
        known = self.alone and self.format == self.shape.formats[0]
        return (True, False) if known or self.held_out else (True,)

    @property
    def engines(self) -> str:
        if self.alone:
            return CORES
        found = [engine_named(name) for name in ENGINES[self.target]]
        return ",".join(e.name for e in found if self.copies or not e.second_layout)

    @property
    def name(self) -> str:
        by = "alone" if self.alone else "with copies" if self.copies else "without copies"
        return f"{self.shape.name} {self.format} {by}"


def jobs_of(target: str) -> list[Job]:
    """All programs of a calibration."""
    others = ENGINES[target] != (CORES,)
    lists = [(FITTED + HELD_OUT, True)]
    lists += [(ON_ENGINES_FITTED + ON_ENGINES_HELD_OUT, False)] if others else []
    return [
        Job(shape, name, target, alone, copies)
        for shapes, alone in lists
        for shape in shapes
        for name in shape.formats
        for copies in ((False,) if alone else _ways(shape, name))
    ]


def _ways(shape: Shape, name: str) -> tuple[bool, ...]:
    """Without copies and with them, where there are any: not of groups, which the cores have."""
    if "group_size" in FORMATS[name]:
        return (False,)
    return (False, True) if name == shape.formats[0] else (True,)


@dataclass
class Measured:
    """One phase of one run: per op its ``work`` and its ``cycles`` in a profile build; ``plain``: cycles of
    the plain build, None where there was none."""

    steps: list[list[StepWork]]
    cycles: dict[str, float]
    plain: float | None
    times: int = 1  # how many decode steps ``steps`` are

    def work(self) -> dict[str, Work]:
        """Per op, of one decode step or the whole prefill."""
        out: dict[str, list[Work]] = {}
        for step in (s for steps in self.steps for s in steps):
            out.setdefault(step.name, []).append(step.work)
        return {name: total(works) / self.times for name, works in out.items()}

    def tile_bytes(self) -> dict[str, float]:
        """Per op, what is copied for it."""
        out: dict[str, float] = {}
        for step in (s for steps in self.steps for s in steps):
            size = sum(t.bytes for t in step.tiles) / self.times
            out[step.name] = out.get(step.name, 0.0) + size
        return out


@dataclass
class Run:
    """A job that is done."""

    job: Job
    phases: list[Measured] = field(default_factory=list)
    seconds: float = 0.0


def measure(job: Job, work: Path) -> Run:
    """Compiles and runs; what was measured before is taken from ``work``."""
    began = time.monotonic()
    folder = (
        work / "programs" / hashlib.sha256(f"{job.target} {job.name}".encode()).hexdigest()[:16]
    )
    model = folder / "model"
    if not (model / "model.safetensors").exists():
        s = job.shape
        write_llama(
            model, hidden=s.hidden, ffn=s.ffn, heads=s.heads, kv_heads=s.kv_heads,
            head_dim=s.head_dim, layers=s.layers, vocab=s.vocab,
        )  # fmt: skip
    out = folder / "out"
    made = shrinkc.compile(
        model,
        out,
        target=job.target,
        context=job.shape.context,
        force=True,
        engines=job.engines,
        **FORMATS[job.format],
    )
    planned = made.prepared
    passes = Passes(planned.shape, planned.plan, planned.target)
    program = hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    run = Run(job)
    for prompt in job.prompts:
        kept = folder / f"{program[:24]}-{prompt}.json"
        if not kept.exists():
            write_file(kept, json.dumps(_runs(out, prompt, job)))
        found = json.loads(kept.read_text())
        new = found["new"]
        positions = range(prompt, prompt + new - 1)
        prefill = Measured(passes.prompt(prompt), *_counts(found, "prefill"))
        decode = Measured([passes.steps(1, at) for at in positions], *_counts(found, "decode"))
        run.phases += [prefill, replace(decode, times=len(positions))]
    run.seconds = time.monotonic() - began
    return run


def _runs(out: Path, prompt: int, job: Job) -> dict[str, Any]:
    """Runs its builds: cycles per op and of the plain build."""
    ids = [1, *(3 + i % 500 for i in range(prompt - 1))]
    found: dict[str, Any] = {"new": job.new, "plain": None}
    for profile in job.builds:
        done = shrinkc.run(
            out,
            on="gvsoc",
            prompt_ids=ids,
            tokens=job.new,
            ignore_eos=True,
            verify=False,
            profile=profile,
        )
        if done.profile is not None:
            found |= done.profile.to_json()
        else:
            assert done.cycles is not None
            found["plain"] = done.cycles
    return found


def _counts(found: dict[str, Any], phase: str) -> tuple[dict[str, float], float | None]:
    cycles = {row["op"]: row["cycles"] for row in found[phase]["ops"]}
    if found["plain"] is None:
        return cycles, None
    plain = found["plain"][phase]
    return cycles, plain if phase == "prefill" else sum(plain) / len(plain)


def samples(runs: list[Run], dma: float) -> Iterator[tuple[str, Sample]]:
    """(op, its work and cycles) of all ops that did not wait for weights: those that need less than BOUND of the
    DMA's rate, ``dma`` bytes per cycle."""
    for phase in (p for run in runs for p in run.phases):
        tiles = phase.tile_bytes()
        kinds = {s.name: s.op for steps in phase.steps for s in steps}
        for name, work in phase.work().items():
            cycles = phase.cycles[name]
            if tiles[name] <= BOUND * dma * cycles:
                yield kinds[name], Sample(work, cycles)


def calibrated(runs: list[Run], target: str) -> CostTable:
    """The fitted table, with its errors on the held-out shapes."""
    fitted = [r for r in runs if not r.job.held_out]
    held = [r for r in runs if r.job.held_out]
    probe = [
        (sum(p.cycles.values()) - p.plain) / (sum(map(len, p.steps)) / p.times)
        for r in fitted
        for p in r.phases
        if p.plain is not None
    ]
    table = CostTable(
        target=target, ops={}, dma=min(delivered(fitted), RATES[0]), flash=FLASH,
        probe=round(float(np.median(probe)), 1), clock_mhz=CLOCK_MHZ, fitted=len(fitted), held_out=len(held),
        made={
            "date": date.today().isoformat(), "machine": platform.machine(), "simulator": SIMULATOR,
            "shrinkc": f"{shrinkc.__version__} {_output('git', '-C', str(ROOT), 'describe', '--always', '--dirty')}",
            "compiler": _output("riscv64-unknown-elf-gcc", "--version"),
            "command": "make calibrate",
        },
    )  # fmt: skip
    # the DMA's rate and the set of ops that wait for it depend on each other
    for _ in range(ROUNDS):
        by_op: dict[str, list[Sample]] = {}
        for op, sample in samples(fitted, table.dma):
            by_op.setdefault(op, []).append(sample)
        ops = {op: _rounded(fit(found)) for op, found in sorted(by_op.items())}
        _share_words(ops)
        before, table = table.dma, rated(fitted, replace(table, ops=ops))
        if before == table.dma:
            break
    errors, passes = check(held, table)
    packaged = cost_table(target)
    apart = {} if packaged is None else {op: packaged.ops[op] for op in APART}
    return replace(table, ops={**table.ops, **apart}, errors=errors, passes=passes)


def extended(runs: list[Run], table: CostTable, widths: set[int]) -> CostTable:
    """The table with new cycles for the features of these widths; everything else stays."""
    ends = tuple(f"_w{bits}" for bits in widths)
    kept = {
        op: {name: v for name, v in per.items() if not name.endswith(ends)}
        for op, per in table.ops.items()
    }
    table = replace(table, ops=kept)
    by_op: dict[str, list[Sample]] = {}
    for op, sample in samples([r for r in runs if not r.job.held_out], table.dma):
        if table.unknown(op, sample.work):
            by_op.setdefault(op, []).append(sample)
    ops = {op: dict(per) for op, per in table.ops.items()}
    for op, found in by_op.items():
        ops[op] |= _rounded(fit_more(ops[op], found))
    _share_words(ops)
    return replace(table, ops=ops)


def _share_words(ops: dict[str, dict[str, float]]) -> None:
    """Both kinds of products run the same loops over words.  A loop that one kind never ran without waiting for the DMA
    takes the cycles of the other kind."""
    products = [ops[op] for op in ("linear", "silumul") if op in ops]
    for own in products:
        for other in products:
            for name, cycles in other.items():
                if "words_w" in name and not own.get(name):
                    own[name] = cycles


def delivered(runs: list[Run]) -> float:
    """The highest rate in bytes per cycle at which tiles arrived: the DMA's rate if any op waited for it."""
    return max(
        (
            size / phase.cycles[name]
            for run in runs
            for phase in run.phases
            for name, size in phase.tile_bytes().items()
        ),
        default=0.0,
    )


def rated(runs: list[Run], table: CostTable) -> CostTable:
    """The table with the DMA rate that fits all copies best, the highest one if several do; unchanged if nothing was
    copied."""
    off = {rate: _off(runs, replace(table, dma=rate)) for rate in RATES}
    found = {rate: float(np.mean(errors)) for rate, errors in off.items() if errors}
    return replace(table, dma=min(found, key=lambda rate: found[rate])) if found else table


def _off(runs: list[Run], table: CostTable) -> list[float]:
    """Relative errors of the ops that tiles are copied for."""
    out = []
    for phase in (p for run in runs for p in run.phases):
        cost, tiles = cost_of(phase.steps, table).ops, phase.tile_bytes()
        out += [
            abs(cost[name] / phase.times / cycles - 1)
            for name, cycles in phase.cycles.items()
            if tiles[name]
        ]
    return out


def _rounded(per: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{v:.5g}") for name, v in per.items()}


def check(runs: list[Run], table: CostTable) -> tuple[dict[str, Error], Error]:
    """(errors per op with waits, measured on profile builds; error of whole passes, measured on plain builds)."""
    ops: dict[str, tuple[list[float], list[float]]] = {}
    passes: tuple[list[float], list[float]] = ([], [])
    for phase in (p for run in runs for p in run.phases):
        cost = cost_of(phase.steps, table)
        kinds = {s.name: s.op for steps in phase.steps for s in steps}
        for name, cycles in cost.ops.items():
            predicted, measured = ops.setdefault(kinds[name], ([], []))
            predicted.append(cycles / phase.times)
            measured.append(phase.cycles[name])
        if phase.plain is not None:
            passes[0].append(cost.without_probes(table).cycles / phase.times)
            passes[1].append(phase.plain)
    return {op: error_of(*found) for op, found in sorted(ops.items())}, error_of(*passes)


def _output(*command: str) -> str:
    """The first line of what a command says, "unknown" where there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0] if done.stdout else "unknown"


def rows(table: CostTable) -> list[figures.Row]:
    """The errors in per cent, those of whole forward passes last."""
    assert table.passes is not None
    return [
        {
            "id": op, "op": OPERATIONS[op], "runs": error.samples,
            "median": round(100 * error.median, 2), "p90": round(100 * error.p90, 2),
        }
        for op, error in [*table.errors.items(), ("pass", table.passes)]
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name, target in TARGETS.items() if target.gvsoc]
    parser.add_argument("--target", default="siracusa", choices=known)
    parser.add_argument("--work", type=Path, help="keep measurements there (default: nowhere)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[], metavar="NAME")
    parser.add_argument("--output", type=Path, help="default: the package's own file")
    args = parser.parse_args()
    output = args.output or COSTS / f"{args.target}.json"
    jobs = [j for j in jobs_of(args.target) if j.format in (args.formats or FORMATS)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(args.jobs) as pool:
        work = (args.work or Path(scratch)).resolve()
        waiting = {pool.submit(measure, job, work): job for job in jobs}
        runs: list[Run] = []
        for done in as_completed(waiting):
            job = waiting[done]
            try:
                runs.append(done.result())
            except ShrinkcError as error:
                pool.shutdown(cancel_futures=True)
                raise SystemExit(f"{job.name}: {error}") from None
            passed = time.monotonic() - began
            line = f"{len(runs):3} of {len(jobs)}  {passed:5.0f} s  {job.name} ({runs[-1].seconds:.0f} s)"
            print(line, file=sys.stderr, flush=True)
    runs.sort(key=lambda r: jobs.index(r.job))
    if args.formats:
        widths = {FORMATS[name].get("bits", WIDEST) for name in args.formats}
        table = extended(runs, read_table(COSTS / f"{args.target}.json"), widths)
        write_file(output, json.dumps(table.to_json(), indent=1) + "\n")
        for op, error in check([r for r in runs if r.job.held_out], table)[0].items():
            print(
                f"{op}: median {error.median:.1%}, 90th percentile {error.p90:.1%} of {args.formats}"
            )
        return
    table = calibrated(runs, args.target)
    write_file(output, json.dumps(table.to_json(), indent=1) + "\n")
    if args.output is None:
        figures.write(
            "cost_model", title="Error of the cost model on shapes that it was not fitted to.",
            command="make calibrate", machine=figures.GVSOC, rows=rows(table),
            columns={"op": "Operation", "runs": "Held-out runs", "median": "Median error", "p90": "90th percentile"},
            formats={"median": "{:.1f} %", "p90": "{:.1f} %"},
        )  # fmt: skip
    for row in rows(table):
        print(f"{row['op']}: median {row['median']:.1f} %, 90th percentile {row['p90']:.1f} %")


if __name__ == "__main__":
    main()
