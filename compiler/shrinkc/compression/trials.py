"""A trial of a search: a compression run that takes over the steps it shares with earlier ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import load_tokenizer, resolve
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.explore import InfeasibleError, Outcome, Result, front_of
from shrinkc.compression.facts import ModelFacts, facts_of, float_facts
from shrinkc.compression.fingerprint import (
    evaluation_fingerprint,
    run_fingerprint,
    stage_fingerprint,
)
from shrinkc.compression.preflight import order_problems, settle
from shrinkc.compression.recipe import Recipe, parse_recipe, read_tables
from shrinkc.compression.run import compress, evaluation_plan
from shrinkc.compression.run_directory import RUN, SOURCE
from shrinkc.compression.self_text import FOLDER as OWN
from shrinkc.compression.self_text import SelfText
from shrinkc.compression.space import TABLE, Space, Values, parse_space
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.steps import STEP, read_json
from shrinkc.core.errors import BadRecipe, BadStep, RunChanged
from shrinkc.core.fingerprint import Fingerprint, model_fingerprint
from shrinkc.core.inputs import check_text_files
from shrinkc.core.progress import Reporter
from shrinkc.evaluation import text_measured
from shrinkc.importer import load_config


@dataclass
class Trials:
    """The recipe around which is searched, and how a trial of it is run.

    ``tables``: of the recipe's file, without ``[explore]``; ``base``: what its paths are
    relative to.  Trials go to ``folder``/NNNN, runs as ``shrinkc compress`` makes them.
    """

    model: Path
    tables: dict[str, Any]
    space: Space
    assignments: tuple[str, ...]
    base: Path
    folder: Path
    device: str
    reporter: Reporter
    _facts: ModelFacts | None = field(default=None, repr=False)

    def recipe(self, values: Values) -> Recipe:
        """The recipe of a trial.  Raises BadRecipe."""
        tables = self.space.apply(self.tables, values)
        return parse_recipe(tables, self.assignments, base=self.base, name="trial")

    def conditions(self) -> Fingerprint:
        """What all trials have in common: model, texts, seed, versions, and what is not searched.

        Raises BadRecipe when the recipe is not one, or measures no perplexity.
        """
        recipe = self.recipe({})
        if recipe.evaluate is None or recipe.evaluate.text is None:
            raise BadRecipe(
                "the recipe measures no perplexity, by which trials are compared.",
                "add a table [evaluate] with text and, to be quick, windows.",
            )
        if recipe.budget is not None:
            raise BadRecipe(
                "the recipe has a [budget], which makes a search of its own.", "leave it out."
            )
        check_text_files(recipe.text_files())
        with self.reporter.stage("reading the model"):
            found = model_fingerprint(self.model)
        found |= run_fingerprint(recipe) | evaluation_fingerprint(recipe.evaluate)
        given = recipe.calibration
        unwritten = SelfText(self.folder / OWN, recipe.self_text)  # only what decides it counts
        calibration = Calibration(given.text, given.samples, given.length, unwritten)
        searched = {d.name for d in self.space.dimensions}
        for stage in recipe.stages:
            own = stage_fingerprint(stage, calibration)
            found |= {label: value for label, value in own.items() if label not in searched}
        return found | {"stages": [s.name for s in recipe.stages], TABLE: self.space.describe()}

    def measured(self) -> dict[str, Any]:
        """How the perplexity of every trial is measured: ``Row.measured`` of its steps.

        Raises BadData, BadTokenizer, UsageError.
        """
        settings = self.recipe({}).evaluate
        assert settings is not None  # conditions() sees to it
        tokenizer = load_tokenizer(self.model)

        def encode(text: str, *, special: bool) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=special))

        return text_measured(evaluation_plan(settings), encode, settings.dtype)

    def run(self, number: int, values: Values) -> Outcome:
        """Runs one trial.  InfeasibleError before any work; else what ``compress`` raises."""
        try:
            recipe = self.recipe(values)
        except BadRecipe as error:
            raise InfeasibleError(error.message) from error
        settled, _ = settle(recipe, self._sizes())
        problems = self._problems(settled)
        if problems:
            raise InfeasibleError("; ".join(text.rstrip(".") for text in problems))
        out = self.folder / f"{number:04d}"
        self._take_over(settled, out)

        def attempt(*, force: bool) -> Any:
            return compress(
                str(self.model),
                out,
                recipe,
                reporter=self.reporter,
                force=force,
                device=self.device,
            )

        try:
            result = attempt(force=False)
        except (BadStep, RunChanged):  # what was taken over is of no use after all
            result = attempt(force=True)
        last = result.rows[-1]
        assert last.perplexity is not None  # conditions() saw to it
        figures = {key: value for key, value in asdict(last).items() if value is not None}
        return Outcome(last.packed_bytes, last.perplexity, figures)

    def _sizes(self) -> ModelFacts:
        if self._facts is None:
            with self.reporter.stage("reading the model"):
                source = self.model
                self._facts = (
                    facts_of(source) if source.is_dir() else float_facts(load_config(source))
                )
        return self._facts

    def _problems(self, recipe: Recipe) -> list[str]:
        """What the stages say before any work, from the model's sizes alone."""
        facts, found = self._sizes(), list[str]()
        for number, stage in enumerate(recipe.stages):
            kind = KINDS[stage.kind]
            said = [*order_problems(stage, recipe.stages[:number], self._sizes())]
            said += kind.preflight(stage.settings, facts)
            found += [f"[{stage.name}] {text}" for text in said]
            if found:
                break
            facts = kind.predict(stage.settings, facts)
        return found

    def _take_over(self, recipe: Recipe, out: Path) -> None:
        """Links into ``out`` the steps of the earlier trial that begins with the most stages of
        ``recipe``, and what the model wrote for it; the run then goes on from there, after checking
        them as it always does."""
        if out.exists():
            return
        best: list[Path] = []
        own: Path | None = None
        for trial in sorted(self.folder.glob("[0-9]*")):
            steps = list(_shared_steps(trial, recipe))
            if len(steps) > len(best):
                best = steps
                own = trial / OWN if (trial / OWN).is_dir() else own
        if not best:
            return
        out.mkdir(parents=True)
        try:
            for folder in [*best, *([own] if own is not None else [])]:
                shutil.copytree(folder, out / folder.name, copy_function=_link)
            shutil.copyfile(best[0].parent / RUN, out / RUN)
        except OSError:  # another process thins that trial out just now
            shutil.rmtree(out, ignore_errors=True)

    def thin_out(self, results: Sequence[Result]) -> None:
        """Removes the last model of trials that are not on the front: earlier steps may serve
        others, and a trial's figures stay."""
        front = {r.number for r in front_of(list(results))}
        for result in results:
            if result.number in front or result.state != "complete":
                continue
            steps = _steps(self.folder / f"{result.number:04d}")
            if len(steps) < 2 or not _whole(steps[-1]):
                continue
            for name in read_json(steps[-1] / STEP)["files"]:
                (steps[-1] / name).unlink(missing_ok=True)


