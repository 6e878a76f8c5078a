"""Trials of a search: compression runs that reuse the steps they share with earlier trials."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import load_tokenizer, resolve
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.explore import InfeasibleError, Outcome, Result
from shrinkc.compression.facts import ModelFacts, facts_before
from shrinkc.compression.fingerprint import (
    evaluation_fingerprint,
    run_fingerprint,
    stage_fingerprint,
)
from shrinkc.compression.preflight import resolve_recipe, stage_problems
from shrinkc.compression.recipe import Recipe, parse_recipe, read_tables
from shrinkc.compression.run import compress
from shrinkc.compression.run_directory import RUN, SOURCE, step_name
from shrinkc.compression.self_generated import FOLDER as SELF_GENERATED
from shrinkc.compression.self_generated import SelfGenerated
from shrinkc.compression.space import TABLE, Space, Values, parse_space
from shrinkc.compression.steps import STEP, read_json
from shrinkc.core.errors import BadRecipe, BadStep, RunChanged
from shrinkc.core.fingerprint import Fingerprint, model_fingerprint
from shrinkc.core.inputs import check_text_files
from shrinkc.core.progress import Reporter
from shrinkc.evaluation import text_measured


@dataclass
class Trials:
    """The base recipe of a search, and the execution of trials.

    ``tables``: the recipe's tables without ``[explore]``.  ``base``: the folder for its relative paths.  Each trial
    is a run of ``shrinkc compress`` in ``folder``/NNNN.
    """

    model: Path
    tables: dict[str, Any]
    space: Space
    assignments: tuple[str, ...]
    base: Path
    folder: Path
    device: str
    reporter: Reporter

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe of a trial.  Raises BadRecipe."""
        tables = self.space.apply(self.tables, values)
        return parse_recipe(tables, self.assignments, base=self.base, name="trial")

    def conditions(self) -> Fingerprint:
        """Return the fingerprint of everything that all trials share: model, texts, seed, versions, fixed settings.

        Raises BadRecipe if the recipe is invalid, measures no perplexity or has a budget, or if a stage does not have
        a key of the space.
        """
        recipe = self.recipe({})
        settings = {stage.name: stage.settings for stage in recipe.stages}
        for d in self.space.dimensions:
            known = vars(settings[d.stage]) if d.stage in settings else {}
            if known and not d.switch and d.path[1] not in known:
                raise BadRecipe(
                    f"[{TABLE}] {d.name}: [{d.stage}] has no key {d.path[1]!r}.",
                    f"allowed: {', '.join(known)}.",
                )
        if recipe.evaluate is None or recipe.evaluate.text is None:
            raise BadRecipe(
                "the recipe measures no perplexity, by which trials are compared.",
                "add a table [evaluate] with text and, to be quick, windows.",
            )
        if recipe.budget is not None:
            raise BadRecipe(
                "the recipe has a [budget], which makes a search of its own.", "leave it out."
            )
        check_text_files(recipe.text_files(), recipe.task_files())
        with self.reporter.stage("reading the model"):
            found = model_fingerprint(self.model)
        found |= run_fingerprint(recipe) | evaluation_fingerprint(recipe.evaluate)
        given = recipe.calibration
        # the text may be unwritten: a fingerprint has only its settings
        unwritten = SelfGenerated(self.folder / SELF_GENERATED, recipe.self_generated)
        calibration = Calibration(given.text, given.samples, given.length, unwritten)
        searched = {d.name for d in self.space.dimensions}
        for stage in recipe.stages:
            own = stage_fingerprint(stage, calibration)
            found |= {label: value for label, value in own.items() if label not in searched}
        return found | {"stages": [s.name for s in recipe.stages], TABLE: self.space.describe()}

    def measured(self) -> dict[str, Any]:
        """Return the measurement conditions of every trial's perplexity, as in ``Row.measured``.

        Raises BadData, BadTokenizer, UsageError.
        """
        settings = self.recipe({}).evaluate
        assert settings is not None  # conditions() checks it
        tokenizer = load_tokenizer(self.model)

        def encode(text: str, *, special: bool) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=special))

        return text_measured(settings.plan(), encode, settings.dtype)

    def run(self, number: int, values: Values) -> Outcome:
        """Run one trial.  Raises InfeasibleError before any work, and the errors of ``compress``."""
        try:
            recipe = self.recipe(values)
        except BadRecipe as error:
            raise InfeasibleError(error.message) from error
        recipe, _ = resolve_recipe(recipe, self._sizes)
        problems, _ = stage_problems(recipe, self._sizes)
        if problems:
            raise InfeasibleError("; ".join(text for _, text in problems))
        out = self.folder / f"{number:04d}"
        self._link_shared_steps(recipe, out)
        run = partial(
            compress, str(self.model), out, recipe, reporter=self.reporter, device=self.device
        )
        try:
            last = run().rows[-1]
        except (BadStep, RunChanged):  # the linked steps cannot be reused
            last = run(force=True).rows[-1]
        assert last.perplexity is not None  # conditions() checks it
        figures = {key: value for key, value in asdict(last).items() if value is not None}
        return Outcome(last.packed_bytes, last.perplexity, figures)

    @cached_property
    def _sizes(self) -> ModelFacts:
        return facts_before(self.model)

    def _link_shared_steps(self, recipe: Recipe, out: Path) -> None:
        """Link into ``out`` the steps and self-generated text of the earlier trial that shares most stages with
        ``recipe``.  The run checks these steps and continues after them."""
        shared = [_shared_steps(trial, recipe) for trial in sorted(self.folder.glob("[0-9]*"))]
        best = max(shared, key=len, default=[])
        if not best or out.exists():
            return
        trial = best[0].parent
        try:
            for folder in [*best, trial / SELF_GENERATED]:
                if folder.is_dir():
                    shutil.copytree(folder, out / folder.name, copy_function=os.link)
            shutil.copyfile(trial / RUN, out / RUN)
        except OSError:  # no links, or another process deletes that trial's files
            shutil.rmtree(out, ignore_errors=True)

    def delete_dominated_models(self, results: Sequence[Result]) -> None:
        """Delete the last model of each trial that is not on the Pareto front.  Its earlier steps stay, because other
        trials may share them, and so do its records."""
        for result in results:
            trial = self.folder / f"{result.number:04d}"
            steps = sorted(trial.glob(f"[0-9][0-9]-*/{STEP}"))
            if result.state == "complete" and not result.best and len(steps) > 1:
                for name in read_json(steps[-1])["files"]:
                    (steps[-1].parent / name).unlink(missing_ok=True)


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
    """Prepare trials of ``recipe`` with the ranges of its table ``[explore]``, or of the TOML file ``space``.

    Raises BadRecipe, ModelNotFound."""
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
    return Trials(resolve(model), tables, found, tuple(assignments), base, folder, device, reporter)


def _shared_steps(trial: Path, recipe: Recipe) -> list[Path]:
    """Return the first steps of ``trial`` that have the names and settings of ``recipe`` and all their files."""
    wanted: dict[str, dict[str, Any]] = {SOURCE: {}} | {
        step_name(i, stage.name): asdict(stage.settings) for i, stage in enumerate(recipe.stages, 1)
    }
    found: list[Path] = []
    for name, settings in wanted.items():
        step = trial / name
        try:
            record = read_json(step / STEP)
            same = record["settings"] == json.loads(json.dumps(settings))
            if not same or not all((step / file).is_file() for file in record["files"]):
                break
        except (OSError, ValueError, KeyError):
            break
        found.append(step)
    return found
