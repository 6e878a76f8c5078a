"""Results of a search as picture, table and JSON: the Pareto front of perplexity against bytes."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from shrinkc.compression.explore import Result, front_of, results_of
from shrinkc.compression.pictures import MARKERS, save_picture, style
from shrinkc.core.errors import BadData
from shrinkc.core.fingerprint import differences
from shrinkc.core.output import write_file
from shrinkc.core.parsing import parse_json

MIB = 1 << 20
REASON = 160  # most characters of a reason in a table
# fields of ``measured`` that a reference must have; its other fields are compared too
STATED = ("protocol", "windows", "sha256", "dtype")


@dataclass(frozen=True)
class Reference:
    name: str
    packed_bytes: int
    perplexity: float


def read_references(file: Path, measured: Mapping[str, Any]) -> list[Reference]:
    """Read references from a JSON file: a list of objects with ``name``, ``packed_bytes``, ``perplexity``
    and ``measured``, or the ``run.json`` of ``shrinkc compress``.

    ``measured``: the measurement conditions of the trials.  Raises BadData with the names of all references
    whose conditions are missing or differ.
    """
    found, faults = [], []
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        for row in content["steps"] if isinstance(content, dict) else content:
            if row["perplexity"] is None:
                continue
            name, stated = str(row["name"]), row.get("measured") or {}
            found.append(Reference(name, int(row["packed_bytes"]), float(row["perplexity"])))
            said = {key: stated.get(key) for key in measured if key in STATED or key in stated}
            changed = differences(said, {key: measured[key] for key in said})
            if changed:
                faults.append(f"{name}: {', '.join(changed)}")
        if not found:
            raise ValueError("no perplexity was measured")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(
            f"{file} holds no reference configurations: {type(error).__name__}: {error}.",
            'give [{"name": "…", "packed_bytes": 1, "perplexity": 1.0, "measured": {…}}], or a '
            "run.json.",
        ) from error
    if faults:
        raise BadData(
            f"{file} was not measured as the trials are: {'; '.join(faults)}.",
            "perplexities can be compared when they are measured alike: do that, or leave it out. "
            f"The trials' own 'measured' is {json.dumps(dict(measured), ensure_ascii=False)}.",
        )
    return found


def write_front(
    folder: Path, study: Any, references: Sequence[Reference], about: dict[str, Any]
) -> list[str]:
    """Write ``front.json`` (which includes ``about``), ``front.md`` and ``front.svg`` of the ``study`` into
    ``folder``, each atomically; return the lines of the table."""
    results = results_of(study)
    content = {
        **about,
        "counts": Counter(r.state for r in results),
        "front": [r.to_json() for r in front_of(results)],
        "references": [asdict(r) for r in references],
        "trials": [r.to_json() for r in results],
    }
    lines = front_table(results, references)
    write_file(folder / "front.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_file(folder / "front.md", "\n".join(lines) + "\n")
    draw_front(study, references, folder / "front.svg")
    return lines


def front_table(results: Sequence[Result], references: Sequence[Reference]) -> list[str]:
    """Return the front and the references sorted by bytes, then failed trials, as Markdown."""
    front = front_of(results)
    names = list(dict.fromkeys(name for r in front for name in r.values))
    rows: list[tuple[int, list[str]]] = []
    for r in front:
        assert r.outcome is not None
        values = [show(r.values.get(name, "-")) for name in names]
        rows.append((r.outcome.packed_bytes, [f"trial {r.number}", *_figures(r.outcome), *values]))
    for ref in references:
        rows.append((ref.packed_bytes, [ref.name, *_figures(ref), *("" for _ in names)]))
    header = ["configuration", "MiB", "perplexity", *names]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(cells)} |" for _, cells in sorted(rows, key=lambda row: row[0])]
    complete = sum(r.outcome is not None for r in results)
    lines += ["", f"{complete} trials complete, {len(front)} of them on the front.", ""]
    lines += [
        f"* trial {r.number} {r.state}: {short(r.reason)}" for r in results if r.reason is not None
    ]
    return lines


def short(reason: str) -> str:
    """Shorten a long reason; front.json has the whole text."""
    return reason if len(reason) <= REASON else f"{reason[: REASON - 1]}…"


def show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figures(point: Any) -> list[str]:
    return [f"{point.packed_bytes / MIB:.2f}", f"{point.perplexity:.2f}"]


def draw_front(study: Any, references: Sequence[Reference], file: Path) -> None:
    """Draw all complete trials with Optuna, the front in red, and the references with their names."""
    with style(), warnings.catch_warnings():
        from matplotlib import pyplot as plt
        from optuna.exceptions import ExperimentalWarning
        from optuna.visualization.matplotlib import plot_pareto_front

        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = plot_pareto_front(
            study,
            targets=lambda trial: (trial.values[0] / MIB, trial.values[1]),
            target_names=["stored MiB", "loss, nats per token"],
        )
        for ref, marker in zip(references, cycle(MARKERS[1:]), strict=False):
            at = ref.packed_bytes / MIB, math.log(ref.perplexity)
            axes.plot(*at, marker, label=ref.name)
        if axes.has_data():
            axes.legend()
        axes.set_title("")
        save_picture(axes.figure, file)
        plt.close(axes.figure)
