"""Sensitivity of quality to removing, narrowing and quantising each part of a model."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import load, resolve, use_threads
from shrinkc.compression.sensitivity import Sensitivity, measure, split_text
from shrinkc.compression.sensitivity_output import draw, table
from shrinkc.compression.texts import is_file, read_texts
from shrinkc.core.errors import Interrupted, UnsupportedModel
from shrinkc.core.inputs import check_text_files
from shrinkc.core.output import check_folder, make_folder, remove_folders, write_file
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of, printable

RESULT, PICTURE, STATE = "sensitivity.json", "sensitivity.svg", "probes.jsonl"


@dataclass(frozen=True)
class SensitivityRequest:
    """Options of a measurement.  ``output``: directory in which an interrupted measurement continues."""

    model: str
    text: tuple[str, ...]
    samples: int
    length: int
    dtype: str
    threads: int
    output: Path | None


@dataclass(frozen=True)
class Measured:
    """Measurement ``found`` for ``request``; ``model`` and ``text`` are names."""

    request: SensitivityRequest
    model: str
    text: list[str]
    found: Sensitivity

    def lines(self) -> list[str]:
        """Return a table."""
        return table(self.found)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {"model": self.model, "text": self.text, **self.found.to_json()}

    def write(self) -> None:
        """Write JSON and picture if ``output`` is set."""
        if self.request.output is not None:
            write_file(self.request.output / RESULT, json.dumps(self.to_json(), indent=1) + "\n")
            draw(self.found, self.request.output / PICTURE)


def measure_sensitivity(request: SensitivityRequest, reporter: Reporter) -> Measured:
    """Measure; each measurement is stored in the output directory, so that the command can resume."""
    check_text_files(("--text", Path(text)) for text in request.text if is_file(text))
    use_threads(request.threads)
    if request.output is None:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(request, Path(folder), reporter)
    check_folder(request.output, lambda folder: (folder / STATE).is_file())
    made = make_folder(request.output)
    try:
        return _measured(request, request.output, reporter)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; {request.output} keeps the completed measurements.",
            "run the same command again to continue.",
        ) from stop
    finally:
        remove_folders(made)  # those still empty, after a refusal before any measurement


def _measured(request: SensitivityRequest, folder: Path, reporter: Reporter) -> Measured:
    with reporter.stage("loading"):
        loaded = load(resolve(request.model), dtype=request.dtype)
    if loaded.kind == "gptq":
        raise UnsupportedModel(
            f"{request.model} is quantised already.", "give the float model that it was made from."
        )
    texts = read_texts(request.text, "--text")
    windows, fit = split_text(texts, loaded.tokenizer, request.samples, request.length)
    found = measure(loaded.model, windows, fit, folder / STATE, reporter)
    names = [printable(Path(text).name) for text in request.text]
    return Measured(request, name_of(loaded.path), names, found)
