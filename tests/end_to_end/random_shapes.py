"""Proves random models on every machine, as many as asked for; what was proved is not proved again.

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

from helpers.campaign import PAGE, ROOT, journal_of, provenance, sources_hash, table, write_section
from shrinkc.cli.console import Console
from shrinkc.core.errors import DoesNotFit, QuantizeError
from shrinkc.core.journal import Journal

from .programs import Program, missing
from .shapes import Case, build, draw, prove, requests

REFUSALS = (DoesNotFit, QuantizeError)
SOURCES = ("compiler", "runtime_c", "templates", "toolchain", "tests/end_to_end", "tests/helpers")
TITLE = "Random shapes"
Update = Callable[[int, int, str], None]


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
    """What a shape has that others have not, by heading of the page."""
    plan, stored = program.plan, program.shape.stored
    cache = sorted(plan.kv_layers) or ["l1"]
    return {
        "family": [case.family],
        "target": [case.target.name],
        "bits of a weight": sorted({str(m.bits) for m in stored}),
        "weights": ["stored as integers" if case.stored else "quantised from floats"],
        "side paths": ["with" if case.ranks else "without"],
        "activations": sorted({t.kind for t in program.graph.types.values()} & {"q8", "q16"}),
        "engine": sorted({m.engine for m in stored}),
        "cache in": cache if len(cache) == 1 else [*cache, "several memories"],
        "weights in": sorted({p.level for p in plan.placements}),
    }


def campaign(
    journal: Journal, machines: tuple[str, ...], count: int, update: Update, jobs: int = 1
) -> list[dict[str, Any]]:
    """Tries seeds from 0 on until ``count`` of them matched on all ``machines``, ``jobs`` at once; returns
    the records in order of seeds.

    What ended in a fault before is tried again.
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


def section(found: dict[tuple[str, ...], list[dict[str, Any]]], command: str) -> str:
    """What the page says of the records by machines."""
    rows = []
    for machines, records in found.items():
        faults = sum("fault" in r for r in records)
        refused = sum("refused" in r for r in records)
        compared = sum(sum(r["compared"].values()) for r in records)
        matched = len(records) - faults - refused
        where = " and ".join(machines)
        last = f"0–{len(records) - 1}" if records else "–"
        rows.append([where, matched, faults, refused, compared, last])
    head = ["machine", "shapes that match", "that do not", "refused", "values compared", "seeds"]
    counts: dict[tuple[str, str], Counter[tuple[str, ...]]] = {}
    for machines, records in found.items():
        for record in records:
            if record["compared"]:
                for heading, values in record["traits"].items():
                    for value in values:
                        counts.setdefault((heading, value), Counter())[machines] += 1
    kinds = [
        [heading, value, *(counts[heading, value][m] for m in found)]
        for heading, value in sorted(counts)
    ]
    refusals = Counter(r["refused"] for rs in found.values() for r in rs if "refused" in r)
    said = ", ".join(f"{n} {title}" for title, n in refusals.most_common())
    return "\n".join([
        provenance(command),
        "Every value of a proof is the interpreter's: each layer's output, each logit, each token of a prompt, "
        "of a sampled run from one token, and of one with drafts. Host programs are built in turn with "
        "sanitizers and late transfers, with 8 threads, with 3 threads and late transfers, and plainly. "
        + (f"Refused, as documented: {said}." if said else "None was refused."),
        "",
        table(head, rows),
        "How many of the shapes that ran have",
        "",
        table(["what", "", *(" and ".join(m) for m in found)], kinds),
    ])  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", type=int, default=1000, help="Shapes on host and qemu.")
    parser.add_argument("--gvsoc", type=int, default=100, help="Shapes on GVSoC.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Shapes at a time.")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "random-shapes")
    parser.add_argument("--output", type=Path, default=PAGE, help="The page to write.")
    options = parser.parse_args()
    if lacking := [text for on in ("host", "qemu", "gvsoc") if (text := missing(on))]:
        sys.exit("\n".join(lacking))
    journal = journal_of(options.work / "journal", {"sources": sources_hash(*SOURCES)})
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    began = time.monotonic()
    for machines, count in ((("host", "qemu"), options.host), (("gvsoc",), options.gvsoc)):
        with Console().stage(f"{count} shapes on {' and '.join(machines)}") as update:
            found[machines] = campaign(journal, machines, count, update, options.jobs)
    command = f"make random-shapes HOST={options.host} GVSOC={options.gvsoc}"
    write_section(options.output, TITLE, section(found, command))
    faults = [r for records in found.values() for r in records if "fault" in r]
    for record in faults:
        print(f"{record['case']}: {record['fault']}", file=sys.stderr)
    print(f"{options.output}: written after {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
