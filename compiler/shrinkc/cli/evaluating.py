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
from shrinkc.core.output import check_file, write_file
from shrinkc.evaluation.rows import figures


def run(
    model: str,
    *,
    windows: str,
    sample: tuple[str, ...],
    output: Path | None,
    env: Mapping[str, str],
    console: Console,
    as_json: bool,
    **options: Any,
) -> None:
    """Measures, writes ``output`` whole, and prints a table (or with ``as_json`` the report), also
    when ``output`` cannot be written after all."""
    count = _windows(windows)
    if output is not None:
        check_file(output)
    report = shrinkc.evaluate(
        model, windows=count, samples=sample, env=env, reporter=console, **options
    )
    try:
        if output is not None:
            write_file(output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    finally:
        if as_json:
            print_json(report)
        else:
            for line in lines(report):
                click.echo(line)


def lines(report: Mapping[str, Any]) -> list[str]:
    """The table of a report for people, then the sampled texts."""
    model = report["model"]
    about = [model["kind"], model["dtype"]]
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
