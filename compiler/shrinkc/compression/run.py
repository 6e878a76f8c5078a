"""A compression run: stage after stage, each in a directory of its own, continued where it stopped."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import load, need, resolve, save, use_threads, versions, write_readme
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import ModelFacts, facts_of, float_facts
from shrinkc.compression.fingerprint import (
    evaluation_fingerprint,
    run_fingerprint,
    stage_fingerprint,
)
from shrinkc.compression.preflight import preflight, settle
from shrinkc.compression.recipe import EvaluateSettings, Recipe, parse_toml
from shrinkc.compression.run_directory import (
    CHOSEN,
    FORMAT,
    LOGS,
    MADE_FROM,
    PICTURE,
    RECIPE,
    RUN,
    SCRATCH,
    SOURCE,
    TABLE,
    VERSION,
    begun,
    clear,
    foreign_files,
    is_run,
    is_step,
    locked,
    step_name,
)
from shrinkc.compression.self_text import FOLDER as OWN
from shrinkc.compression.self_text import SelfText
from shrinkc.compression.stages.context import Stage, StepContext, StepReport
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.stages.vocabulary import tokens_left
from shrinkc.compression.steps import (
    StepRecord,
    list_files,
    read_json,
    read_step,
    write_json,
    write_step,
)
from shrinkc.compression.summary import Row, markdown, picture, rows_of, same_tokens
from shrinkc.compression.training import StepSettings, trained_before
from shrinkc.compression.writing import write_text
from shrinkc.core.artifact import file_record
from shrinkc.core.errors import BadStep, RunChanged
from shrinkc.core.fingerprint import Fingerprint, differences, model_fingerprint
from shrinkc.core.inputs import check_text_files
from shrinkc.core.output import check_folder, new_directory, refuse_to_delete, write_file
from shrinkc.core.progress import Reporter
from shrinkc.core.words import show_size
from shrinkc.evaluation import EvalPlan, TorchScorer, evaluate
from shrinkc.importer import load_config


@dataclass(frozen=True)
class CompressionResult:
    """``rows``: the baseline and every step that is over, none of a dry run; ``final``: the last model."""

    out: Path
    rows: list[Row]
    final: Path
    estimate: str
    notes: list[str]

    def __repr__(self) -> str:
        if not self.rows:
            return f"<CompressionResult {self.out}: nothing was written; {self.estimate}>"
        last = self.rows[-1]
        quality = "" if last.perplexity is None else f", perplexity {last.perplexity:.2f}"
        return f"<CompressionResult {self.final}: {len(self.rows) - 1} steps, {last.share:.1%} of bf16{quality}>"

    def lines(self) -> list[str]:
        """For people."""
        if not self.rows:
            return ["nothing was written (--dry-run)"]
        lines, same = [], same_tokens(self.rows)
        for row in self.rows:
            quality = "" if row.perplexity is None else f"  perplexity {row.perplexity:.2f}"
            if not same and row.bits_per_byte is not None:
                quality = f"  {row.bits_per_byte:.4f} bits per byte"
            lines.append(
                f"{row.name:<16} {row.layers} layers, FFN {row.intermediate}: "
                f"{show_size(row.packed_bytes)} packed, {row.share:.1%} of bf16{quality}"
            )
        return [*lines, f"{self.out / TABLE}; the model is {self.final}"]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "output": str(self.out),
            "final": str(self.final),
            "estimate": self.estimate,
            "notes": self.notes,
            "steps": [asdict(row) for row in self.rows],
        }


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
    """Runs ``recipe`` on ``model`` (see :func:`shrinkc.checkpoints.resolve`) into ``out``.

    A directory of an earlier attempt is continued after its last complete step.  RunChanged when
    something that decides the result differs from that attempt, BadStep when a step of it is
    damaged; ``force`` starts from nothing.  ``dry_run`` ends after preflight.  Other errors are
    those of loading (:func:`shrinkc.checkpoints.load`), of preflight and of the stages.  BadData that names
    every text file that cannot be read comes before all of them.
    """
    check_text_files(
        recipe.text_files(), recipe.task_files()
    )  # before torch is imported, which takes seconds
    need("torch", "transformers")
    use_threads(recipe.run.threads)
    source = resolve(model)
    # a run that is there is continued, so only something else is in the way
    check_folder(out, begun)
    run = _Run(source, out, recipe, reporter, device)
    if dry_run:
        if force and is_run(out):
            refuse_to_delete(out, foreign_files(out))
        return run.plan(fresh=force)
    with locked(out):
        if force and is_run(out):
            refuse_to_delete(out, foreign_files(out))
            run.plan(fresh=True)  # refusals come while the earlier run is still there
            clear(out)
        return run.go()


class _Run:
    def __init__(
        self, source: Path, out: Path, recipe: Recipe, reporter: Reporter, device: str
    ) -> None:
        self.source, self.out, self.recipe = source, out, recipe
        self.reporter, self.device = reporter, device
        self.own = SelfText(out / OWN, recipe.self_text) if recipe.own_tokens() else None
        self.calibration = self._calibration()
        self.notes: list[str] = []
        self.records: list[StepRecord] = []
        self.estimate = ""

    # ---- the whole ----

    def plan(self, *, fresh: bool = False) -> CompressionResult:
        """What a run would refuse, and what it would take; ``fresh``: from nothing.  Nothing is written."""
        found = None if fresh else self._continued()
        if found is None:
            gguf = self.source.is_file()
            facts = float_facts(load_config(self.source)) if gguf else facts_of(self.source)
            self._settle(facts)
            found = self.source, facts
        if self._is_over():
            self.estimate = f"all {len(self.recipe.stages)} steps are over; nothing is left to do"
            self.reporter.note(self.estimate)
        else:
            self._preflight(*found)
        return CompressionResult(self.out, [], self.source, self.estimate, self.notes)

    def go(self) -> CompressionResult:
        """All of it."""
        for leftover in self.out.glob(".*.partial"):  # of a process that was killed
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()
        source, facts = self._continued() or self._begun()
        if not is_run(self.out):  # what an earlier attempt wrote stays until this one may go on
            self._write_summary()
        if self.recipe.budget is not None:  # nothing was chosen yet
            self._write_own_text(source, facts)
            self.recipe = self._choice(*self._before_budget(source, facts))
            self.estimate = ""  # of the stages that were chosen, not of what was given
            self._check_what_is_there()
        if not (self.estimate or self._is_over()):
            self._preflight(source, facts)
        self._write_own_text(source, facts)
        self._write_summary()
        self._measure(0)
        for number in range(1, len(self.recipe.stages) + 1):
            if number >= len(self.records):
                self._step(number)
            self._measure(number)
        shutil.rmtree(self.out / SCRATCH, ignore_errors=True)
        final = self._model_of(self.records[-1])
        return CompressionResult(self.out, rows_of(self.records), final, self.estimate, self.notes)

    def _continued(self) -> tuple[Path, ModelFacts] | None:
        """MODEL as an earlier attempt has it, once all that this one left was held against this run; None
        where there is none.  RunChanged and BadStep unless this run can go on from it.  Nothing is written."""
        directory = self.out / SOURCE
        if not directory.exists():
            return None
        self.records = [self._found(directory, self._source_fingerprint())]
        source = self._model_of(self.records[0])
        facts = facts_of(source)
        self._settle(facts)
        if self.recipe.budget is not None:
            self.recipe = self._kept_choice() or self.recipe
        whole = self.recipe
        if whole.budget is not None:
            from shrinkc.compression.budget import before_budget

            self.recipe = whole.with_stages(before_budget(whole))
        self._check_what_is_there()
        self.recipe = whole
        if self.own is not None and self._steps_left():
            self._check_own_text(self.own)
        return source, facts

    def _begun(self) -> tuple[Path, ModelFacts]:
        """MODEL, after preflight, with its record."""
        directory, expected = self.out / SOURCE, self._source_fingerprint()
        if self.source.is_file():
            with new_directory(directory) as folder:
                self._unpack(folder / "model")
                facts = facts_of(folder / "model")
                self._settle(facts)
                self._preflight(folder / "model", facts)
                self.records = [self._first_record(folder, expected, facts)]
            return directory / "model", facts
        facts = facts_of(self.source)
        self._settle(facts)
        self._preflight(self.source, facts)
        with new_directory(directory) as folder:
            self.records = [self._first_record(folder, expected, facts)]
        return self.source, facts

    def _steps_left(self) -> bool:
        return self.recipe.budget is not None or len(self.records) <= len(self.recipe.stages)

    def _is_over(self) -> bool:
        """Whether every step is there and measured."""
        return not self._steps_left() and not self._unmeasured()

    def _unmeasured(self) -> list[int]:
        """Numbers of the steps that are over and still have to be evaluated as the recipe says."""
        if self.recipe.evaluate is None:
            return []
        wanted = evaluation_fingerprint(self.recipe.evaluate)
        return [n for n, r in enumerate(self.records) if differences(r.evaluation, wanted)]

    def _calibration(self) -> Calibration:
        given = self.recipe.calibration
        return Calibration(given.text, given.samples, given.length, self.own)

    def _write_own_text(self, source: Path, facts: ModelFacts) -> None:
        """Has MODEL write as much text as the recipe asks for, beyond what is there."""
        if self.own is None or not self._steps_left():
            return
        made_from = self._check_own_text(self.own)
        wanted = self.recipe.own_tokens()
        if self.own.written() >= wanted:
            return
        if not self.estimate:
            self._preflight(source, facts)
        write_text(
            self.own,
            source,
            wanted,
            seed=self.recipe.run.seed,
            device=self.device,
            made_from=made_from,
            reporter=self.reporter,
        )
        self.calibration = self._calibration()

    def _check_own_text(self, own: SelfText) -> Fingerprint:
        """What decides MODEL's text; RunChanged where text is there that something else decided."""
        made_from = self.records[0].fingerprint | run_fingerprint(self.recipe)
        made_from |= {"device": self.device}
        made_from |= {f"self_text.{k}": v for k, v in asdict(self.recipe.self_text).items()}
        known = own.made_from()
        changed = differences(known, made_from) if known else []
        if changed:
            raise RunChanged(
                f"{own.folder} was written by something else: {'; '.join(changed)}.",
                "change that back to go on, delete that folder and the steps to begin again, choose another "
                "output directory, or start over with --force.",
            )
        return made_from

    def _settle(self, facts: ModelFacts) -> None:
        """The recipe is from here on what was chosen of it; a budget chooses by itself."""
        if self.recipe.budget is not None:
            from shrinkc.compression.budget import check_recipe

            check_recipe(self.recipe, facts)
            return
        self.recipe, notes = settle(self.recipe, facts)
        for note in notes:
            self._note(note)

    def _preflight(self, source: Path, facts: ModelFacts) -> None:
        with self.reporter.stage("preflight"):
            from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401 - not a part of loading

            started = time.monotonic()
            loaded = load(source, dtype=self.recipe.run.dtype, device=self.device)
            loading = time.monotonic() - started
            done = max(0, len(self.records) - 1)
            found = preflight(
                self._planned(facts),
                facts,
                self.calibration,
                loaded,
                self.out,
                done=done,
                unmeasured=self._unmeasured() if self.records else [0],
                loading=loading,
            )
        for note in found.notes:
            self._note(note)
        self.estimate = found.estimate.line()
        self.reporter.note(self.estimate)

    def _planned(self, facts: ModelFacts) -> Recipe:
        """The recipe with the stage gptq that its budget will add."""
        if self.recipe.budget is None:
            return self.recipe
        from shrinkc.compression.budget import with_gptq

        return with_gptq(self.recipe, facts)

    def _note(self, text: str) -> None:
        """Said at once, since a run takes long, and kept for its result."""
        if text not in self.notes:
            self.notes.append(text)
            self.reporter.note(f"note: {text}")

    # ---- the model that is given ----

    def _source_fingerprint(self) -> Fingerprint:
        with self.reporter.stage("reading the model"):
            return model_fingerprint(self.source)

    def _unpack(self, folder: Path) -> None:
        """A GGUF file as a directory: what all stages work on."""
        with self.reporter.stage("dequantising the GGUF file"):
            loaded = load(self.source)
            save(loaded.model, loaded.tokenizer, folder)

    def _first_record(self, folder: Path, made_from: Fingerprint, facts: ModelFacts) -> StepRecord:
        own = (folder / "model").is_dir()
        record = StepRecord(
            name=SOURCE,
            stage="source",
            seed=self.recipe.run.seed,
            threads=self.recipe.run.threads,
            versions=versions(),
            fingerprint=made_from,
            settings={},
            parameters={"name": self.source.name},
            notes=[],
            figures=facts.figures(),
            seconds=0.0,
            model=None if own else self.source.name,
            files={name: file_record(folder / name) for name in list_files(folder)},
        )
        write_step(folder, record)
        return record

    def _model_of(self, record: StepRecord) -> Path:
        if record.stage != "source":
            return self.out / record.name
        return self.out / SOURCE / "model" if record.model is None else self.source

    # ---- what an earlier attempt left ----

    def _check_what_is_there(self) -> None:
        """Reads the steps that are over; RunChanged, BadStep unless this run can go on from them."""
        del self.records[1:]
        wanted = [SOURCE, *(self._name(i + 1) for i in range(len(self.recipe.stages)))]
        present = sorted(
            p.name for p in self.out.iterdir()
            if p.is_dir() and is_step(p.name)
        )  # fmt: skip
        others = [name for name in present if name not in wanted]
        if others:
            raise self._changed(f"{', '.join(others)} is no step of this recipe")
        for number in range(1, len(wanted)):
            if wanted[number] not in present:
                later = [name for name in wanted[number:] if name in present]
                if later:
                    raise BadStep(
                        f"{self.out / wanted[number]} is missing, though {later[0]} is there.",
                        f"delete {', '.join(later)} as well to make them again, or start over "
                        "with --force.",
                    )
                self._check_state(wanted[number], self._fingerprint(number, self.records[-1]))
                break
            expected = self._fingerprint(number, self.records[number - 1])
            self.records.append(self._found(self.out / wanted[number], expected))

    def _found(self, directory: Path, expected: Fingerprint) -> StepRecord:
        record = read_step(directory)
        changed = differences(record.fingerprint, expected)
        if changed:
            raise self._changed("; ".join(changed), directory.name)
        return record

    def _changed(self, what: str, step: str | None = None) -> RunChanged:
        place = f"{self.out}: step {step}" if step else str(self.out)
        return RunChanged(
            f"{place} was made from something else: {what}.",
            "change that back to go on, delete that step and those after it to make them again, "
            "choose another output directory, or start over with --force.",
        )

    # ---- a step ----

    def _name(self, number: int) -> str:
        return step_name(number, self.recipe.stages[number - 1].name)

    def _fingerprint(self, number: int, before: StepRecord) -> Fingerprint:
        stage = self.recipe.stages[number - 1]
        made_from = before.fingerprint if before.stage == "source" else before.outcome()
        made_from = made_from | run_fingerprint(self.recipe) | {"device": self.device}
        if isinstance(stage.settings, StepSettings):
            given = trained_before(stage.settings, self.calibration, self._earlier(number))
            for n, one in enumerate(given, 1):
                epochs = getattr(one, "epochs", None)
                made_from[f"windows before, {n}"] = [one.samples, epochs, one.batch]
        return made_from | stage_fingerprint(stage, self.calibration)

    def _earlier(self, number: int) -> tuple[Any, ...]:
        """The settings of the stages before that of a number."""
        return tuple(stage.settings for stage in self.recipe.stages[: number - 1])

    def _step(self, number: int) -> None:
        stage, before, name = self.recipe.stages[number - 1], self.records[-1], self._name(number)
        expected = self._fingerprint(number, before)
        scratch = self._scratch(name, expected)
        logs = self.out / LOGS / name
        logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with new_directory(self.out / name) as folder:
            report = self._run_stage(stage, before, folder, scratch, logs)
            loading = write_readme(folder, name)
            with self.reporter.stage(f"{name}: counting"):
                facts = facts_of(folder)
                files = {file: file_record(folder / file) for file in list_files(folder)}
            record = StepRecord(
                name=name,
                stage=stage.kind,
                seed=self.recipe.run.seed,
                threads=self.recipe.run.threads,
                versions=versions(),
                fingerprint=expected,
                settings=asdict(stage.settings),
                parameters=report.parameters,
                notes=report.notes,
                figures=facts.figures(),
                seconds=round(time.monotonic() - started, 3),
                files=files,
            )
            write_step(folder, record)
        # read back: JSON has no tuples, and a resumed run has to see the same
        self.records.append(read_step(self.out / name))
        for note in report.notes:
            self._note(f"{name}: {note}")
        if not loading.plain:
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

    def _scratch(self, name: str, expected: Fingerprint) -> Path:
        """The folder for a stage's state, from this very stage or empty."""
        folder = self.out / SCRATCH / name
        if not self._check_state(name, expected):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / MADE_FROM, expected)
        for leftover in folder.glob(".*.partial"):  # of a process that was killed
            leftover.unlink()
        return folder

    def _check_state(self, name: str, expected: Fingerprint) -> bool:
        """Whether an interrupted attempt left state; RunChanged when that is from something else."""
        folder = self.out / SCRATCH / name
        if not (folder / MADE_FROM).exists():
            return False
        changed = differences(read_json(folder / MADE_FROM), expected)
        if changed:
            raise RunChanged(
                f"{self.out}: step {name} was interrupted, and began from something else: "
                f"{'; '.join(changed)}.",
                f"change that back to go on, or delete {folder} to begin that step again.",
            )
        return True

    # ---- figures ----

    def _measure(self, number: int) -> None:
        """Evaluates a step, unless that was done in just this way."""
        settings, record = self.recipe.evaluate, self.records[number]
        wanted = evaluation_fingerprint(settings)
        if settings is None or not differences(record.evaluation, wanted):
            return
        metrics = _evaluate(self._model_of(record), settings, self.device, self.reporter)
        changed = replace(record, evaluation=wanted, metrics=metrics)
        write_step(self.out / record.name, changed)
        self.records[number] = read_step(self.out / record.name)
        self._write_summary()

    def _write_summary(self) -> None:
        """run.json, table.md, run.svg and recipe.toml."""
        rows = rows_of(self.records)
        recipe = self.recipe.to_toml()
        write_file(self.out / RECIPE, recipe)
        write_file(self.out / TABLE, markdown(rows))
        content = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.source.name,
            "recipe": recipe,
            "steps": [asdict(row) for row in rows],
        }
        write_json(self.out / RUN, content)
        if (drawn := picture(rows)) is not None:
            write_file(self.out / PICTURE, drawn[1])

    # ---- a budget ----

    def _before_budget(self, source: Path, facts: ModelFacts) -> tuple[Path, ModelFacts]:
        """The model that the budget chooses for: what the stages before it leave, run now."""
        from shrinkc.compression.budget import before_budget

        whole = self.recipe
        first = before_budget(whole)
        if not first:
            return source, facts
        self.recipe = whole.with_stages(first)
        self._check_what_is_there()
        for number in range(len(self.records), len(first) + 1):
            self._step(number)
        source = self._model_of(self.records[-1])
        del self.records[1:]  # read again with those of all stages
        self.recipe = whole
        return source, facts_of(source)

    def _choice(self, source: Path, facts: ModelFacts) -> Recipe:
        """The recipe that the budget leads to; the search is made once and kept."""
        from shrinkc.compression.budget import decide

        made_from, measured_from = self._chosen_from()
        scratch = self._scratch("budget", measured_from)
        decision = decide(self.recipe, source, facts, self.calibration, self.reporter, scratch)
        written = decision.recipe.to_toml()
        content = {"made_from": made_from, "recipe": written, "report": decision.report}
        write_json(self.out / CHOSEN, content)
        self._note(decision.note())
        # as a resumed run will see it
        return parse_toml(written, name=self.recipe.name)

    def _kept_choice(self) -> Recipe | None:
        """The recipe that the budget led to in an earlier attempt.  RunChanged where it had another budget."""
        file = self.out / CHOSEN
        made_from, measured_from = self._chosen_from()
        if not file.exists():
            self._check_state("budget", measured_from)
            return None
        kept = read_json(file)
        changed = differences(kept["made_from"], made_from)
        if changed:
            raise RunChanged(
                f"{file} was made for something else: {'; '.join(changed)}.",
                "change that back to go on, choose another output directory, or start over "
                "with --force.",
            )
        return parse_toml(kept["recipe"], name=self.recipe.name)

    def _chosen_from(self) -> tuple[Fingerprint, Fingerprint]:
        """What decides a budget's choice, and of that what decides its measurements: not what they are for."""
        assert self.recipe.budget is not None
        made_from = self.records[0].fingerprint | run_fingerprint(self.recipe)
        for stage in self.recipe.stages:
            made_from |= stage_fingerprint(stage, self.calibration)
        for key, value in self.calibration.fingerprint().items():
            made_from[f"calibration.{key}"] = value
        budget = {f"budget.{k}": v for k, v in asdict(self.recipe.budget).items()}
        return made_from | budget, made_from


def _evaluate(
    directory: Path, settings: EvaluateSettings, device: str, reporter: Reporter
) -> dict[str, Any]:
    scorer = TorchScorer(load(directory, dtype=settings.dtype, device=device))
    return dict(evaluate(scorer, evaluation_plan(settings), reporter))


def evaluation_plan(settings: EvaluateSettings) -> EvalPlan:
    """What ``[evaluate]`` asks for."""

    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    return EvalPlan(
        text=path(settings.text),
        protocol=settings.protocol,
        windows=settings.windows,
        tasks=settings.choices(),
        items=settings.items,
        samples=settings.samples,
    )
