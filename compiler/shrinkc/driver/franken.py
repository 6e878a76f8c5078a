"""Configurations of a model's layers, side by side."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shrinkc.checkpoints import Loaded, load, resolve, use_threads, versions
from shrinkc.compression import franken
from shrinkc.core.artifact import all_files
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_directory, new_directory
from shrinkc.core.parsing import json_object
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of
from shrinkc.driver.evaluating import data_path, with_files
from shrinkc.evaluation import EvalPlan, TaskChoice
from shrinkc.importer import load_config

RESULT, TABLE = "comparison.json", "comparison.md"


@dataclass(frozen=True)
class FrankenRequest:
    """The options of the command.  ``name`` may have fewer entries than ``layers``."""

    model: str
    layers: tuple[str, ...]
    name: tuple[str, ...]
    prompt: str
    tokens: int
    seed: int
    text: str | None
    windows: int | None
    task: tuple[str, ...]
    items: int | None
    save: Path | None
    threads: int
    output: Path | None
    force: bool

    def __post_init__(self) -> None:
        """UsageError for options that contradict each other."""
        if len(self.name) > len(self.layers):
            raise UsageError(
                f"there are more --name ({len(self.name)}) than --layers ({len(self.layers)}).",
                "give at most one --name for each --layers, in the same order.",
            )
        if self.save is not None and len(self.layers) != 1:
            raise UsageError(
                f"--save needs exactly one --layers, but {len(self.layers)} are given.",
                "run the command again with the one to save.",
            )
        if self.save is not None and self.output is not None:
            one, other = (Path(os.path.abspath(path)) for path in (self.save, self.output))
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise UsageError(
                    f"--save {self.save} and -o {self.output} are the same directory, or one is inside the other.",
                    "choose two separate directories.",
                )


@dataclass(frozen=True)
class Compared:
    """Every configuration beside the unchanged model: ``table`` for people, ``result`` for programs."""

    request: FrankenRequest
    loaded: Loaded
    configuration: franken.Configuration
    table: str
    result: dict[str, Any]

    def write(self, reporter: Reporter) -> None:
        """Saves the checkpoint and writes the directory that were asked for."""
        request = self.request
        if request.save is not None:
            with reporter.stage("saving"):
                franken.save_checkpoint(self.loaded, self.configuration, request.save)
        if request.output is not None:
            with new_directory(
                request.output, force=request.force, foreign=_beside_result
            ) as folder:
                written = json.dumps(self.result, indent=2, ensure_ascii=False) + "\n"
                (folder / RESULT).write_text(written, encoding="utf-8")
                (folder / TABLE).write_text(self.table, encoding="utf-8")


def compare_layers(request: FrankenRequest, reporter: Reporter) -> Compared:
    """Runs the configurations.  Outputs are tried before, and written by the result."""
    if request.output is not None:
        check_directory(request.output, force=request.force, foreign=_beside_result)
    if request.save is not None:
        check_directory(request.save)
    path = resolve(request.model)
    count = load_config(path).num_layers
    names = [*request.name, *request.layers[len(request.name) :]]
    configurations = [
        franken.Configuration(name, text, franken.parse_layers(text, count))
        for name, text in zip(names, request.layers, strict=True)
    ]
    wanted = EvalPlan(
        text=data_path(request.text), windows=request.windows,
        tasks=tuple(map(TaskChoice.parse, request.task)), items=request.items,
    )  # fmt: skip
    story = franken.Story(request.prompt, request.tokens, request.seed)
    with TemporaryDirectory(prefix="shrinkc-") as fetched:
        plan = with_files(wanted, Path(fetched), reporter)
        use_threads(request.threads)
        with reporter.stage("loading"):
            loaded = load(path)
        rows = franken.compare(loaded, configurations, story, plan, reporter)
    result = {
        "model": name_of(loaded.path),
        "kind": loaded.kind,
        "threads": request.threads,
        "versions": versions(),
        "story": vars(story),
        "configurations": [row.to_json() for row in rows],
    }
    table = "\n".join(franken.table(rows)) + "\n"
    return Compared(request, loaded, configurations[0], table, result)


def _beside_result(folder: Path) -> list[str] | None:
    """Files in an output directory that this command does not make; None if it made none of it."""
    if not {"configurations", "story"} <= json_object(folder / RESULT).keys():
        return None
    return [name for name in all_files(folder) if name not in (RESULT, TABLE)]