def plan_trials(
    model: str,
    recipe: str,
    space: Path | None,
    assignments: Sequence[str],
    folder: Path,
    *,
    device: str,
    reporter: Reporter,
) -> Trials:
    """Trials around ``recipe`` in the space of its table ``[explore]``, or of that in the TOML file
    ``space``.  Raises BadRecipe, ModelNotFound."""
    tables, base, _ = read_tables(recipe)
    ranges = tables.pop(TABLE, None)
    if space is not None:
        content, *_ = read_tables(str(space))
        ranges = content.get(TABLE, content)
    if ranges is None:
        raise BadRecipe(
            f"the recipe {recipe} has no table [{TABLE}].",
            "add one, or give a TOML file with --space: what may change, and how far.",
        )
    if not isinstance(ranges, Mapping):
        raise BadRecipe(f"{TABLE} = {ranges!r}; a table is allowed.")
    found = parse_space(ranges, tables)
    _check_keys(found)
    return Trials(resolve(model), tables, found, tuple(assignments), base, folder, device, reporter)


def _check_keys(space: Space) -> None:
    """BadRecipe for a key that no stage of that kind has; as a trial it would only be infeasible."""
    for d in space.dimensions:
        kind = next((k for k in KINDS if d.stage == k or d.stage.startswith(f"{k}-")), None)
        if kind is None or d.switch:
            continue  # the recipe's own parsing says what is wrong with the table
        known = [f.name for f in fields(KINDS[kind].settings)]
        if d.path[1] not in known:
            raise BadRecipe(
                f"[{TABLE}] {d.name}: [{d.stage}] has no key {d.path[1]!r}.",
                f"allowed: {', '.join(known)}.",
            )


def _steps(trial: Path) -> list[Path]:
    """The directories of a run's steps that have a record, in order."""
    return sorted(p.parent for p in trial.glob(f"[0-9][0-9]-*/{STEP}"))


def _shared_steps(trial: Path, recipe: Recipe) -> Iterator[Path]:
    """The first steps of ``trial`` that are those of ``recipe``: stage, name and settings."""
    wanted: list[tuple[str, dict[str, Any]]] = [(SOURCE, {})]
    wanted += [
        (f"{i:02d}-{stage.name}", asdict(stage.settings))
        for i, stage in enumerate(recipe.stages, 1)
    ]
    if not (trial / RUN).is_file():
        return
    for step, (name, settings) in zip(_steps(trial), wanted, strict=False):
        with suppress(OSError, ValueError, KeyError):
            record = read_json(step / STEP)
            same = step.name == name and record["settings"] == json.loads(json.dumps(settings))
            if same and _whole(step):
                yield step
                continue
        return


def _whole(step: Path) -> bool:
    """Whether the step still has its files."""
    return all((step / name).is_file() for name in read_json(step / STEP)["files"])


def _link(source: str, target: str) -> None:
    """A hard link: a step's files are written once, and step.json is replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
