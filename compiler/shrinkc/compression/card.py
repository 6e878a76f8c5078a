"""The model card of a step: its README.md, in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import Loading
from shrinkc.compression.compiled_choices import compiled_bytes
from shrinkc.compression.facts import FLOAT_BYTES
from shrinkc.compression.recipe import Recipe
from shrinkc.compression.steps import CARD, StepRecord
from shrinkc.compression.summary import rows_of
from shrinkc.core.output import write_file
from shrinkc.core.words import show_metric, show_size, show_time
from shrinkc.evaluation.rows import task_errors, task_values
from shrinkc.importer import stated_license
from shrinkc.importer.gptq_config import is_quantized

HASHED = ".safetensors"
HEAD_OF_HASH = 16  # digits of a SHA-256 that a card shows; step.json has all


@dataclass(frozen=True)
class About:
    """Facts of the whole run for a card.  ``model``: name of the original.  ``hub``: its id on the Hugging Face hub, or
    empty.  ``license``: of its weights, or empty.  ``recipe``: name of the recipe, ``stages``: names of its stages."""

    model: str
    hub: str
    license: str
    recipe: str
    stages: Sequence[str]

    @classmethod
    def of(cls, given: str, source: Path, recipe: Recipe) -> About:
        """Return what is known of a run of ``recipe`` on the model ``source``, which the user called ``given``."""
        is_hub = not Path(given).exists() and given.count("/") == 1
        return cls(
            given if is_hub else source.name, given if is_hub else "", stated_license(source), recipe.name,
            [stage.name for stage in recipe.stages],
        )  # fmt: skip


def write_card(folder: Path, about: About, records: Sequence[StepRecord]) -> None:
    """Write :func:`card` into ``folder``."""
    write_file(folder / CARD, card(folder, about, records))


def card(folder: Path, about: About, records: Sequence[StepRecord]) -> str:
    """Return the model card of the last of ``records``, whose files are in ``folder``; the first is the original.

    It contains no path of this machine."""
    record, loading = records[-1], Loading.of(folder)
    quantised = is_quantized(folder)
    rows = rows_of(records)
    share = rows[-1].share
    lines = [
        *_front(about, loading),
        f"# {about.model}, {share:.1%} of its bf16 size",
        "",
        f"Made by shrinkc from {about.model}, step `{record.name}` of the recipe "
        f"`{about.recipe}` ({', '.join(about.stages)}). `step.json` has all settings and hashes.",
        "",
        "| | original | this model |",
        "|---|---:|---:|",
        *(f"| {name} | {before} | {after} |" for name, before, after in _compared(folder, records)),
        "",
        f"Seed {record.seed}, {record.threads} threads of torch; all steps took "
        f"{show_time(sum(r.seconds for r in records))}. ±: standard error. "
        "Packed bytes: integers at their width, scales and all other numbers at 16 bits.",
        *_samples(record.metrics),
        "",
        "## Load it",
        "",
        loading.section(),
        "For a microcontroller: `shrinkc compile . --target siracusa -o program`.",
        *(["For llama.cpp: `shrinkc export . --gguf model.gguf`."] if quantised else []),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _front(about: About, loading: Loading) -> list[str]:
    """Return the YAML head that the hub reads."""
    facts = {
        "library_name": "transformers" if loading.plain else loading.libraries[0],
        "pipeline_tag": "text-generation",
        "tags": ["shrinkc", "compressed"],
        "base_model": about.hub or None,
        "license": about.license or None,
    }
    # a JSON value is a YAML value
    return ["---", *(f"{k}: {json.dumps(v)}" for k, v in facts.items() if v), "---", ""]


def _compared(folder: Path, records: Sequence[StepRecord]) -> list[tuple[str, str, str]]:
    """Return (what, original, this model) of sizes and measurements; rows without a value are left out."""
    first, *_, last = (*records[:1], *records)
    before, after = rows_of([first, last]) if last is not first else rows_of([first]) * 2
    a, b = first.figures, last.figures
    half_precision = FLOAT_BYTES * a["parameters"]
    compiled = compiled_bytes(folder)
    original, measured = (record.metrics.get("perplexity", {}) for record in (first, last))
    base = measured.get("base", {})
    found: list[tuple[str, Any, Any]] = [
        ("layers, FFN channels, KV heads", _shape(a), _shape(b)),
        ("parameters", f"{a['parameters']:,}", f"{b['parameters']:,}"),
        ("packed bytes", show_size(a["packed_bytes"]), show_size(b["packed_bytes"])),
        (
            "compiled weights for siracusa", "",
            None if compiled is None
            else f"{show_size(compiled)}, {compiled / half_precision:.1%} of bf16",
        ),
        ("on disk", show_size(a["bytes_on_disk"]), show_size(b["bytes_on_disk"])),
        (
            f"perplexity ({after.protocol}; per token)",
            _figure(original, "perplexity", 2), _figure(measured, "perplexity", 2),
        ),
        ("perplexity ÷ the original's", "", _figure(base, "ratio", 3)),
        ("KL divergence to the original, nats per token", "", _figure(base, "divergence", 4)),
        ("bits per byte", _number(before.bits_per_byte, 4), _number(after.bits_per_byte, 4)),
        *((name, _task(first.metrics, name), _task(last.metrics, name)) for name in after.tasks),
        *(
            (f"SHA-256 of {name}", "", f"{file.sha256[:HEAD_OF_HASH]}…")
            for name, file in last.files.items() if name.endswith(HASHED)
        ),
    ]  # fmt: skip
    return [(what, x or "–", y) for what, x, y in found if y]


def _figure(measured: Mapping[str, Any], key: str, digits: int) -> str | None:
    """Return a figure of an evaluation with its standard error; None if it was not measured."""
    shown, error = (_number(measured.get(k), digits) for k in (key, f"{key}_standard_error"))
    return f"{shown} ± {error}" if shown and error else shown


def _task(metrics: Mapping[str, Any], name: str) -> str:
    shown, error = (show_metric(name, of(metrics).get(name)) for of in (task_values, task_errors))
    return f"{shown.removesuffix(' %')} ± {error}" if shown and error else shown


def _shape(figures: Mapping[str, Any]) -> str:
    return f"{figures['layers']}, {figures['intermediate']}, {figures['kv_heads']}"


def _number(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _samples(metrics: Mapping[str, Any]) -> list[str]:
    samples = metrics.get("samples", {}).get("texts", [])
    lines = ["", "## Samples"] if samples else []
    for sample in samples:
        lines += ["", f"Prompt: {sample['prompt']!r}", "", f"> {' '.join(sample['text'].split())}"]
    return lines
