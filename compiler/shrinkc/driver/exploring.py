"""Search over recipes: study, trials and Pareto front."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.compression.explore import Result, explore, open_study, results_of, storage_errors
from shrinkc.compression.front import read_references, short, show, write_front
from shrinkc.compression.steps import read_json, write_json
from shrinkc.compression.trials import plan_trials
from shrinkc.core.errors import Interrupted, UsageError
from shrinkc.core.output import check_folder, make_folder
from shrinkc.core.parsing import json_object
from shrinkc.core.progress import Reporter
from shrinkc.core.words import show_size

MARK = "explore.json"
FORMAT = "shrinkc-explore"


@dataclass(frozen=True)
class ExploreRequest:
    """Options of a search."""

    model: str
    recipe: str
    assignments: tuple[str, ...]
    space: Path | None
    trials: int
    timeout: float | None
    storage: str | None
    study: str
    seed: int
    reference: tuple[Path, ...]
    keep_all: bool
    device: str
    output: Path

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid time, such as nan."""
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError(f"--timeout {self.timeout:g} is not possible.", "allowed: above 0.")


@dataclass(frozen=True)
class Explored:
    """Pareto front of a study: ``table`` as text, ``front`` as JSON."""

    table: list[str]
    front: dict[str, Any]


def explore_recipes(
    request: ExploreRequest, reporter: Reporter, check: Callable[[], None]
) -> Explored:
    """Run more trials of the study.  ``check`` is called before each, and the front is written after each."""
    out = request.output
    check_folder(out, lambda folder: json_object(folder / MARK).get("format") == FORMAT)
    trials = plan_trials(
        request.model, request.recipe, request.space, request.assignments, out / "trials",
        device=request.device, reporter=reporter,
    )  # fmt: skip
    conditions = trials.conditions()
    measured = trials.measured() if request.reference else {}
    references = [ref for file in request.reference for ref in read_references(file, measured)]
    make_folder(out / "trials")
    write_json(out / MARK, {"format": FORMAT, "version": 1, "study": request.study})
    storage = request.storage or f"sqlite:///{(out / 'study.db').resolve()}"
    study = open_study(storage, request.study, conditions)
    about = {"study": request.study, "conditions": dict(conditions)}
    begin = time.monotonic()

    def expired() -> bool:  # called before every trial
        check()
        return request.timeout is not None and time.monotonic() - begin >= request.timeout

    def write() -> list[str]:
        if not request.keep_all:
            trials.delete_dominated_models(results_of(study))
        return write_front(out, study, references, about)

    def finished(result: Result) -> None:
        reporter.note(_line(result))
        write()

    try:
        with storage_errors(storage):
            done = explore(
                study, trials.space, trials.run, trials=request.trials, seed=request.seed,
                expired=expired, finished=finished,
            )  # fmt: skip
            table = write()
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"stopped; {out} keeps the completed trials.",
            "run the same command again to continue the interrupted trial.",
        ) from stop
    if len(done) < request.trials and not expired():
        reporter.note("all combinations of the space have been tried")
    return Explored(table, read_json(out / "front.json"))


def _line(result: Result) -> str:
    values = ", ".join(f"{key} = {show(value)}" for key, value in result.values.items())
    said = f"{result.state}: {short(result.reason or '')}"
    if result.outcome is not None:
        size, perplexity = show_size(result.outcome.packed_bytes), result.outcome.perplexity
        said = f"{size}, perplexity {perplexity:.2f}"
    return f"trial {result.number} ({values}): {said}"
