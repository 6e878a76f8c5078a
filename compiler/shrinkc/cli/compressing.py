"""``shrinkc compress``: from a model and a recipe to a directory with a step per stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import shrinkc
from shrinkc.cli.console import Console, print_json
from shrinkc.cli.units import show_size
from shrinkc.compression.run import CompressionResult
from shrinkc.compression.run_directory import is_run
from shrinkc.compression.summary import same_tokens
from shrinkc.core.errors import Interrupted


def run(
    model: str,
    output: Path,
    recipe: str,
    assignments: Sequence[str],
    *,
    force: bool,
    dry_run: bool,
    device: str,
    as_json: bool,
) -> None:
    """Runs or continues; the table goes to stderr, the JSON object to stdout."""
    console = Console()
    try:
        result = shrinkc.compress(
            model, output, recipe=recipe, assignments=assignments, force=force, dry_run=dry_run,
            device=device, reporter=console,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        if not is_run(output):
            raise Interrupted("stopped before the first step; nothing was written.") from stop
        raise Interrupted(
            f"stopped; {output} holds the steps that are complete.",
            "the same command goes on from there.",
        ) from stop
    for line in _lines(result, dry_run):
        console.note(line)
    if as_json:
        print_json(
            {
                "output": str(result.out),
                "final": str(result.final),
                "estimate": result.estimate,
                "notes": result.notes,
                "steps": [asdict(row) for row in result.rows],
            }
        )


def _lines(result: CompressionResult, dry_run: bool) -> list[str]:
    if dry_run:
        return ["nothing was written (--dry-run)"]
    lines, same = [], same_tokens(result.rows)
    for row in result.rows:
        quality = "" if row.perplexity is None else f"  perplexity {row.perplexity:.2f}"
        if not same and row.bits_per_byte is not None:
            quality = f"  {row.bits_per_byte:.4f} bits per byte"
        lines.append(
            f"{row.name:<16} {row.layers} layers, FFN {row.intermediate}: "
            f"{show_size(row.packed_bytes)} packed, {row.share:.1%} of bf16{quality}"
        )
    return [*lines, f"{result.out / 'table.md'}; the model is {result.final}"]
