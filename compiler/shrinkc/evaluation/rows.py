"""The figures of an evaluation as rows: measure, value, its standard error, of what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str, str, str]


def figures(report: Mapping[str, Any]) -> list[Row]:
    """Of everything that ``report`` (see :func:`shrinkc.evaluation.evaluate`) has but samples.

    Raises KeyError or TypeError for what is no such report.
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


def _trivia_rows(result: Mapping[str, Any]) -> list[Row]:
    rows = []
    for book in ("closed", "open"):
        part = result[book]
        if part is None:
            rows.append((f"TriviaQA {book} book", "-", "", result["open_reason"]))
            continue
        of = (
            f"{part['items']} questions: {part['exact']} exact, {part['contained']} contained, "
            f"{part['words']} by words"
        )
        share, error = part["accuracy"], part["standard_error"]
        rows.append((f"TriviaQA {book} book", *_percent(share, error), of))
    return rows


def _hellaswag_rows(result: Mapping[str, Any]) -> list[Row]:
    of = f"{result['items']} tasks"
    return [
        (f"HellaSwag {name}", *_percent(result[name], result[f"{name}_standard_error"]), of)
        for name in ("acc", "acc_norm")
    ]


_ROWS = {"perplexity": _perplexity_rows, "trivia": _trivia_rows, "hellaswag": _hellaswag_rows}


def _percent(share: float, error: float | None) -> tuple[str, str]:
    return f"{100 * share:.2f} %", "" if error is None else f"{100 * error:.2f}"
