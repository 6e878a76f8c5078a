"""Summary of a run: a table with a row per step, and a picture of bytes against perplexity."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shrinkc.compression.run_directory import FORMAT, PICTURE, RECIPE, RUN, TABLE, VERSION
from shrinkc.compression.steps import StepRecord, write_json
from shrinkc.core.output import write_file
from shrinkc.core.words import show_metric, show_size
from shrinkc.evaluation import COMPARED
from shrinkc.evaluation.rows import task_values
from shrinkc.pictures.quality import Measured, quality

MIB = 1 << 20
_SIZES = (
    "On disk: all files of the step's directory, with tokenizer. Packed: the weights alone, integers at their width, "
    "all other numbers at 16 bits; of bf16: packed bytes ÷ bytes of the original weights in bf16."
)


@dataclass(frozen=True)
class Row:
    """A step; values that were not measured are None.

    ``share``: packed bytes ÷ bytes of the original model in bf16.  ``vocabulary``: number of tokens.  ``measured``:
    conditions of the perplexity, which must be equal for a comparison.  ``tasks``: values by task and metric.
    """

    name: str
    layers: int
    intermediate: int
    kv_heads: int
    vocabulary: int | None
    parameters: int
    non_zeros: int
    bytes_on_disk: int
    packed_bytes: int
    share: float
    perplexity: float | None
    bits_per_byte: float | None
    protocol: str | None
    measured: dict[str, Any] | None
    tasks: dict[str, float]
    seconds: float


def rows_of(records: Sequence[StepRecord]) -> list[Row]:
    """Return a row per record; the first record is the original model."""
    original_bytes = 2 * records[0].figures["parameters"] if records else 1
    return [_row(record, original_bytes) for record in records]


def _row(record: StepRecord, original_bytes: int) -> Row:
    figures, metrics = record.figures, record.metrics
    sizes = (
        "layers",
        "intermediate",
        "kv_heads",
        "parameters",
        "non_zeros",
        "bytes_on_disk",
        "packed_bytes",
    )
    return Row(
        name=record.name,
        vocabulary=figures.get("vocabulary"),
        share=figures["packed_bytes"] / original_bytes,
        perplexity=_at(metrics, "perplexity", "perplexity"),
        bits_per_byte=_at(metrics, "perplexity", "bits_per_byte"),
        protocol=_at(metrics, "perplexity", "protocol"),
        measured=_measured(metrics),
        tasks=task_values(metrics or {}),
        seconds=record.seconds,
        **{size: figures[size] for size in sizes},
    )


def _measured(metrics: Any) -> dict[str, Any] | None:
    about = _at(metrics, "perplexity")
    return None if about is None else {key: about[key] for key in COMPARED if key in about}


def _at(metrics: Any, *keys: str) -> Any:
    for key in keys:
        metrics = metrics.get(key) if isinstance(metrics, dict) else None
    return metrics


@dataclass(frozen=True)
class CompressionResult:
    """A finished compression run, or one that was only checked.

    Attributes:
        out: The directory of the run.
        rows: The original and each step, with sizes and quality.  Empty after a dry run.
        final: Directory of the last model.
        estimate: Expected time and memory, for people.
        notes: Remarks to read before the run.
    """

    out: Path
    rows: list[Row]
    final: Path
    estimate: str
    notes: list[str]

    def __repr__(self) -> str:
        if not self.rows:
            return f"<CompressionResult {self.out}: nothing was written; {self.estimate}>"
        last = self.rows[-1]
        quality = "" if last.perplexity is None else f", perplexity {last.perplexity:.2f}"
        return f"<CompressionResult {self.final}: {len(self.rows) - 1} steps, {last.share:.1%} of bf16{quality}>"

    def lines(self) -> list[str]:
        if not self.rows:
            return ["nothing was written (--dry-run)"]
        lines, same = [], same_tokens(self.rows)
        for row in self.rows:
            quality = "" if row.perplexity is None else f"  perplexity {row.perplexity:.2f}"
            if not same and row.bits_per_byte is not None:
                quality = f"  {row.bits_per_byte:.4f} bits per byte"
            lines.append(
                f"{row.name:<16} {row.layers} layers, FFN {row.intermediate}: "
                f"{show_size(row.packed_bytes)} packed, {row.share:.1%} of bf16{quality}"
            )
        return [*lines, f"{self.out / TABLE}; the model is {self.final}"]

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.out),
            "final": str(self.final),
            "estimate": self.estimate,
            "notes": self.notes,
            "steps": [asdict(row) for row in self.rows],
        }


def write_summary(out: Path, model: str, recipe: str, records: Sequence[StepRecord]) -> None:
    """Write run.json, table.md, run.svg and recipe.toml of a run; ``recipe`` is a TOML text."""
    rows = rows_of(records)
    write_file(out / RECIPE, recipe)
    write_file(out / TABLE, markdown(rows))
    about = {"format": FORMAT, "version": VERSION, "model": model, "recipe": recipe}
    write_json(out / RUN, about | {"steps": [asdict(row) for row in rows]})
    if (drawn := picture(rows)) is not None:
        write_file(out / PICTURE, drawn[1])


def markdown(rows: Sequence[Row]) -> str:
    """Return the table.  Packed bytes: integers at their width, all other numbers at 16 bit."""
    tasks = task_names(rows)
    head = (
        "step", "layers", "FFN", "KV heads", "tokens", "parameters", "non-zeros", "on disk, MiB",
        "packed, MiB", "of bf16", "perplexity", "bits per byte", *tasks, "seconds",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = (
            row.name, row.layers, row.intermediate, row.kv_heads, row.vocabulary,
            f"{row.parameters:,}", f"{row.non_zeros:,}", f"{row.bytes_on_disk / MIB:.1f}",
            f"{row.packed_bytes / MIB:.1f}", f"{row.share:.1%}", _number(row.perplexity, 2),
            _number(row.bits_per_byte, 4),
            *(show_metric(name, row.tasks.get(name)) for name in tasks),
            f"{row.seconds:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    protocols = sorted({row.protocol for row in rows if row.protocol})
    about = "\n".join(["", *textwrap.wrap(_SIZES, 100), ""])
    note = f"\nPerplexity: {', '.join(protocols)}; step.json has the whole protocol.\n"
    if not same_tokens(rows):
        note += "It is per token: between steps of different tokens, bits per byte compare.\n"
    return "\n".join(lines) + "\n" + about + (note if protocols else "")


def same_tokens(rows: Sequence[Row]) -> bool:
    """Return whether all measured rows predicted the same tokens, so that perplexities can be compared."""
    return len({row.measured["text_tokens"] for row in rows if row.measured}) <= 1


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def task_names(rows: Sequence[Row]) -> list[str]:
    """Return the task metrics of all steps, in the order of measurement."""
    return list(dict.fromkeys(name for row in rows for name in row.tasks))


def picture(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return the name of the measure and an SVG document of it over packed bytes; None if no step was measured.

    The measure is perplexity, or bits per byte if the tokens of the steps differ."""
    perplexity = same_tokens(rows)
    steps = [
        Measured(row.name, row.packed_bytes, value, _said(row))
        for row in rows
        if (value := row.perplexity if perplexity else row.bits_per_byte) is not None and value > 0
    ]
    measure = "perplexity" if perplexity else "bits per byte"
    protocols = ", ".join(sorted({row.protocol for row in rows if row.protocol}))
    svg = quality(steps, f"{measure} ({protocols})")
    return None if svg is None else (measure, svg)


def _said(row: Row) -> str:
    return (
        f"{row.name}: {show_size(row.packed_bytes)}, {100 * row.share:.1f} % of bf16; perplexity "
        f"{_number(row.perplexity, 2) or '–'}, {_number(row.bits_per_byte, 4) or '–'} bits per byte"
    )
