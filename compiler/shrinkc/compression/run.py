"""A compression run: executes the stages, each in its own directory, and continues interrupted runs."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import Loading, load, need, resolve, save, use_threads, versions
from shrinkc.compression import budget
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.card import About, write_card
from shrinkc.compression.facts import ModelFacts, facts_before, facts_of
from shrinkc.compression.fingerprint import (
    evaluation_fingerprint,
    run_fingerprint,
    stage_fingerprint,
)
from shrinkc.compression.preflight import preflight, resolve_recipe
from shrinkc.compression.recipe import Recipe
from shrinkc.compression.run_directory import (
    BUDGET,
    LOGS,
    SCRATCH,
    SOURCE,
    can_continue,
    check_state,
    clear,
    foreign_files,
    is_run,
    is_step,
    link_final,
    locked,
    state_folder,
    step_name,
)
from shrinkc.compression.self_generated import FOLDER as SELF_GENERATED
from shrinkc.compression.self_generated import SelfGenerated
from shrinkc.compression.stages.context import Stage, StepContext, StepReport
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.stages.vocabulary import tokens_left
from shrinkc.compression.steps import (
    StepRecord,
    check_unchanged,
    list_files,
    read_step,
    remove_partials,
    write_step,
)
from shrinkc.compression.summary import CompressionResult, rows_of, write_summary
from shrinkc.compression.training import StepSettings, trained_before
from shrinkc.compression.writing import write_text
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import BadStep, RunChanged
from shrinkc.core.fingerprint import Fingerprint, differences, model_fingerprint
from shrinkc.core.inputs import check_text_files
from shrinkc.core.output import check_folder, new_directory, refuse_to_delete
from shrinkc.core.progress import Reporter
from shrinkc.evaluation import TorchScorer, evaluate


def compress(
    model: str,
    out: Path,
    recipe: Recipe,
    *,
    reporter: Reporter,
    force: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
) -> CompressionResult:
    """Run ``recipe`` on ``model`` (see :func:`shrinkc.checkpoints.resolve`) and write to ``out``.

    An earlier run in ``out`` is continued after its last complete step; ``force`` starts from the beginning.
    ``dry_run`` ends after preflight.  Raises RunChanged if model, texts or settings differ from the earlier run,
    BadStep if one of its steps is damaged, BadData with all unreadable text files, and the errors of
    :func:`shrinkc.checkpoints.load`, preflight and stages.
    """
    # before torch is imported, which takes seconds
    check_text_files(recipe.text_files(), recipe.task_files())
    need("torch", "transformers")
    use_threads(recipe.run.threads)
    source = resolve(model)
    check_folder(out, can_continue)
    run = _Run(model, source, out, recipe, reporter, device)
    if dry_run:
        if force and is_run(out):
            refuse_to_delete(out, foreign_files(out))
        return run.plan(fresh=force)
    with locked(out):
        if force and is_run(out):
            refuse_to_delete(out, foreign_files(out))
            run.plan(fresh=True)  # raises before the earlier run is deleted
            clear(out)
        return run.execute()


_OTHER = (
    "change that back to go on, delete that step and those after it to make them again, "
    "choose another output directory, or start over with --force."
)


class _Run:
    def __init__(
        self,
        given: str,
        source: Path,
        out: Path,
        recipe: Recipe,
        reporter: Reporter,
        device: str,
    ) -> None:
        self.given, self.source, self.out, self.recipe = given, source, out, recipe
        self.reporter, self.device = reporter, device
        store = SelfGenerated(out / SELF_GENERATED, recipe.self_generated)
        self.self_generated = store if recipe.self_generated_tokens() else None
        self.calibration = self._calibration()
        self.notes: list[str] = []
        self.records: list[StepRecord] = []
        self.estimate = ""

    # ---- the whole run ----

    def plan(self, *, fresh: bool = False) -> CompressionResult:
        """Check and estimate the run without writing anything; ``fresh``: ignore an earlier run."""
        found = None if fresh else self._resume()
        if found is None:
            facts = facts_before(self.source)
            self._resolve(facts)
            found = self.source, facts
        if self._is_finished():
            self.estimate = f"all {len(self.recipe.stages)} steps are over; nothing is left to do"
            self.reporter.note(self.estimate)
        else:
            self._preflight(*found)
        return CompressionResult(self.out, [], self.source, self.estimate, self.notes)

    def execute(self) -> CompressionResult:
        remove_partials(self.out)
        source, facts = self._resume() or self._start()
        if not is_run(self.out):  # files of an earlier run stay until preflight has succeeded
            self._write_summary()
        if self.recipe.budget is not None:  # no choice was made yet
            self._write_self_generated(source, facts)
            self.recipe = self._choose(*self._run_before_budget(source, facts))
            self.estimate = ""  # estimate again, with the chosen stages
            self._read_finished_steps()
        if not (self.estimate or self._is_finished()):
            self._preflight(source, facts)
        self._write_self_generated(source, facts)
        self._write_summary()
        self._measure(0)
        for number in range(1, len(self.recipe.stages) + 1):
            if number >= len(self.records):
                self._run_step(number)
            self._measure(number)
        shutil.rmtree(self.out / SCRATCH, ignore_errors=True)
        final = link_final(self.out, self.records[-1].name)
        return CompressionResult(self.out, rows_of(self.records), final, self.estimate, self.notes)

    def _resume(self) -> tuple[Path, ModelFacts] | None:
        """Check an earlier run in the directory, and return its source model; None if there is none.

        Raises RunChanged and BadStep if it cannot be continued.  Nothing is written."""
        directory = self.out / SOURCE
        if not directory.exists():
            return None
        self.records = [self._checked_step(directory, self._source_fingerprint())]
        source = self._model_of(self.records[0])
        facts = facts_of(source)
        self._resolve(facts)
        if self.recipe.budget is not None:
            self.recipe = self._earlier_choice() or self.recipe
        full_recipe = self.recipe
        if full_recipe.budget is not None:
            self.recipe = full_recipe.with_stages(budget.before_budget(full_recipe))
        self._read_finished_steps()
        self.recipe = full_recipe
        if self.self_generated is not None and self._steps_left():
            self._check_self_generated(self.self_generated)
        return source, facts

    def _start(self) -> tuple[Path, ModelFacts]:
        """Run preflight, write the record of the source model, and return the model and its facts."""
        directory, expected = self.out / SOURCE, self._source_fingerprint()
        with new_directory(directory) as folder:
            source = self.source
            if source.is_file():
                source = folder / "model"
                with self.reporter.stage("dequantising the GGUF file"):
                    loaded = load(self.source)
                    save(loaded.model, loaded.tokenizer, source)
            facts = facts_of(source)
            self._resolve(facts)
            self._preflight(source, facts)
            self.records = [
                self._write_record(
                    folder,
                    facts,
                    name=SOURCE,
                    stage="source",
                    fingerprint=expected,
                    parameters={"name": self.source.name},
                    model=None if source != self.source else self.source.name,
                )
            ]
        return self._model_of(self.records[0]), facts

    def _steps_left(self) -> bool:
        return self.recipe.budget is not None or len(self.records) <= len(self.recipe.stages)

    def _is_finished(self) -> bool:
        return not self._steps_left() and not self._unmeasured()

    def _unmeasured(self) -> list[int]:
        """Return the numbers of finished steps that have no evaluation with the recipe's settings."""
        if self.recipe.evaluate is None:
            return []
        wanted = evaluation_fingerprint(self.recipe.evaluate)
        return [n for n, r in enumerate(self.records) if differences(r.evaluation, wanted)]

    def _calibration(self) -> Calibration:
        given = self.recipe.calibration
        return Calibration(given.text, given.samples, given.length, self.self_generated)

    def _write_self_generated(self, source: Path, facts: ModelFacts) -> None:
        """Generate the part of the recipe's self-generated text that is missing."""
        if self.self_generated is None or not self._steps_left():
            return
        made_from = self._check_self_generated(self.self_generated)
        wanted = self.recipe.self_generated_tokens()
        if self.self_generated.written() >= wanted:
            return
        if not self.estimate:
            self._preflight(source, facts)
        write_text(
            self.self_generated,
            source,
            wanted,
            seed=self.recipe.run.seed,
            device=self.device,
            made_from=made_from,
            reporter=self.reporter,
        )
        self.calibration = self._calibration()

    def _check_self_generated(self, store: SelfGenerated) -> Fingerprint:
        """Return the fingerprint of the self-generated text; raise RunChanged if it was made with another one."""
        made_from = self.records[0].fingerprint | run_fingerprint(self.recipe)
        made_from |= {"device": self.device}
        made_from |= {
            f"self_generated.{k}": v for k, v in asdict(self.recipe.self_generated).items()
        }
        check_unchanged(
            f"{store.folder} was written with other settings",
            store.made_from() or made_from,
            made_from,
            "change that back to go on, delete that folder and the steps to begin again, choose another "
            "output directory, or start over with --force.",
        )
        return made_from

    def _resolve(self, facts: ModelFacts) -> None:
        """Resolve lists of alternatives in the recipe; a recipe with a budget is only checked."""
        if self.recipe.budget is not None:
            budget.check_recipe(self.recipe, facts)
            return
        self.recipe, notes = resolve_recipe(self.recipe, facts)
        for note in notes:
            self._note(note)

    def _preflight(self, source: Path, facts: ModelFacts) -> None:
        with self.reporter.stage("preflight"):
            from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - not timed as loading

            started = time.monotonic()
            loaded = load(source, dtype=self.recipe.run.dtype, device=self.device)
            loading = time.monotonic() - started
            done = max(0, len(self.records) - 1)
            recipe = self.recipe
            measured = budget.work(recipe, facts, self.calibration)
            if recipe.budget is not None:
                recipe, _ = resolve_recipe(budget.with_gptq(recipe, facts), facts)
            found = preflight(
                recipe,
                facts,
                self.calibration,
                loaded,
                self.out,
                done=done,
                unmeasured=self._unmeasured() if self.records else [0],
                loading=loading,
                measured=measured,
            )
        for note in found.notes:
            self._note(note)
        self.estimate = found.estimate.line()
        self.reporter.note(self.estimate)

    def _note(self, text: str) -> None:
        """Print a note now, since a run takes long, and store it for the result."""
        if text not in self.notes:
            self.notes.append(text)
            self.reporter.note(f"note: {text}")

    # ---- the source model ----

    def _source_fingerprint(self) -> Fingerprint:
        with self.reporter.stage("reading the model"):
            return model_fingerprint(self.source)

    def _write_record(self, folder: Path, facts: ModelFacts, **about: Any) -> StepRecord:
        """Write the record of a step into its folder, and return it."""
        run = self.recipe.run
        record = StepRecord(
            seed=run.seed,
            threads=run.threads,
            versions=versions(),
            figures=facts.figures(),
            files={name: file_record(folder / name) for name in list_files(folder)},
            **about,
        )
        write_step(folder, record)
        return record

    def _model_of(self, record: StepRecord) -> Path:
        if record.stage != "source":
            return self.out / record.name
        return self.out / SOURCE / "model" if record.model is None else self.source

    # ---- steps of an earlier run ----

    def _read_finished_steps(self) -> None:
        """Read the records of finished steps.  Raises RunChanged and BadStep if the run cannot continue after them."""
        del self.records[1:]
        wanted = [SOURCE, *(self._name(i + 1) for i in range(len(self.recipe.stages)))]
        present = sorted(
            p.name for p in self.out.iterdir()
            if p.is_dir() and is_step(p.name)
        )  # fmt: skip
        others = [name for name in present if name not in wanted]
        if others:
            raise RunChanged(
                f"{self.out} was made from something else: {', '.join(others)} is no step of this recipe.",
                _OTHER,
            )
        for number in range(1, len(wanted)):
            if wanted[number] not in present:
                later = [name for name in wanted[number:] if name in present]
                if later:
                    raise BadStep(
                        f"{self.out / wanted[number]} is missing, though {later[0]} is there.",
                        f"delete {', '.join(later)} as well to make them again, or start over "
                        "with --force.",
                    )
                check_state(self.out, wanted[number], self._fingerprint(number, self.records[-1]))
                break
            expected = self._fingerprint(number, self.records[number - 1])
            self.records.append(self._checked_step(self.out / wanted[number], expected))

    def _checked_step(self, directory: Path, expected: Fingerprint) -> StepRecord:
        record = read_step(directory)
        check_unchanged(
            f"{self.out}: step {directory.name} was made from something else",
            record.fingerprint,
            expected,
            _OTHER,
        )
        return record

    # ---- a step ----

    def _name(self, number: int) -> str:
        return step_name(number, self.recipe.stages[number - 1].name)

    def _fingerprint(self, number: int, before: StepRecord) -> Fingerprint:
        stage = self.recipe.stages[number - 1]
        made_from = before.fingerprint if before.stage == "source" else before.content_fingerprint()
        made_from = made_from | run_fingerprint(self.recipe) | {"device": self.device}
        if isinstance(stage.settings, StepSettings):
            given = trained_before(stage.settings, self.calibration, self._earlier(number))
            for n, one in enumerate(given, 1):
                epochs = getattr(one, "epochs", None)
                made_from[f"windows before, {n}"] = [one.samples, epochs, one.batch]
        return made_from | stage_fingerprint(stage, self.calibration)

    def _earlier(self, number: int) -> tuple[Any, ...]:
        return tuple(stage.settings for stage in self.recipe.stages[: number - 1])

    def _run_step(self, number: int) -> None:
        stage, before, name = self.recipe.stages[number - 1], self.records[-1], self._name(number)
        expected = self._fingerprint(number, before)
        scratch = state_folder(self.out, name, expected)
        logs = self.out / LOGS / name
        logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with new_directory(self.out / name) as folder:
            report = self._run_stage(stage, before, folder, scratch, logs)
            with self.reporter.stage(f"{name}: counting"):
                record = self._write_record(
                    folder,
                    facts_of(folder),
                    name=name,
                    stage=stage.kind,
                    fingerprint=expected,
                    settings=asdict(stage.settings),
                    parameters=report.parameters,
                    notes=report.notes,
                    seconds=round(time.monotonic() - started, 3),
                )
                write_card(folder, self._about(), [*self.records, record])
        # read from the file, as a continued run does: JSON has lists instead of tuples
        self.records.append(read_step(self.out / name))
        for note in report.notes:
            self._note(f"{name}: {note}")
        if not (loading := Loading.of(self.out / name)).plain:
            line = loading.line(str(self.out / name))
            self._note(
                f"{name}: from_pretrained of transformers does not load it; this does: {line}"
            )
        shutil.rmtree(scratch, ignore_errors=True)
        self._write_summary()

    def _run_stage(
        self, stage: Stage, before: StepRecord, folder: Path, scratch: Path, logs: Path
    ) -> StepReport:
        import torch

        torch.manual_seed(self.recipe.run.seed)
        floats = [
            r for r in self.records if r.stage not in KINDS or not KINDS[r.stage].gives_integers
        ]
        context = StepContext(
            source=self._model_of(before),
            out=folder,
            calibration=self.calibration,
            seed=self.recipe.run.seed,
            threads=self.recipe.run.threads,
            dtype=self.recipe.run.dtype,
            device=self.device,
            reporter=self.reporter,
            log_dir=logs,
            scratch=scratch,
            teacher=self._model_of(self.records[0]),
            tokens=tokens_left(self.out / r.name for r in self.records),
            unquantized=self._model_of(floats[-1]),
            earlier=self._earlier(len(self.records)),
        )
        return KINDS[stage.kind].run(stage.settings, context)

    # ---- figures ----

    def _measure(self, number: int) -> None:
        """Evaluate a step, unless it has an evaluation with these settings."""
        settings, record = self.recipe.evaluate, self.records[number]
        wanted = evaluation_fingerprint(settings)
        if settings is None or not differences(record.evaluation, wanted):
            return
        scorer = TorchScorer(load(self._model_of(record), dtype=settings.dtype, device=self.device))
        base = None  # the result is compared with the original, if it has the same tokens
        same_tokens = tokens_left(self.out / r.name for r in self.records) is None
        if settings.text is not None and number == len(self.recipe.stages) and same_tokens:
            original = load(
                self._model_of(self.records[0]), dtype=settings.dtype, device=self.device
            )
            base = TorchScorer(original)
        metrics = evaluate(scorer, settings.plan(), self.reporter, base=base)
        changed = replace(record, evaluation=wanted, metrics=metrics)
        write_step(self.out / record.name, changed)
        self.records[number] = read_step(self.out / record.name)
        if number:
            write_card(self.out / record.name, self._about(), self.records[: number + 1])
        self._write_summary()

    def _about(self) -> About:
        return About.of(self.given, self.source, self.recipe)

    def _write_summary(self) -> None:
        write_summary(self.out, self.source.name, self.recipe.to_toml(), self.records)

    # ---- a budget ----

    def _run_before_budget(self, source: Path, facts: ModelFacts) -> tuple[Path, ModelFacts]:
        """Run the stages before the budget's choice, and return their result."""
        full_recipe = self.recipe
        first = budget.before_budget(full_recipe)
        if not first:
            return source, facts
        self.recipe = full_recipe.with_stages(first)
        self._read_finished_steps()
        for number in range(len(self.records), len(first) + 1):
            self._run_step(number)
        source = self._model_of(self.records[-1])
        del self.records[1:]  # read again with those of all stages
        self.recipe = full_recipe
        return source, facts_of(source)

    def _choose(self, source: Path, facts: ModelFacts) -> Recipe:
        """Choose by the budget, store the choice, and return the resulting recipe."""
        made_from, measured_from = self._choice_fingerprints()
        scratch = state_folder(self.out, "budget", measured_from)
        parameters = self.records[0].figures["parameters"]
        decision = budget.decide(
            self.recipe, source, facts, self.calibration, self.reporter, scratch, parameters
        )
        decision.keep(self.out / BUDGET, made_from)
        self._note(decision.note())
        chosen = budget.earlier_choice(self.out / BUDGET, self.recipe, made_from)
        assert chosen is not None  # read from the file, as a continued run does
        return chosen

    def _earlier_choice(self) -> Recipe | None:
        """Return the recipe that an earlier run chose, or None.  Raises RunChanged if it had another budget."""
        made_from, measured_from = self._choice_fingerprints()
        kept = budget.earlier_choice(self.out / BUDGET, self.recipe, made_from)
        if kept is None:
            check_state(self.out, "budget", measured_from)
        return kept

    def _choice_fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        return budget.choice_fingerprints(
            self.recipe, self.records[0].fingerprint, self.calibration
        )
