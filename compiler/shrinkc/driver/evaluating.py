"""Evaluation of float and compiled models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.fingerprint import Fingerprint, model_fingerprint
from shrinkc.core.inputs import check_text_files
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter
from shrinkc.evaluation import (
    CompiledScorer,
    EvalPlan,
    Scorer,
    TaskChoice,
    TorchScorer,
    evaluate,
    fitted,
    made_from,
)
from shrinkc.evaluation.compiled_scorer import Engine
from shrinkc.evaluation.hub import is_hub, text_file
from shrinkc.evaluation.kv_cache import check_bits


@dataclass(frozen=True)
class EvalRequest:
    """Options of :func:`shrinkc.evaluate`, by name.  None selects the default of the model's scorer."""

    model: str
    text: str | None = None
    protocol: str | None = None
    windows: int | None = None
    tasks: Sequence[str] = ()
    items: int | None = None
    samples: Sequence[str] = ()
    chat: bool = False
    dtype: str | None = None
    kv_bits: int | None = None
    batch: int | None = None
    threads: int | None = None
    device: str | None = None
    engine: Engine | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError if a value is not possible."""
        if self.plan.empty:
            raise UsageError(
                "eval has nothing to measure.",
                "give at least one of --text FILE (or hub), --task NAME, --sample TEXT.",
            )
        if self.base is not None and not self.text:
            raise UsageError(
                f"--base {self.base} needs a text on which the models are compared.",
                "give one with --text FILE.",
            )
        if self.chat and not self.samples:
            raise UsageError("--chat needs a message.", "give one with --sample TEXT.")
        for name in ("batch", "threads", "items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value} is not possible.", "allowed: 1 and more.")
        check_bits(self.kv_bits)

    @cached_property
    def plan(self) -> EvalPlan:
        """Return the measurements to make."""
        return EvalPlan(
            text=data_path(self.text), protocol=self.protocol, windows=self.windows,
            tasks=tuple(map(TaskChoice.parse, self.tasks)), items=self.items,
            samples=tuple(self.samples), chat=self.chat,
        )  # fmt: skip


def evaluate_model(
    request: EvalRequest, *, env: Mapping[str, str], reporter: Reporter, resume: Path | None = None
) -> dict[str, Any]:
    """Measure and return the report, see :func:`shrinkc.evaluation.evaluate`.

    ``env`` is searched for programs.  ``resume``: file with stored scores, from which an interrupted measurement
    continues; a file with scores is never deleted.  Raises the errors of scorers and :class:`Journal`, BadData,
    UsageError.
    """
    names = [request.model, *([] if request.base is None else [request.base])]
    _check_options(request, names)
    with TemporaryDirectory(prefix="shrinkc-") as folder, ExitStack() as meanwhile:
        plan = with_files(request.plan, Path(folder), reporter)
        models = [
            _opened(name, request, env, reporter, kv_bits)
            for name, kv_bits in zip(names, (request.kv_bits, None), strict=False)
        ]
        if hidden := max(model.hidden for model in models):
            from shrinkc.checkpoints import suited_threads, threads_within

            threads = request.threads or suited_threads(hidden)
            meanwhile.enter_context(threads_within(threads))
        scorer, base = models[0].scorer, models[1].scorer if len(models) > 1 else None
        if resume is None:
            return evaluate(scorer, plan, reporter, base=base)
        plan = fitted(plan, scorer, reporter, base)
        with reporter.stage("reading the model"):
            origin = made_from(scorer, plan, base)
            for model, label in zip(models, ("", "the base's "), strict=False):
                origin |= model_fingerprint(model.source, label)
        with _journal(resume, origin, reporter) as journal:
            return evaluate(scorer, plan, reporter, journal, base)


@contextmanager
def _journal(path: Path, origin: Fingerprint, reporter: Reporter) -> Iterator[Journal]:
    """Open the file with stored scores; delete it at the end if it is empty."""
    journal = Journal(path, origin)
    if journal.records:
        reporter.note(f"note: goes on from {path}")
    if journal.damaged:
        reporter.note(f"note: what {journal.damaged} of the lines of {path} said is scored again")
    try:
        yield journal
    finally:
        if journal.empty:
            path.unlink(missing_ok=True)
        journal.close()


def with_files(plan: EvalPlan, folder: Path, reporter: Reporter) -> EvalPlan:
    """Return ``plan`` with a text of the hub downloaded to ``folder``.  Raises BadData if it cannot be
    read."""
    texts = [] if plan.text is None or is_hub(str(plan.text)) else [("text", plan.text)]
    check_text_files(
        texts,
        [("tasks", file) for choice in plan.tasks for file in choice.files],
    )
    if plan.text is None:
        return plan
    with reporter.stage("fetching data"):
        return replace(plan, text=text_file(str(plan.text), folder))


def data_path(value: str | None) -> Path | None:
    """Return a path, or ``hub`` as a path until :func:`with_files`."""
    return None if value is None else Path(value)


def _check_options(request: EvalRequest, models: Sequence[str]) -> None:
    """Raise UsageError for an option that applies to none of ``models`` (the measured one first, then the base)."""
    compiled = [artifact.is_artifact(Path(model)) for model in models]
    of_float = {"dtype": False, "kv_bits": True, "device": False, "threads": False, "batch": True}
    wrong = [
        f"--{name.replace('_', '-')}"
        for name, of_first_alone in of_float.items()
        if getattr(request, name) is not None and (compiled[0] if of_first_alone else all(compiled))
    ]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} cannot be used with {models[0]}, which is compiled.",
            f"leave {'it' if len(wrong) == 1 else 'them'} out.",
        )
    for path in map(Path, models):
        if (path / artifact.MANIFEST).is_file() and not (path / "config.json").is_file():
            artifact.read_manifest(path)  # raises the error
    if request.engine is not None and not any(compiled):
        raise UsageError(
            f"--engine {request.engine}: {models[0]} is not a compiled directory.",
            "leave --engine out, or give a directory made by 'shrinkc compile'.",
        )


@dataclass(frozen=True)
class _Opened:
    """Scorer, the file or directory that identifies the model, and the hidden size for the number of torch threads
    (0 for a program)."""

    scorer: Scorer
    source: Path
    hidden: int = 0


def _opened(
    model: str,
    request: EvalRequest,
    env: Mapping[str, str],
    reporter: Reporter,
    kv_bits: int | None,
) -> _Opened:
    path = Path(model)
    if artifact.is_artifact(path):
        with reporter.stage("building the program"):
            scorer = CompiledScorer(path, env, request.engine or "host")
        return _Opened(scorer, path / artifact.MANIFEST)  # has the hash of every file
    from shrinkc.checkpoints import load, need

    need("torch", "transformers")
    with reporter.stage("loading the model"):
        dtype, device = request.dtype or "float32", request.device or "cpu"
        loaded = load(model, dtype=dtype, device=device)
    batch = {} if request.batch is None else {"batch": request.batch}
    hidden = int(loaded.model.config.hidden_size)
    return _Opened(TorchScorer(loaded, kv_bits=kv_bits, **batch), loaded.path, hidden)
