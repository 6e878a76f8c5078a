"""A compression run as a report: one object, of which a page of HTML is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shrinkc.compression.inspecting import read_records
from shrinkc.compression.run_directory import CHOSEN, RECIPE, RUN, is_run
from shrinkc.compression.sensitivity import MODULES
from shrinkc.compression.steps import StepRecord, read_json
from shrinkc.compression.summary import rows_of, same_tokens
from shrinkc.core.errors import BadStep
from shrinkc.core.parsing import is_number
from shrinkc.core.shell import name_of

SENSITIVITY = "sensitivity.json"  # as `shrinkc sensitivity -o` calls it

# what is null where it was not measured
_OPTIONAL = (
    "vocabulary", "perplexity", "bits_per_byte", "trivia_closed", "trivia_open", "hellaswag", "hellaswag_norm",
)  # fmt: skip
_NO_FIGURES = ("protocol", "measured")

Data = dict[str, Any]


def run_report(path: Path) -> Data | None:
    """Everything that a run says of itself, the hashes of its files checked; None where ``path`` is no run.

    BadStep where no step of it can be read; a damaged one beside others is a note.
    """
    if not is_run(path):
        return None
    about = read_json(path / RUN)
    found, notes = read_records(path)
    records = [record for record in found if _readable(record, notes)]
    if not records:
        raise BadStep(
            f"no step of the run {path} can be read" + "".join(f": {note}" for note in notes[:1])
        )
    rows = rows_of(records)
    return {
        "kind": "compression run",
        "name": str(about.get("model")),
        "directory": name_of(path),
        "recipe": _recipe(path, about),
        "seconds": round(sum(record.seconds for record in records), 3),
        "same_tokens": same_tokens(rows),
        "steps": [
            {**asdict(row), "stage": record.stage, "notes": record.notes, "settings": record.settings,
             "samples": _samples(record)}
            for row, record in zip(rows, records, strict=True)
        ],
        "sensitivity": _sensitivity(path, notes),
        "notes": notes,
    }  # fmt: skip


def _readable(record: StepRecord, notes: list[str]) -> bool:
    """Whether the figures of a step are numbers and its texts texts; else that is a note."""
    row = asdict(rows_of([record])[0])
    texts = [
        row.pop("name"),
        record.stage,
        *(record.notes if type(record.notes) is list else [None]),
    ]
    figures = [v for key, v in row.items() if key not in (*_OPTIONAL, *_NO_FIGURES)]
    figures += [row[key] for key in _OPTIONAL if row[key] is not None]
    figures += [] if row["measured"] is None else [row["measured"].get("text_tokens")]
    texts += [] if row["protocol"] is None else [row["protocol"]]
    numbers = all(map(is_number, figures))
    if numbers and all(type(text) is str for text in texts):
        return True
    notes.append(f"{record.name} was left out: a figure of it is no number, or a text none")
    return False


def _recipe(path: Path, about: Mapping[str, Any]) -> str:
    with suppress(OSError, ValueError):
        return (path / RECIPE).read_text(encoding="utf-8")
    return str(about.get("recipe", ""))


def _samples(record: StepRecord) -> list[Data]:
    with suppress(KeyError, TypeError, AttributeError):
        texts = record.metrics["samples"]["texts"]
        return [{"prompt": str(t["prompt"]), "text": str(t["text"])} for t in texts]
    return []


def _sensitivity(path: Path, notes: list[str]) -> Data | None:
    """Of a budget's search, or a file that ``shrinkc sensitivity`` made there."""
    for name in (CHOSEN, SENSITIVITY):
        if not (path / name).is_file():
            continue
        try:
            found = read_json(path / name)
            return _costs(found["report"]["sensitivity"] if name == CHOSEN else found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            notes.append(f"{name} was left out: it holds no sensitivities ({error!r})")
    return None


def _costs(found: Mapping[str, Any]) -> Data:
    """``matrices``: width -> matrix -> divergence per layer; ``all_at``: width -> growth of the loss per layer;
    ``removed``: the same of a whole layer.  Raises for what is no measurement of sensitivity."""
    loss, kl = found["loss"]["layers"], found["kl"]["layers"]
    names = {module: module.split(".")[1].removesuffix("_proj") for module in MODULES}
    widths = list(kl[0]["modules"][MODULES[0]])
    return {
        "unit": str(found["unit"]),
        "baseline": _finite(found["baseline"]),
        "tokens": int(found["tokens"]),
        "samples": int(found["samples"]),
        "layers": len(kl),
        "modules": list(names.values()),
        "matrices": {
            str(bits): {
                short: [_finite(layer["modules"][module][bits]) for layer in kl]
                for module, short in names.items()
            }
            for bits in widths
        },
        "all_at": {
            str(bits): [_finite(layer["bits"][bits]) for layer in loss] for bits in loss[0]["bits"]
        },
        "removed": [_finite(layer["removed"]) for layer in loss],
    }


def _finite(value: Any) -> float:
    """ValueError for what is no number."""
    if not is_number(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
