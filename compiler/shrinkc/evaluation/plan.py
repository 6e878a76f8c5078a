"""Plan and report of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import shrinkc
from shrinkc.core.errors import UsageError
from shrinkc.core.fingerprint import FILE, Fingerprint
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter, Update
from shrinkc.evaluation.divergence import compare_models, differences, windows_of_both
from shrinkc.evaluation.items import file_facts, read_text
from shrinkc.evaluation.perplexity import (
    COMPARED,
    DEFAULT_PROTOCOL,
    TEXT_PROTOCOLS,
    cut_text,
    fitting,
    predicted_bytes,
    summary,
    text_perplexity,
)
from shrinkc.evaluation.resuming import KeptBatches
from shrinkc.evaluation.scorer import CONDITIONS, Scorer
from shrinkc.evaluation.tasks import Task, TaskChoice, harness_version, tasks_made_from

SAMPLE_TOKENS = 64

Result = dict[str, object]


@dataclass(frozen=True)
class EvalPlan:
    """Settings of an evaluation.  A part that is None or empty is left out; a count of None means all.

    ``protocol``: None is the default, or a protocol with shorter windows if the model has too few positions.
    ``items``: number of questions per task, evenly spaced over its data.
    ``samples``: prompts to continue, or with ``chat`` messages of a user.
    """

    text: Path | None = None
    protocol: str | None = DEFAULT_PROTOCOL
    windows: int | None = None
    tasks: tuple[TaskChoice, ...] = ()
    items: int | None = None
    samples: tuple[str, ...] = ()
    chat: bool = False

    @property
    def empty(self) -> bool:
        return not (self.text or self.tasks or self.samples)


def evaluate(
    scorer: Scorer,
    plan: EvalPlan,
    reporter: Reporter,
    journal: Journal | None = None,
    base: Scorer | None = None,
) -> Result:
    """Measure all parts of ``plan`` and return a JSON-able report: ``model``, then one entry per part.

    Parts are ``perplexity``, ``tasks`` (an entry per task or group, see TaskResult) and ``samples``.  Every entry
    holds its protocol, its data file, the CONDITIONS and wall-clock seconds.  All data is read before anything is
    computed.  A ``journal`` with this evaluation's fingerprint (see :func:`made_from`) provides stored results and
    receives new ones at once; seconds then cover all attempts.  With ``base``, ``perplexity`` has an entry ``base``:
    see :func:`~shrinkc.evaluation.divergence.differences`.  Raises BadData, UsageError, BadWeights.
    """
    plan = fitted(plan, scorer, reporter, base)
    parts = _parts(plan, base)
    if not parts:
        raise UsageError("there is nothing to evaluate.", "ask for text, tasks or samples.")
    about = scorer.describe()
    conditions = {key: about[key] for key in CONDITIONS if key in about}
    report: Result = {"model": about}
    for name, title, work in parts:
        started = time.monotonic()
        scorer.kept = None if journal is None else KeptBatches(journal, title, reporter)
        try:
            with reporter.stage(title) as update:
                result = work(scorer, update)
            seconds = time.monotonic() - started + (scorer.kept.seconds if scorer.kept else 0.0)
        finally:
            scorer.kept = None
        about_all = {**conditions, "seconds": round(seconds, 3)}
        if name == "tasks":
            tasks = {task: {**cast(Result, found), **about_all} for task, found in result.items()}
            report[name] = {**cast(Result, report.get(name, {})), **tasks}
        else:
            report[name] = {**result, **about_all}
    return report


def fitted(
    plan: EvalPlan, scorer: Scorer, reporter: Reporter, base: Scorer | None = None
) -> EvalPlan:
    """Return ``plan`` with a protocol whose windows fit both models; ``reporter`` is told if it is not the default."""
    if plan.protocol is not None:
        return plan
    short = scorer if base is None or base.max_length > scorer.max_length else base
    plan = replace(plan, protocol=fitting(short.max_length))
    if plan.text is not None and plan.protocol != DEFAULT_PROTOCOL:
        reporter.note(
            f"note: {short.name} has {short.max_length} positions, too few for the windows of "
            f"{DEFAULT_PROTOCOL}: this is {plan.protocol}, and not to be compared with it"
        )
    return plan


def made_from(scorer: Scorer, plan: EvalPlan, base: Scorer | None = None) -> Fingerprint:
    """Return the fingerprint of an evaluation: CONDITIONS, hashes of data files, and settings; not the model's files.

    Raises BadData."""
    found: Fingerprint = {f"model.{key}": value for key, value in scorer.describe().items()}
    if base is not None:
        found |= {f"base.{key}": value for key, value in base.describe().items()}
    found["version of shrinkc"] = shrinkc.__version__
    for key, value in vars(plan).items():
        if isinstance(value, Path):
            found[f"{FILE}{value.name}"] = file_facts(value)["sha256"]
        elif key == "tasks":
            found |= tasks_made_from(plan.tasks)
        elif value is not None:
            found[key.replace("_", "-")] = value
    return found


def _parts(
    plan: EvalPlan, base: Scorer | None
) -> list[tuple[str, str, Callable[[Scorer, Update], Result]]]:
    """Read all data files and return (key in the report, title, work) of each part."""
    parts: list[tuple[str, str, Callable[[Scorer, Update], Result]]] = []
    if plan.text is not None:
        work = _perplexity(plan, plan.text, base)
        parts.append(("perplexity", f"perplexity, {plan.protocol}", work))
    for choice in plan.tasks:
        parts.append(("tasks", choice.name, _task(choice, plan.items)))
    if plan.samples:
        parts.append(("samples", "text samples", _samples(plan)))
    return parts


def _perplexity(
    plan: EvalPlan, path: Path, base: Scorer | None
) -> Callable[[Scorer, Update], Result]:
    protocol = TEXT_PROTOCOLS.get(plan.protocol or DEFAULT_PROTOCOL)
    if protocol is None:
        raise UsageError(
            f"no protocol called '{plan.protocol}'.", f"allowed: {', '.join(TEXT_PROTOCOLS)}."
        )
    text, facts = read_text(path), file_facts(path)

    def work(scorer: Scorer, update: Update) -> Result:
        return {**text_perplexity(scorer, text, protocol, plan.windows, update), **facts}

    def with_base(base: Scorer, scorer: Scorer, update: Update) -> Result:
        windows, about = windows_of_both(scorer, base, text, protocol, plan.windows)
        found = compare_models(scorer, base, windows, update)
        size = predicted_bytes(scorer.decode, windows)
        figures = summary([part.losses for part in found], size)
        base_figures = {"model": base.describe(), **differences(found)}
        return {**about, **figures, "base": base_figures, **facts}

    return work if base is None else partial(with_base, base)


def text_measured(
    plan: EvalPlan, encode: Callable[..., list[int]], dtype: str
) -> dict[str, object]:
    """Return the fields COMPARED of the perplexity of ``plan``, before it is measured.

    ``encode(text, special=…)`` and ``dtype`` are the future Scorer's.  Raises BadData, UsageError.
    """
    assert plan.text is not None
    protocol, text = TEXT_PROTOCOLS[plan.protocol or DEFAULT_PROTOCOL], read_text(plan.text)
    about = cut_text(encode, text, protocol, plan.windows)[1] | file_facts(plan.text)
    about |= {"dtype": dtype}
    return {key: about[key] for key in COMPARED}


def _task(choice: TaskChoice, items: int | None) -> Callable[[Scorer, Update], Result]:
    task = Task(choice, items)
    facts = {} if choice.data is None else file_facts(choice.data)

    def work(scorer: Scorer, update: Update) -> Result:
        found = task.run(scorer, update)
        return {
            name: {**asdict(result), **harness_version(), **facts} for name, result in found.items()
        }

    return work


def _samples(plan: EvalPlan) -> Callable[[Scorer, Update], Result]:
    def work(scorer: Scorer, update: Update) -> Result:
        encode = scorer.encode_chat if plan.chat else lambda text: scorer.encode(text, special=True)
        prompts = [encode(text) for text in plan.samples]
        room = scorer.max_length - max(map(len, prompts))
        if room < 1:
            raise UsageError(
                f"a prompt takes all {scorer.max_length} positions of {scorer.name}.",
                "give a shorter one.",
            )
        new = scorer.generate(prompts, min(SAMPLE_TOKENS, room), update)
        texts = [
            {"prompt": text, "prompt_tokens": ids, "new_tokens": out, "text": scorer.decode(out)}
            for text, ids, out in zip(plan.samples, prompts, new, strict=True)
        ]
        return {
            "protocol": "greedy",
            "chat": plan.chat,
            "max_new_tokens": min(SAMPLE_TOKENS, room),
            "texts": texts,
        }

    return work
