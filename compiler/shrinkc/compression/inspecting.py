"""Summary of a compression run and its steps, from their records."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shrinkc.compression.run_directory import RUN, is_run
from shrinkc.compression.steps import FORMAT, STEP, StepRecord, read_json, read_step
from shrinkc.compression.summary import rows_of
from shrinkc.core.errors import BadStep
from shrinkc.core.findings import Findings, Row
from shrinkc.core.shell import name_of
from shrinkc.core.words import show_time

_STEP = re.compile(r"\d\d-.+")
_LEFT_OUT = ("measured", "protocol", "parameters", "non_zeros", "seconds")


def inspect_run(path: Path) -> Findings | None:
    """Return the steps of a run after checking the hashes of their files; None if ``path`` is no run."""
    if not is_run(path):
        return None
    found = Findings("compression run", name_of(path))
    about = read_json(path / RUN)
    records, found.notes = read_records(path)
    steps: list[Row] = []
    for row, record in zip(rows_of(records), records, strict=True):
        values = {key: v for key, v in asdict(row).items() if key not in _LEFT_OUT}
        values["bytes"] = values.pop("packed_bytes")
        values.pop("bytes_on_disk")
        steps.append({"step": values.pop("name"), "stage": record.stage, **values})
    found.facts = {
        "model": about.get("model"),
        "steps": len(records),
        "took": show_time(sum(record.seconds for record in records)),
        "protocol": next((r.protocol for r in rows_of(records) if r.protocol), None),
    }
    found.tables["steps_of_the_run"] = steps
    return found


def read_records(run: Path) -> tuple[list[StepRecord], list[str]]:
    """Return the records of all intact steps, and a message for each damaged one."""
    records, faults = [], []
    for folder in sorted(p for p in run.iterdir() if p.is_dir() and _STEP.fullmatch(p.name)):
        try:
            record = read_step(folder)
            rows_of([record])
            show_time(record.seconds)
            records.append(record)
        except BadStep as damaged:
            faults.append(str(damaged))
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            faults.append(f"{folder / STEP} is damaged: {type(error).__name__} {error}.")
    return records, faults


def step_facts(path: Path) -> dict[str, Any]:
    """Return name and stage of the step that made this directory; {} if none did."""
    try:
        about = read_json(path / STEP)
    except (OSError, ValueError):
        return {}
    if about.get("format") != FORMAT:
        return {}
    return {"step": about.get("name"), "stage": about.get("stage")}
