"""The outcome of a search: a picture, a table and a file of the quality-against-bytes front."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shrinkc.compression.explore import Outcome, Result, front_of
from shrinkc.compression.pictures import COLOURS, MARKERS, save_picture, style
from shrinkc.core.errors import BadData
from shrinkc.core.output import write_file
from shrinkc.core.parsing import parse_json

MIB = 1 << 20
REASON = 160  # characters of a reason in a table
# what a reference has to say of how it was measured; what else it says is compared as well
STATED = ("protocol", "windows", "sha256", "dtype")
LABELS_APART = 0.03  # of the picture's width


@dataclass(frozen=True)
class Reference:
    """A configuration to compare with."""

    name: str
    packed_bytes: int
    perplexity: float


def read_references(file: Path, measured: Mapping[str, Any]) -> list[Reference]:
    """References from a JSON file: a list of objects with ``name``, ``packed_bytes``, ``perplexity``
    and ``measured``, or the ``run.json`` of ``shrinkc compress``.

    ``measured``: how the trials are measured, which every reference has to share.  Raises BadData
    that names all that do not, or do not say.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{file} is no readable JSON file: {error}.") from error
    faults: dict[str, list[str]] = {}
    try:
        rows = _rows_of_run(content) if isinstance(content, dict) else list(content)
        found = [
            Reference(str(row["name"]), int(row["packed_bytes"]), float(row["perplexity"]))
            for row in rows
        ]
        for row in rows:
            if words := _otherwise(row.get("measured"), measured):
                faults.setdefault(words, []).append(str(row["name"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(
            f"{file} holds no reference configurations: {type(error).__name__}: {error}.",
            'give [{"name": "…", "packed_bytes": 1, "perplexity": 1.0, "measured": {…}}], or a '
            "run.json.",
        ) from error
    if not found:
        raise BadData(f"{file} holds no configuration whose perplexity was measured.")
    if faults:
        each = [f"{', '.join(names)}: {words}" for words, names in faults.items()]
        raise BadData(
            f"{file} cannot be shown beside the trials: {'; '.join(each)}.",
            "perplexities can be compared when they are measured alike: do that, or leave it out. "
            f"The trials' own 'measured' is {json.dumps(dict(measured), ensure_ascii=False)}.",
        )
    return found


def _otherwise(stated: Any, measured: Mapping[str, Any]) -> str:
    """What keeps a reference from being compared, in words; "" when nothing does."""
    if not isinstance(stated, Mapping):
        return "how it was measured is not said ('measured' is missing)"
    missing = [key for key in STATED if key not in stated]
    if missing:
        return f"'measured' does not say {', '.join(missing)}"
    return ", ".join(
        f"{key} is {stated[key]}, that of the trials {value}"
        for key, value in measured.items()
        if key in stated and stated[key] != value
    )


def write_front(
    folder: Path, results: Sequence[Result], references: Sequence[Reference], about: dict[str, Any]
) -> list[str]:
    """Writes ``front.json``, ``front.md`` and ``front.svg`` into ``folder``, each whole; returns
    the lines of the table.  ``about`` goes into the JSON."""
    front = front_of(list(results))
    content = {
        **about,
        "counts": {
            state: sum(r.state == state for r in results)
            for state in ("complete", "infeasible", "failed")
        },
        "front": [r.to_json() for r in front],
        "references": [asdict(r) for r in references],
        "trials": [r.to_json() for r in results],
    }
    lines = front_table(results, references)
    write_file(folder / "front.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_file(folder / "front.md", "\n".join(lines) + "\n")
    draw_front(results, references, folder / "front.svg")
    return lines


def front_table(results: Sequence[Result], references: Sequence[Reference]) -> list[str]:
    """The front and the references by their bytes, then what failed, as Markdown."""
    front = front_of(list(results))
    names = list(dict.fromkeys(name for r in front for name in r.values))
    rows: list[tuple[float, list[str]]] = []
    for r in front:
        assert r.outcome is not None
        values = [_show(r.values.get(name, "-")) for name in names]
        rows.append((r.outcome.packed_bytes, [f"trial {r.number}", *_figures(r.outcome), *values]))
    for ref in references:
        rows.append((ref.packed_bytes, [ref.name, *_figures(ref), *["" for _ in names]]))
    header = ["configuration", "MiB", "perplexity", *names]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(cells)} |" for _, cells in sorted(rows, key=lambda row: row[0])]
    done = sum(r.state == "complete" for r in results)
    lines += ["", f"{done} trials complete, {len(front)} of them on the front."]
    for state in ("infeasible", "failed"):
        reasons: dict[str, list[int]] = {}
        for r in results:
            if r.state == state:
                reasons.setdefault(r.reason or "", []).append(r.number)
        if reasons:
            lines += ["", f"{sum(map(len, reasons.values()))} {state}:", ""]
            lines += [
                f"* trial{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {short(reason)}"
                for reason, numbers in reasons.items()
            ]
    return lines


def short(reason: str) -> str:
    """The beginning of a reason that is long: front.json has all of it."""
    return reason if len(reason) <= REASON else f"{reason[: REASON - 1]}…"


def draw_front(results: Sequence[Result], references: Sequence[Reference], file: Path) -> None:
    """All complete trials, the front as a staircase, and the references by name; log scales."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    front = front_of(list(results))
    on_front = {r.number for r in front}
    others = [r.outcome for r in results if r.outcome and r.number not in on_front]
    best = [r.outcome for r in front if r.outcome]
    with style():
        figure = Figure((7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            plain = ScalarFormatter()
            plain.set_scientific(False)
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
        if others:
            axes.plot(
                [o.packed_bytes / MIB for o in others], [o.perplexity for o in others], "o",
                color="#bbbbbb", markersize=4, label="trials",
            )  # fmt: skip
        if best:
            axes.plot(
                [o.packed_bytes / MIB for o in best], [o.perplexity for o in best], "o-",
                drawstyle="steps-post", color=COLOURS[0], label="front", markersize=5,
            )  # fmt: skip
        for i, ref in enumerate(references):
            axes.plot(
                [ref.packed_bytes / MIB], [ref.perplexity], MARKERS[1 + i % (len(MARKERS) - 1)],
                color=COLOURS[1 + i % (len(COLOURS) - 1)], label=ref.name, markersize=7,
            )  # fmt: skip
        for number, outcome in _apart(front):
            axes.annotate(
                str(number), (outcome.packed_bytes / MIB, outcome.perplexity), xytext=(4, 4),
                textcoords="offset points", fontsize=7, color=COLOURS[0],
            )  # fmt: skip
        axes.set_xlabel("stored bytes, MiB")
        axes.set_ylabel("perplexity")
        if best or references:
            axes.legend(loc="best")
        _few_ticks(axes)
        save_picture(figure, file)


def _apart(front: Sequence[Result]) -> list[tuple[int, Outcome]]:
    """Number and outcome of those of the front whose labels do not lie on one another."""
    found = [(r.number, r.outcome) for r in front if r.outcome]
    out = found[:1]
    for number, outcome in found[1:]:
        ratio = outcome.packed_bytes / out[-1][1].packed_bytes
        whole = found[-1][1].packed_bytes / found[0][1].packed_bytes
        if math.log(ratio) > LABELS_APART * math.log(whole):
            out.append((number, outcome))
    return out


def _few_ticks(axes: Any) -> None:
    """Numbers at 1, 2 and 5 times powers of ten: within one decade a log scale shows none."""
    from matplotlib.ticker import LogLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))


def _figures(point: Any) -> list[str]:
    return [f"{point.packed_bytes / MIB:.2f}", f"{point.perplexity:.2f}"]


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} = {_show(v)}" for k, v in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rows_of_run(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a compress run that were measured."""
    return [row for row in run["steps"] if row["perplexity"] is not None]
