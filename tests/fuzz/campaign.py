"""Tries many changed inputs on every importer in turn, and reduces the changes of those that escape.

    PYTHONPATH=compiler:tests python -m fuzz.campaign -n 20000 --seed 1

A trial is not repeated while no source changes.  Ends with 1 if an input escaped: a traceback, exit code 70 or one that
the importer does not document, a half-written result, a warning, a dead process, or too much time or memory.
``--again SUBJECT/NUMBER`` shows one trial.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import figures

from helpers.campaign import ROOT, journal_of, sources_hash
from shrinkc.cli.console import Console
from shrinkc.core.journal import Journal

from .subjects import SUBJECTS, Subject
from .trial import Outcome, make_input, try_input

SOURCES = ("compiler", "tests/fuzz", "tests/helpers")
# what commands import when they run: once, in the process that all trials are forked from
LOADED = (
    "cli.telling", "driver.compiling", "driver.differing", "driver.evaluating", "driver.inspecting",
    "driver.planning", "driver.running", "compression.inspecting", "compression.stages.gptq", "report.compiled",
    "report.compressed",
)  # fmt: skip
INPUTS = {
    "config": "config.json", "safetensors": "safetensors weights", "gptq": "GPTQ checkpoint",
    "adapter": "low-rank adapter", "gguf": "GGUF file",
    "gguf-types": "GGUF file of newer types (Q2_K to Q6_K, Q5_0, Q5_1, IQ4_NL)", "tokenizer": "tokenizer.json",
    "llama2c": "llama2.c checkpoint",
    "compiled": "compiled directory", "run": "compression run", "report": "report of a compiled directory",
    "run-report": "report of a compression run",
}  # fmt: skip


def load() -> None:
    """Imports what trials need, so that none of them has to."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not live on in a forked process
    for name in LOADED:
        importlib.import_module(f"shrinkc.{name}")


def make_bases(subjects: Iterable[Subject], folder: Path) -> None:
    """Writes the valid inputs of ``subjects`` below ``folder``."""
    for subject in subjects:
        (folder / subject.name).mkdir(parents=True)
        subject.make(folder / subject.name)


def reduced(subject: Subject, bases: Path, seed: str, work: Path, found: Outcome) -> Outcome:
    """The same escape from as few mutations as possible."""
    without: frozenset[int] = frozenset()
    for number in range(5):
        fewer = without | {number}
        outcome = try_input(subject, bases, seed, work, fewer)
        if outcome.escape and outcome.code == found.code and outcome.steps:
            without, found = fewer, outcome
    return found


def campaign(
    subjects: Sequence[Subject],
    bases: Path,
    count: int,
    seed: int,
    journal: Journal,
    update: Callable[[int, int, str], None],
    work: Path,
) -> list[dict[str, Any]]:
    """Tries ``count`` inputs, of every subject in turn; returns the records, those of the journal among them."""
    known = {(r["subject"], r["number"]): r for r in journal.records}
    turns = ((number, subject) for number in itertools.count() for subject in subjects)
    records = []
    escapes = 0
    for done, (number, subject) in enumerate(itertools.islice(turns, count), 1):
        record = known.get((subject.name, number))
        if record is None:
            key, place = f"{seed}/{subject.name}/{number}", work / f"{subject.name}-{number}"
            outcome = try_input(subject, bases / subject.name, key, place)
            record = {
                "subject": subject.name, "number": number, "code": outcome.code, "cpu": outcome.cpu,
                "memory": outcome.memory,
            }  # fmt: skip
            if outcome.escape:
                least = reduced(subject, bases / subject.name, key, place, outcome)
                record |= {"escape": least.escape, "said": least.said, "steps": list(least.steps)}
                record["action"] = list(least.action)
            journal.add(record)
        escapes += "escape" in record
        records.append(record)
        update(done, count, f"{escapes} escaped")
    return records


def rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For docs/results/data/robustness_fuzz.json: inputs of each importer, and of all, by how they ended."""
    names = list(dict.fromkeys(r["subject"] for r in records))
    out = []
    for name in [*names, "all"]:
        of = [r for r in records if name in (r["subject"], "all")]
        codes = Counter(r["code"] for r in of)
        escaped = sum("escape" in r for r in of)
        read = sum(r["code"] == 0 and "escape" not in r for r in of)
        out.append({
            "id": name.replace("-", "_"), "input": INPUTS.get(name, name), "inputs": len(of), "read": read,
            "refused": len(of) - read - escaped, "escaped": escaped,
            "exit_codes": {str(code): codes[code] for code in sorted(codes)},
            "slowest_seconds": max(r["cpu"] for r in of), "largest_mib": max(r["memory"] for r in of) >> 10,
        })  # fmt: skip
    return out


def show(subject: Subject, bases: Path, key: str, place: Path) -> None:
    """Leaves the input of one trial at ``place`` and says how it ended."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    make_input(subject, bases / subject.name, key, place / "in")
    outcome = try_input(subject, bases / subject.name, key, place / "work")
    outcome = reduced(subject, bases / subject.name, key, place / "work", outcome)
    print(
        f"{' '.join(outcome.action)}  in {place}: exit code {outcome.code}, {outcome.escape or 'fine'}"
    )
    print(*outcome.steps, outcome.said, sep="\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=20000, help="Inputs, of all importers together.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "fuzz")
    parser.add_argument("--again", metavar="SUBJECT/NUMBER", help="One trial, with its input kept.")
    parser.add_argument(
        "--only", choices=list(SUBJECTS), help="One importer; its figures have their own file."
    )
    options = parser.parse_args()
    subjects = [SUBJECTS[options.only]] if options.only else list(SUBJECTS.values())
    if lacking := {s.name: s.missing() for s in subjects if s.missing()}:
        sys.exit(f"missing: {lacking}")
    load()
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder) / "bases"
        if options.again:
            name, _, number = options.again.partition("/")
            make_bases([SUBJECTS[name]], bases)
            key = f"{options.seed}/{name}/{int(number)}"
            show(SUBJECTS[name], bases, key, options.work / f"{name}-{number}")
            return
        with Console().stage("making valid inputs"):
            make_bases(subjects, bases)
        about = {"sources": sources_hash(*SOURCES), "seed": options.seed}
        name = f"{options.only}-{options.seed}" if options.only else f"seed-{options.seed}"
        journal = journal_of(options.work / name, about)
        with Console().stage(f"{options.n} inputs") as update:
            records = campaign(
                subjects, bases, options.n, options.seed, journal, update, Path(folder) / "work"
            )
    figures.write(
        "robustness_fuzz" + (f"_{options.only.replace('-', '_')}" if options.only else ""),
        title="Inputs that were changed at random: read, refused with a documented exit code, or escaped.",
        command=f"make fuzz N={options.n} SEED={options.seed}" + (f" ONLY={options.only}" if options.only else ""),
        columns={
            "input": "Input", "inputs": "Changed inputs", "read": "Read", "refused": "Refused", "escaped": "Escaped",
            "exit_codes": "Exit codes",
        },
        rows=rows(records)[: 1 if options.only else None],
    )  # fmt: skip
    escaped = [r for r in records if "escape" in r]
    for r in escaped:
        print(
            f"{r['subject']}/{r['number']}: {r['escape']}", *r["steps"], sep="\n  ", file=sys.stderr
        )
    print(f"{len(escaped)} of {len(records)} escaped", file=sys.stderr)
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()
