"""``shrinkc eval``: measure a model, float or compiled, and print one table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, replaced_file, write_file
from shrinkc.evaluation.rows import figures


def run(
    model: str,
    *,
    windows: str,
    sample: tuple[str, ...],
    output: Path | None,
    resume: Path | None,
    env: Mapping[str, str],
    console: Console,
    as_json: bool,
    **options: Any,
) -> None:
    """Measures, writes ``output`` whole, and prints a table (or with ``as_json`` the report), also
    when ``output`` cannot be written after all.

    What is scored is kept in ``resume``, or beside ``output``, until the report is where it was asked for."""
    count = _windows(windows)
    if output is not None:
        check_file(output)
        resume = resume or _beside(output)
    try:
        report = shrinkc.evaluate(
            model,
            windows=count,
            samples=sample,
            resume=resume,
            env=env,
            reporter=console,
            **options,
        )
    except (KeyboardInterrupt, SystemExit):
        console.note(_how_to_go_on(resume))
        raise
    try:
        if output is not None:
            write_file(output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    finally:
        if as_json:
            print_json(report)
        else:
            for line in lines(report):
                click.echo(line)
    if resume is not None:
        resume.unlink(missing_ok=True)


def _beside(output: Path) -> Path | None:
    """The place for what was scored so far; none beside a pipe or a device."""
    file = replaced_file(output)
    if file is None:
        return None
    if not output.is_symlink():
        file = output  # as the user calls it
    return file.with_name(f"{file.name}.resume")


def _how_to_go_on(resume: Path | None) -> str:
    if resume is None:
        return "note: with -o FILE or --resume FILE the same command would go on from here"
    if not resume.exists():
        return "note: nothing was scored yet"
    return f"note: the same command goes on from here, with {resume}"


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table of a report for people, then the sampled texts."""
    model = report["model"]
    about = [model["kind"], model["dtype"]]
    if "kv_bits" in model:
        about.append(f"keys and values of {model['kv_bits']} bit")
    if "threads" in model:
        about.append(f"{model['threads']} thread{'s' * (model['threads'] != 1)}")
    if "engine" in model:
        about.append(f"on {model['engine']}")
    rows = figures(report)
    out = [f"{model['name']} ({', '.join(about)})"]
    if rows:
        rows = [("measure", "value", "+-", "of"), *rows]
        width = [max(len(row[i]) for row in rows) for i in range(4)]
        out += [
            f"  {name:{width[0]}}  {value:>{width[1]}}  {error:>{width[2]}}  {of}"
            for name, value, error, of in rows
        ]
    for sample in report.get("samples", {}).get("texts", []):
        out += ["", f"> {sample['prompt']}", sample["text"].strip("\n")]
    return out


def _windows(text: str) -> int | None:
    if text == "all":
        return None
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is None:
        raise UsageError(f"--windows {text} is not possible.", "allowed: 1 and more, or all.")
    return int(text)
