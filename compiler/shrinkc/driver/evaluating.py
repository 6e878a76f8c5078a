"""An evaluation: whatever the model is, what runs it, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from shrinkc.core import artifact
from shrinkc.core.errors import UsageError
from shrinkc.core.fingerprint import Fingerprint, model_fingerprint
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter
from shrinkc.evaluation import (
    CompiledScorer,
    EvalPlan,
    Scorer,
    TorchScorer,
    evaluate,
    fitted,
    made_from,
)
from shrinkc.evaluation.compiled_scorer import Engine
from shrinkc.evaluation.hub import SOURCES, data_file
from shrinkc.evaluation.kv_cache import check_bits


@dataclass(frozen=True)
class EvalRequest:
    """What to measure of which model; what is None is left to whoever runs the model."""

    model: str
    plan: EvalPlan
    dtype: str | None
    device: str | None
    batch: int | None
    threads: int | None
    engine: Engine | None
    kv_bits: int | None
    base: str | None = None
    """A model from whose predictions of the plan's text those of the model differ, by how much is asked."""

    @classmethod
    def from_options(
        cls,
        *,
        model: str,
        text: str | None,
        protocol: str | None,
        windows: int | None,
        trivia: str | None,
        trivia_items: int | None,
        hellaswag: str | None,
        hellaswag_items: int | None,
        sample: Sequence[str],
        chat: bool,
        dtype: str | None,
        device: str | None,
        batch: int | None,
        threads: int | None,
        engine: str | None,
        kv_bits: int | None,
        base: str | None = None,
    ) -> EvalRequest:
        """From the values of options; UsageError when one is not possible."""
        plan = EvalPlan(
            text=data_path(text), protocol=protocol, windows=windows,
            trivia=data_path(trivia), trivia_items=trivia_items, hellaswag=data_path(hellaswag),
            hellaswag_items=hellaswag_items, samples=tuple(sample), chat=chat,
        )  # fmt: skip
        if plan.empty:
            raise UsageError(
                "nothing to measure was asked for.",
                "give at least one of --text FILE, --trivia FILE, --hellaswag FILE (or hub), --sample TEXT.",
            )
        if base is not None and not text:
            raise UsageError(
                f"--base {base}: what two models predict is compared on a text.",
                "give one with --text FILE.",
            )
        if chat and not sample:
            raise UsageError("--chat is about samples.", "give a message with --sample TEXT.")
        for name, value in (
            ("--batch", batch), ("--threads", threads), ("--trivia-items", trivia_items),
            ("--hellaswag-items", hellaswag_items),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is not possible.", "allowed: 1 and more.")
        check_bits(kv_bits)
        return cls(
            model, plan, dtype, device, batch, threads, cast(Engine | None, engine), kv_bits, base
        )


def evaluate_model(
    request: EvalRequest, *, env: Mapping[str, str], reporter: Reporter, resume: Path | None = None
) -> dict[str, Any]:
    """The report of a measurement, see :func:`shrinkc.evaluation.evaluate`.

    ``env`` says where programs are found.  ``resume``: the file that keeps what was scored, from which an
    interrupted measurement goes on; it stays, whatever happens, if there is anything in it.  Raises what a
    scorer raises, BadData, UsageError, and what a :class:`Journal` does.
    """
    _check_options(request)
    with TemporaryDirectory(prefix="shrinkc-") as folder, ExitStack() as meanwhile:
        plan = with_files(request.plan, Path(folder), reporter)
        scorer, source = _scorer(request.model, request, env, reporter, meanwhile, request.kv_bits)
        base, sources = None, {"": source}
        if request.base is not None:
            base, sources["base/"] = _scorer(request.base, request, env, reporter, meanwhile)
        if resume is None:
            return evaluate(scorer, plan, reporter, base=base)
        plan = fitted(plan, scorer, reporter)
        with reporter.stage("reading the model"):
            origin = made_from(scorer, plan, base)
            for label, each in sources.items():
                origin |= model_fingerprint(each, label)
        with _journal(resume, origin, reporter) as journal:
            return evaluate(scorer, plan, reporter, journal, base)


@contextmanager
def _journal(path: Path, origin: Fingerprint, reporter: Reporter) -> Iterator[Journal]:
    """The file with what was scored, which is left alone if there is anything in it."""
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
    """The plan with what is on the hub fetched to files in ``folder``."""
    with reporter.stage("fetching data"):
        files = {
            kind: data_file(str(value), kind, folder)
            for kind in SOURCES
            if (value := getattr(plan, kind)) is not None
        }
    return replace(plan, **files)  # type: ignore[arg-type]


def data_path(value: str | None) -> Path | None:
    """A file's name, or ``hub``, as a plan has it until :func:`with_files`."""
    return None if value is None else Path(value)


def _check_options(request: EvalRequest) -> None:
    """UsageError for an option that none of the models has a use for."""
    models = [request.model, *([] if request.base is None else [request.base])]
    compiled = [artifact.is_artifact(Path(model)) for model in models]
    of_float = {"dtype": False, "kv_bits": True, "device": False, "threads": False, "batch": True}
    wrong = [
        f"--{name.replace('_', '-')}"
        for name, of_model_alone in of_float.items()
        if getattr(request, name) is not None
        and (compiled[0] if of_model_alone else all(compiled))
    ]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)}: {models[0]} is a compiled program, which runs as it was "
            "compiled.",
            "leave that out.",
        )
    for model in models:
        path = Path(model)
        if (path / artifact.MANIFEST).is_file() and not (path / "config.json").is_file():
            artifact.read_manifest(path)  # says what is wrong with it
    if request.engine is not None and not any(compiled):
        raise UsageError(
            f"--engine {request.engine}: {models[0]} is not a compiled directory.",
            "leave --engine out, or give a directory made by 'shrinkc compile'.",
        )


def _scorer(
    model: str,
    request: EvalRequest,
    env: Mapping[str, str],
    reporter: Reporter,
    meanwhile: ExitStack,
    kv_bits: int | None = None,
) -> tuple[Scorer, Path]:
    """What runs ``model``, and the file or directory that decides what it is.

    ``meanwhile`` is the time in which torch has as many threads as are asked for.
    """
    path = Path(model)
    if artifact.is_artifact(path):
        with reporter.stage("building the program"):
            # the manifest has the hash of every file
            return CompiledScorer(path, env, request.engine or "host"), path / artifact.MANIFEST
    from shrinkc.checkpoints import load, need, suited_threads, threads_within

    need("torch", "transformers")
    if request.threads is not None:
        meanwhile.enter_context(threads_within(request.threads))
    with reporter.stage("loading the model"):
        loaded = load(model, dtype=request.dtype or "float32", device=request.device or "cpu")
    if request.threads is None:
        threads = suited_threads(loaded.model.config.hidden_size)
        meanwhile.enter_context(threads_within(threads))
    batch = {} if request.batch is None else {"batch": request.batch}
    return TorchScorer(loaded, kv_bits=kv_bits, **batch), loaded.path
