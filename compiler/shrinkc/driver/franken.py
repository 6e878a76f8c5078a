"""Comparison of layer configurations (layer passthrough)."""

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
    """Options of the command.  ``name`` may have fewer entries than ``layers``."""

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
        """Raise UsageError for options that contradict each other."""
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
    """Comparison of all configurations with the unchanged model: ``table`` as text, ``result`` as JSON."""

    request: FrankenRequest
    loaded: Loaded
    configuration: franken.Configuration
    table: str
    result: dict[str, Any]

    def write(self, reporter: Reporter) -> None:
        """Save the requested checkpoint and directory."""
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
    """Run the configurations.  Checks outputs first; :meth:`Compared.write` writes them."""
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
    """Return files in an output directory that this command does not write; None if it wrote none of them."""
    if not {"configurations", "story"} <= json_object(folder / RESULT).keys():
        return None
    return [name for name in all_files(folder) if name not in (RESULT, TABLE)]
