"""Figures of an evaluation as rows: measure, value, standard error, subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shrinkc.core.words import show_metric

Row = tuple[str, str, str, str]


def figures(report: Mapping[str, Any]) -> list[Row]:
    """Return a row per figure of ``report`` (see :func:`shrinkc.evaluation.evaluate`); samples have none.

    Raises KeyError or TypeError if ``report`` has another form.
    """
    return [row for name in _ROWS if name in report for row in _ROWS[name](report[name])]


def _perplexity_rows(result: Mapping[str, Any]) -> list[Row]:
    of = f"{result['windows']} windows, {result['tokens']} tokens"
    error = result["perplexity_standard_error"]
    shown = "" if error is None else f"{error:.2f}"
    rows = [(f"{result['protocol']} perplexity", f"{result['perplexity']:.3f}", shown, of)]
    if result["bits_per_byte"] is not None:
        size = f"{result['predicted_bytes']} bytes"
        rows.append(("bits per byte", f"{result['bits_per_byte']:.4f}", "", size))
    return rows + (_base_rows(result["base"]) if "base" in result else [])


def _base_rows(base: Mapping[str, Any]) -> list[Row]:
    name = base["model"]["name"]
    rows = [
        ("divergence", base["divergence"], base["divergence_standard_error"], f"nats per token, from {name}"),
        ("perplexity ratio", base["ratio"], base["ratio_standard_error"],
         f"to {base['perplexity']:.3f} of {name}"),
    ]  # fmt: skip
    shown = [
        (measure, f"{value:.5f}", "" if error is None else f"{error:.5f}", of)
        for measure, value, error, of in rows
    ]
    return [
        *shown,
        ("same likeliest token", f"{100 * base['same_greedy']:.2f} %", "", f"as {name}"),
    ]


def task_values(report: Mapping[str, Any]) -> dict[str, float]:
    """Return "task metric" -> value of all tasks in ``report``."""
    return {
        f"{name} {metric}": found["value"]
        for name, task in report.get("tasks", {}).items()
        for metric, found in task["metrics"].items()
    }


def task_errors(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Return "task metric" -> standard error of all tasks in ``report``; None if it is not known."""
    return {
        f"{name} {metric}": found["standard_error"]
        for name, task in report.get("tasks", {}).items()
        for metric, found in task["metrics"].items()
    }


def _task_rows(tasks: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, task in tasks.items():
        of = f"{task['items']} items" + (f", {task['shots']} shots" if task["shots"] else "")
        for metric, found in task["metrics"].items():
            title, error = f"{name} {metric}", show_metric(metric, found["standard_error"])
            rows.append((title, show_metric(title, found["value"]), error.removesuffix(" %"), of))
    return rows


_ROWS = {"perplexity": _perplexity_rows, "tasks": _task_rows}
