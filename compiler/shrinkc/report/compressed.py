"""Report page of a compression run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shrinkc.compression.inspecting import read_records
from shrinkc.compression.run_directory import BUDGET, RECIPE, RUN, is_run
from shrinkc.compression.sensitivity import MODULES
from shrinkc.compression.steps import StepRecord, read_json
from shrinkc.compression.summary import Row, picture, rows_of, task_names
from shrinkc.core.errors import BadStep
from shrinkc.core.parsing import as_number, check_fields
from shrinkc.core.shell import name_of
from shrinkc.core.words import show_metric, show_time
from shrinkc.pictures.heat import costs_of_layers, heat
from shrinkc.report.page import (
    NONE,
    Card,
    Column,
    Figure,
    Page,
    Samples,
    Section,
    Source,
    Table,
    digits,
    number,
    percent,
    size,
)

KIND = "compression run"
SENSITIVITY = "sensitivity.json"  # written by `shrinkc sensitivity -o`
_COUNT = digits(0)


def run_page(path: Path) -> Page | None:
    """Return the page of a run, with hashes of its files checked; None if ``path`` is not a run.

    Raises BadStep if no step can be read; if only some are damaged, they become notes.
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
    sensitivities = _sensitivities(_measured(path, notes))
    recipe = Source("recipe", "As it ran (recipe.toml):", _recipe(path, about))
    sections = [
        _verdict(records, rows, notes), _quality(rows), _steps(records, rows), sensitivities, _samples(records),
        Section("recipe", "Recipe", source=recipe),
    ]  # fmt: skip
    return Page(KIND, str(about.get("model")), name_of(path), sections, notes)


def _readable(record: StepRecord, notes: list[str]) -> bool:
    """Return whether all values of a step have the right types; add a note if not."""
    try:
        row = rows_of([record])[0]
        check_fields(row)
        if type(record.stage) is not str or {*map(type, record.notes)} - {str}:
            raise TypeError("a text is none")
        if row.measured is not None:
            as_number(row.measured.get("text_tokens"))
        for value in row.tasks.values():
            as_number(value)
        return True
    except (TypeError, ValueError):
        notes.append(f"{record.name} was left out: a figure of it is no number, or a text none")
        return False


def _recipe(path: Path, about: Mapping[str, Any]) -> str:
    with suppress(OSError, ValueError):
        return (path / RECIPE).read_text(encoding="utf-8")
    return str(about.get("recipe", ""))


def _verdict(records: Sequence[StepRecord], rows: Sequence[Row], notes: Sequence[str]) -> Section:
    first, last = rows[0], rows[-1]
    seconds = sum(record.seconds for record in records)
    packed = (
        f"{percent(last.share)} of the given model in bf16, {size(first.packed_bytes)} as given"
    )
    cards = [
        Card("packed_bytes", "Packed size", size(last.packed_bytes), last.packed_bytes, packed,
             min(1.0, last.share), also={"share": last.share}),
        Card("parameters", "Parameters", number(last.parameters), last.parameters, f"of {number(first.parameters)}"),
        _change("perplexity", "Perplexity", rows, lambda row: row.perplexity, 2),
        _change("bits_per_byte", "Bits per byte", rows, lambda row: row.bits_per_byte, 4),
        Card("steps", "Steps", number(len(rows) - 1), len(rows) - 1, f"took {show_time(seconds)}",
             also={"seconds": seconds}),
    ]  # fmt: skip
    return Section("verdict", "Verdict", cards=cards, notes=notes)


def _change(
    key: str, title: str, rows: Sequence[Row], of: Callable[[Row], float | None], places: int
) -> Card:
    """Return a card with the value of the last measured step and its change from the first."""
    found = [(row, value) for row in rows if (value := of(row)) is not None]
    if not found:
        return Card(key, title, NONE, None, "not measured")
    (first, before), (last, now) = found[0], found[-1]
    note = f"of {last.name}; {number(before, places)} of {first.name}; {last.protocol}"
    return Card(key, title, number(now, places), now, note)


def _quality(rows: Sequence[Row]) -> Section:
    drawn = picture(rows)
    if drawn is None:
        return Section(
            "quality", "Bytes against quality", notes=["No step of this run was measured."]
        )
    measure, svg = drawn
    said = (
        "Each measured step: packed bytes across (integers at their width, all else at 16 bit), "
        f"{measure} upwards, less is better. Point at a step, or use the arrow keys, to see its figures."
    )
    figure = Figure(svg, f"{measure} over bytes")
    return Section("quality", "Bytes against quality", said, figures=[figure])


