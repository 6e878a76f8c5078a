"""Runs random models on every machine and verifies them; a verified model is not run again.

    PYTHONPATH=compiler:tests python -m end_to_end.random_shapes --host 1000 --gvsoc 100

Ends with 1 where an integer differs, a program does not build, or a shape is refused with anything
but what the compiler documents.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import figures

from helpers.campaign import ROOT, journal_of, sources_hash
from shrinkc.cli.console import Console
from shrinkc.core.errors import DoesNotFit, QuantizeError
from shrinkc.core.journal import Journal

from .programs import Program, missing
from .shapes import Case, build, draw, prove, requests

REFUSALS = (DoesNotFit, QuantizeError)
SOURCES = ("compiler", "runtime_c", "templates", "toolchain", "tests/end_to_end", "tests/helpers")
LABELS = {
    "l1": "L1", "l2": "L2", "wmem": "weight memory", "hyperram": "HyperRAM", "q8": "8 bit", "q16": "16 bit",
}  # fmt: skip
Update = Callable[[int, int, str], None]
Found = dict[tuple[str, ...], list[dict[str, Any]]]
"""Records by the machines that they ran on."""


def try_shape(seed: int, machines: tuple[str, ...]) -> dict[str, Any]:
    """The record of one seed: what the model was, and values compared per machine, or the refusal or
    fault that ended it."""
    case = draw(seed)
    record: dict[str, Any] = {"seed": seed, "case": str(case), "compared": {}}
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = build(case, Path(folder))
            record["traits"] = traits(case, program)
            runs = requests(program, seed)
            for machine in machines:
                record["compared"][machine] = prove(program, machine, seed, runs)
        except REFUSALS as refusal:
            record["refused"] = refusal.title
        except Exception as fault:  # whatever it is, the other seeds are tried
            record["fault"] = f"{type(fault).__name__}: {fault}"
    return record


def traits(case: Case, program: Program) -> dict[str, list[str]]:
    """The properties of a shape."""
    plan, stored = program.plan, program.shape.stored
    cache = sorted(plan.kv_layers) or ["l1"]
    return {
        "Family": [case.family],
        "Target": [case.target.name],
        "Bits of a weight": sorted({str(m.bits) for m in stored}),
        "Weights": ["stored as integers" if case.stored else "quantised from floats"],
        "Low-rank adapters": ["with" if case.ranks else "without"],
        "Activations": sorted({t.kind for t in program.graph.types.values()} & {"q8", "q16"}),
        "Engine": sorted({m.engine for m in stored}),
        "Key-value cache in": cache if len(cache) == 1 else [*cache, "several memories"],
        "Weights in": sorted({p.level for p in plan.placements}),
    }


def campaign(
    journal: Journal, machines: tuple[str, ...], count: int, update: Update, jobs: int = 1
) -> list[dict[str, Any]]:
    """Tries seeds from 0 on until ``count`` of them matched on all ``machines``, ``jobs`` at once; returns
    the records in order of seeds.

    Seeds that ended in a fault before are tried again.
    """
    known = {r["seed"]: r for r in journal.records if r["machines"] == list(machines)}
    known = {seed: r for seed, r in known.items() if "fault" not in r}
    found: list[dict[str, Any]] = []
    matched = 0
    # a fork of a process that has threads may wait forever
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        trials: dict[int, Future[dict[str, Any]]] = {}
        try:
            while matched < count:
                seed = len(found)
                for ahead in range(seed, seed + min(2 * jobs, count - matched)):
                    if ahead not in known and ahead not in trials:
                        trials[ahead] = pool.submit(try_shape, ahead, machines)
                record = known.get(seed)
                if record is None:
                    record = {"machines": list(machines), **trials.pop(seed).result()}
                    journal.add(record)
                found.append(record)
                matched += "fault" not in record and "refused" not in record
                update(matched, count, f"seed {seed + 1}")
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def rows(found: Found) -> list[dict[str, Any]]:
    """For docs/results/data/robustness_shapes.json: a row per group of machines."""
    out = []
    for machines, records in found.items():
        faults, refused = (sum(key in r for r in records) for key in ("fault", "refused"))
        out.append({
            "id": machines[0], "machine": " and ".join(machines).replace("qemu", "QEMU"),
            "matched": len(records) - faults - refused, "differ": faults, "refused": refused,
            "compared": sum(sum(r["compared"].values()) for r in records),
            "seeds": f"0–{len(records) - 1}" if records else None,
        })  # fmt: skip
    return out


def trait_rows(found: Found) -> list[dict[str, Any]]:
    """For docs/results/data/robustness_traits.json: how many of the shapes that ran have a property."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for machines, records in found.items():
        for record in (r for r in records if r["compared"]):
            for trait, found_values in record["traits"].items():
                values = [LABELS.get(value, value) for value in found_values]
                counts.setdefault(trait, {}).setdefault(machines[0], Counter()).update(values)
    return [
        {"id": trait.lower().replace(" ", "_"), "property": trait}
        | {machine: dict(sorted(counted.items())) for machine, counted in counts[trait].items()}
        for trait in sorted(counts)
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", type=int, default=1000, help="Shapes on host and QEMU.")
    parser.add_argument("--gvsoc", type=int, default=100, help="Shapes on GVSoC.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Shapes at a time.")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "random-shapes")
    options = parser.parse_args()
    if lacking := [text for on in ("host", "qemu", "gvsoc") if (text := missing(on))]:
        sys.exit("\n".join(lacking))
    journal = journal_of(options.work / "journal", {"sources": sources_hash(*SOURCES)})
    found: Found = {}
    began = time.monotonic()
    for machines, count in ((("host", "qemu"), options.host), (("gvsoc",), options.gvsoc)):
        with Console().stage(f"{count} shapes on {' and '.join(machines)}") as update:
            found[machines] = campaign(journal, machines, count, update, options.jobs)
    command = f"make random-shapes HOST={options.host} GVSOC={options.gvsoc}"
    figures.write(
        "robustness_shapes", title="Random models compiled and run: all values verified against the interpreter.",
        command=command, rows=rows(found),
        columns={
            "machine": "Machine", "matched": "Models that match", "differ": "Models that differ",
            "refused": "Refused (does not fit)", "compared": "Values checked",
        },
    )  # fmt: skip
    figures.write(
        "robustness_traits", title="How many of the random models have which property.", command=command,
        columns={"property": "Property", "host": "Models on host and QEMU", "gvsoc": "Models on GVSoC"},
        rows=trait_rows(found),
    )  # fmt: skip
    faults = [r for records in found.values() for r in records if "fault" in r]
    for record in faults:
        print(f"{record['case']}: {record['fault']}", file=sys.stderr)
    print(f"{len(faults)} faults after {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
