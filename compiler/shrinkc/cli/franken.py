"""``shrinkc franken``: configurations of a model's layers, side by side."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shrinkc.checkpoints import load, resolve, use_threads, versions
from shrinkc.cli.console import Console, print_json, write_text
from shrinkc.compression import attention_maps, franken
from shrinkc.core.artifact import all_files
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_directory, new_directory
from shrinkc.core.parsing import parse_json
from shrinkc.core.shell import name_of
from shrinkc.driver.evaluating import data_path, with_files
from shrinkc.evaluation.plan import EvalPlan
from shrinkc.importer import load_config

RESULT, TABLE = "comparison.json", "comparison.md"


@dataclass(frozen=True)
class FrankenRequest:
    """What to run and where results go; ``names`` may be fewer than ``layers``."""

    model: str
    layers: tuple[str, ...]
    names: tuple[str, ...]
    story: franken.Story
    plan: EvalPlan
    threads: int
    maps: Path | None
    save: Path | None
    output: Path | None
    force: bool

    @classmethod
    def from_options(
        cls,
        *,
        model: str,
        layers: tuple[str, ...],
        name: tuple[str, ...],
        prompt: str,
        tokens: int,
        seed: int,
        text: str | None,
        windows: int | None,
        hellaswag: str | None,
        hellaswag_items: int | None,
        attention_maps: Path | None,
        save: Path | None,
        threads: int,
        output: Path | None,
        force: bool,
    ) -> FrankenRequest:
        """From the command line's values; UsageError when one is not possible."""
        for option, value in (
            ("--tokens", tokens), ("--threads", threads), ("--windows", windows),
            ("--hellaswag-items", hellaswag_items),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise UsageError(f"{option} {value} is not possible.", "allowed: 1 and more.")
        if not 0 <= seed < 1 << 32:
            raise UsageError(f"--seed {seed} is not possible.", "allowed: 0 to 4294967295.")
        if len(name) > len(layers):
            raise UsageError(
                f"{len(name)} --name for {len(layers)} --layers.",
                "names belong to configurations in the order they are given.",
            )
        if save is not None and len(layers) != 1:
            raise UsageError(
                f"--save stores one configuration, {len(layers)} are given.",
                "run the command once more with the one to be saved.",
            )
        plan = EvalPlan(
            text=data_path(text), windows=windows, hellaswag=data_path(hellaswag),
            hellaswag_items=hellaswag_items,
        )  # fmt: skip
        story = franken.Story(prompt, tokens, seed)
        return cls(model, layers, name, story, plan, threads, attention_maps, save, output, force)

    @property
    def outputs(self) -> list[Path]:
        """The directories to be made."""
        return [p for p in (self.output, self.maps, self.save) if p is not None]


def run(request: FrankenRequest, *, console: Console, as_json: bool) -> None:
    """Runs the configurations and writes, saves and shows what was asked for; shows it also when it
    cannot be written after all."""
    _check_outputs(request)
    path = resolve(request.model)
    configurations = _configurations(request, load_config(path).num_layers)
    use_threads(request.threads)
    with TemporaryDirectory(prefix="shrinkc-") as fetched:
        plan = with_files(request.plan, Path(fetched), console)
        with console.stage("loading"):
            loaded = load(path)
        rows = franken.compare(loaded, configurations, request.story, plan, console)
    result = {
        "model": name_of(loaded.path),
        "kind": loaded.kind,
        "threads": request.threads,
        "versions": versions(),
        "story": vars(request.story),
        "configurations": [row.to_json() for row in rows],
    }
    table = franken.table(rows)
    try:
        with ExitStack() as outputs:  # all appear, or none
            if request.output is not None:
                folder = outputs.enter_context(
                    new_directory(request.output, force=request.force, foreign=_beside_result)
                )
                (folder / RESULT).write_text(
                    json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                )
                (folder / TABLE).write_text("\n".join(table) + "\n", encoding="utf-8")
            if request.maps is not None:
                folder = outputs.enter_context(
                    new_directory(
                        request.maps, force=request.force, foreign=attention_maps.beside_maps
                    )
                )
                shown = [rows[0].configuration, *configurations]
                with console.stage("attention maps"):
                    attention_maps.draw_maps(loaded, shown, request.story.prompt, folder)
            if request.save is not None:
                with console.stage("saving"):
                    franken.save_checkpoint(loaded, configurations[0], request.save)
    finally:
        if as_json:
            print_json(result)
        else:
            write_text("\n".join(table) + "\n")


def _check_outputs(request: FrankenRequest) -> None:
    """What is in the way of the outputs is refused before the model is read."""
    _check_apart(request.outputs)
    if request.output is not None:
        check_directory(request.output, force=request.force, foreign=_beside_result)
    if request.maps is not None:
        check_directory(request.maps, force=request.force, foreign=attention_maps.beside_maps)
    if request.save is not None:
        check_directory(request.save)


def _check_apart(folders: list[Path]) -> None:
    """Each becomes a directory as a whole, so none may lie in another."""
    absolute = [Path(os.path.abspath(folder)) for folder in folders]
    for i, one in enumerate(absolute):
        for j, other in enumerate(absolute):
            if i != j and one.is_relative_to(other):
                raise UsageError(
                    f"{folders[i]} lies in {folders[j]}; both are outputs of this command.",
                    "give -o, --attention-maps and --save directories beside each other.",
                )


def _configurations(request: FrankenRequest, num_layers: int) -> list[franken.Configuration]:
    out = []
    for i, text in enumerate(request.layers):
        name = request.names[i] if i < len(request.names) else text
        out.append(franken.Configuration(name, franken.parse_layers(text, num_layers)))
    taken = {franken.UNCHANGED: franken.UNCHANGED}
    for c in out:
        file = attention_maps.slug(c.name)
        if file in taken:
            raise UsageError(
                f"the configurations '{taken[file]}' and '{c.name}' would share a file name.",
                "give each a --name of its own.",
            )
        taken[file] = c.name
    return out


def _beside_result(folder: Path) -> list[str] | None:
    """Files in an output directory that this command does not make; None if it made none of it."""
    try:
        content = parse_json((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not {"configurations", "story"} <= content.keys():
        return None
    return [name for name in all_files(folder) if name not in (RESULT, TABLE)]