def _steps(records: Sequence[StepRecord], rows: Sequence[Row]) -> Section:
    tasks = task_names(rows)
    cells = [
        (r.name, record.stage, r.layers, r.intermediate, r.kv_heads, r.vocabulary, r.parameters, r.packed_bytes,
         r.share, r.perplexity, r.bits_per_byte, r.protocol, *map(r.tasks.get, tasks), r.seconds)
        for record, r in zip(records, rows, strict=True)
    ]  # fmt: skip
    columns = (
        Column("step"), Column("stage"), Column("layers", _COUNT), Column("intermediate", _COUNT, "FFN"),
        Column("kv_heads", _COUNT, "KV heads"), Column("vocabulary", _COUNT, "tokens"),
        Column("parameters", _COUNT), Column("packed_bytes", size, "packed"), Column("share", percent, "of bf16"),
        Column("perplexity", digits(2)), Column("bits_per_byte", digits(4)), Column("protocol"),
        *(Column(task, partial(show_metric, task)) for task in tasks),
        Column("seconds", show_time, "took"),
    )  # fmt: skip
    tables = [Table("steps", "Steps", columns, cells)]
    said = [(record.name, note) for record in records for note in record.notes]
    if said:
        tables.append(Table("notes", "What the steps said", (Column("step"), Column("note")), said))
    return Section("steps", "Step by step", tables=tables)


def _samples(records: Sequence[StepRecord]) -> Section:
    found: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        with suppress(KeyError, TypeError, AttributeError):
            for text in record.metrics["samples"]["texts"]:
                found.setdefault(str(text["prompt"]), []).append((record.name, str(text["text"])))
    samples = [Samples(prompt, texts) for prompt, texts in found.items()]
    said = "What each step goes on with after the same prompt, greedily." if samples else ""
    notes = (
        [] if samples else ["No step wrote samples: a recipe asks for them with evaluate.samples."]
    )
    return Section("samples", "Samples side by side", said, samples=samples, notes=notes)


# ---- sensitivities ----


@dataclass(frozen=True)
class Sensitivities:
    """Sensitivities by layer.  ``matrices``: width -> matrix -> divergence if only this matrix has that width.

    ``all_at``: width -> increase in loss if the whole layer has it.  ``removed``: increase in loss without it."""

    unit: str
    tokens: int
    samples: int
    matrices: Mapping[str, Mapping[str, Sequence[float]]]
    all_at: Mapping[str, Sequence[float]]
    removed: Sequence[float]

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Sensitivities:
        """Read a sensitivity measurement.  Raises KeyError, TypeError or ValueError if ``found`` is invalid."""
        loss, kl = found["loss"]["layers"], found["kl"]["layers"]
        names = {module: module.split(".")[1].removesuffix("_proj") for module in MODULES}
        matrices = {
            str(bits): {
                short: [as_number(layer["modules"][module][bits]) for layer in kl]
                for module, short in names.items()
            }
            for bits in kl[0]["modules"][MODULES[0]]
        }
        all_at = {
            str(bits): [as_number(layer["bits"][bits]) for layer in loss]
            for bits in loss[0]["bits"]
        }
        removed = [as_number(layer["removed"]) for layer in loss]
        if len(kl) != len(loss):
            raise ValueError("its layers are not as many")
        counts = int(found["tokens"]), int(found["samples"])
        return cls(str(found["unit"]), *counts, matrices, all_at, removed)


def _measured(path: Path, notes: list[str]) -> Sensitivities | None:
    """Return the sensitivities of a budget's search, or of a file of ``shrinkc sensitivity`` in ``path``."""
    for name in (BUDGET, SENSITIVITY):
        if not (path / name).is_file():
            continue
        try:
            found = read_json(path / name)
            if name == BUDGET:
                if "sensitivity" not in found["report"]:  # only bits were chosen
                    continue
                found = found["report"]["sensitivity"]
            return Sensitivities.of_json(found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            notes.append(f"{name} was left out: it holds no sensitivities ({error!r})")
    return None


def _sensitivities(s: Sensitivities | None) -> Section:
    key, title = "sensitivity", "Sensitivities"
    if s is None:
        note = "No sensitivities lie here: a recipe with a budget measures them, and so does 'shrinkc sensitivity'."
        return Section(key, title, notes=[note])
    figures, tables = [], []
    for bits, costs in s.matrices.items():
        what = f"one matrix at {bits} bit"
        figures.append(Figure(heat(costs, what), f"{what}: divergence, {s.unit}"))
        tables.append(_by_layer(f"matrices_at_{bits}", f"Matrices: divergence, {what}", costs))
    removed = "a layer removed: growth of the loss"
    figures.append(Figure(costs_of_layers(s.removed, removed), f"{removed}, {s.unit}"))
    whole = {"removed: loss grows by": s.removed}
    whole |= {f"all at {bits} bit": costs for bits, costs in s.all_at.items()}
    tables.insert(0, _by_layer("layers", "Layers: growth of the loss", whole))
    said = (
        f"What it costs to change one thing, the rest of the model as it is: {s.unit}, over {s.tokens:,} "
        f"predictions of {s.samples} windows. Stronger colour: costs more (logarithmic)."
    )
    return Section(key, title, said, figures=figures, tables=tables)


def _by_layer(key: str, title: str, costs: Mapping[str, Sequence[float]]) -> Table:
    columns = [Column("layer", _COUNT), *(Column(_key(name), digits(5), name) for name in costs)]
    rows = [(i, *values) for i, values in enumerate(zip(*costs.values(), strict=True))]
    return Table(key, title, columns, rows, folded=True)


def _key(name: str) -> str:
    return name.partition(":")[0].replace(" ", "_")
