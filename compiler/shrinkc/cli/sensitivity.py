"""``shrinkc sensitivity``: what removing, narrowing and quantising each part of a model costs."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from shrinkc.checkpoints import load, resolve, use_threads
from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.compression.sensitivity import draw, measure, split_text, table
from shrinkc.compression.texts import is_file, read_texts
from shrinkc.core.errors import Interrupted, UnsupportedModel
from shrinkc.core.inputs import check_text_files
from shrinkc.core.output import check_folder, make_folder, remove_folders, write_file
from shrinkc.core.shell import name_of, printable

RESULT, PICTURE, STATE = "sensitivity.json", "sensitivity.svg", "probes.jsonl"


@dataclass(frozen=True)
class SensitivityRequest:
    """What to measure, on what.  ``output``: a directory that an interrupted run goes on in."""

    model: str
    text: tuple[str, ...]
    samples: int
    length: int
    dtype: str
    threads: int
    output: Path | None


def run(request: SensitivityRequest, *, console: Console, as_json: bool) -> None:
    """Measures, shows the table or the JSON, and leaves both results in the output directory."""
    check_text_files(("--text", Path(text)) for text in request.text if is_file(text))
    use_threads(request.threads)
    if request.output is None:
        with tempfile.TemporaryDirectory() as folder:
            _run(request, Path(folder), console, as_json)
        return
    check_folder(request.output, lambda folder: (folder / STATE).is_file())
    made = make_folder(request.output)
    try:
        _run(request, request.output, console, as_json)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; {request.output} holds the measurements that are complete.",
            "the same command goes on from there.",
        ) from stop
    finally:
        remove_folders(made)  # as far as they are empty: refused before anything was measured


def _run(request: SensitivityRequest, folder: Path, console: Console, as_json: bool) -> None:
    started = time.monotonic()
    with console.stage("loading"):
        loaded = load(resolve(request.model), dtype=request.dtype)
    if loaded.kind == "gptq":
        raise UnsupportedModel(
            f"{request.model} is quantised already.", "give the float model that it was made from."
        )
    texts = read_texts(request.text, "--text")
    windows, fit = split_text(texts, loaded.tokenizer, request.samples, request.length)
    found = measure(loaded.model, windows, fit, folder / STATE, console)
    result = {
        "model": name_of(loaded.path),
        "text": [printable(Path(text).name) for text in request.text],
        **found.to_json(),
    }
    try:
        if request.output is not None:
            write_file(folder / RESULT, json.dumps(result, indent=1) + "\n")
            draw(found, folder / PICTURE)
    finally:  # a measurement that cannot be written is shown all the same
        if as_json:
            print_json(result)
        else:
            write_text("\n".join(table(found)) + "\n")
    console.note(f"{time.monotonic() - started:.0f} s")
    if request.output is not None:
        console.note(f"{request.output}: {RESULT}, {PICTURE}")
