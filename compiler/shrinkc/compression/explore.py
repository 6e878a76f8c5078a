"""A search over recipes: bytes against perplexity, as an Optuna study that many may work on.

The study is the memory: every trial's values, outcome or reason of failure are in its storage, so
that any number of processes, on any number of machines, now or later, go on from what is known.
Which values come next is decided on a copy of it (:func:`propose`), where trials that failed count
as bad ones; Optuna's samplers do not learn from those.
"""

from __future__ import annotations

import json
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.checkpoints import need
from shrinkc.compression.space import Space, Values
from shrinkc.core.errors import OutputError, RunChanged, ShrinkcError, StageFailed, UsageError
from shrinkc.core.fingerprint import Fingerprint, differences

STARTUP = 10  # trials before the sampler learns from them
GUIDED = 40  # proposals of the sampler that may be known already, then random ones
TRIES = 200
CONDITIONS = "shrinkc"  # the study's attribute that says what its trials have in common

# what SQLite calls a full disk, missing rights, a failing disk; Optuna wraps them twice
_SQLITE = ("database or disk is full", "attempt to write a readonly database", "disk I/O error")
_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")


class InfeasibleError(Exception):
    """What a preflight says of a trial's recipe; no work was done."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.  ``figures``: whatever else is worth keeping, JSON-able."""

    packed_bytes: int
    perplexity: float
    figures: dict[str, Any] = field(default_factory=dict)


RunTrial = Callable[[int, Values], Outcome]
"""Runs the trial of that number; raises InfeasibleError, or any other exception when it fails."""


@dataclass(frozen=True)
class Result:
    """One finished trial of a study.  ``state``: complete, infeasible or failed."""

    number: int
    values: Values
    state: str
    outcome: Outcome | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        known: dict[str, Any] = {"trial": self.number, "state": self.state, "values": self.values}
        if self.outcome is not None:
            known["packed_bytes"] = self.outcome.packed_bytes
            known["perplexity"] = self.outcome.perplexity
            known["figures"] = self.outcome.figures
        if self.reason is not None:
            known["reason"] = self.reason
        return known


def open_study(storage: str, name: str, conditions: Fingerprint) -> Any:
    """The Optuna study called ``name``, made if there is none.

    ``conditions`` are what all its trials have in common.  Raises RunChanged, naming
    what differs, when the study was made under others; UsageError for a storage that cannot be
    opened; OutputError for a file that cannot be written.
    """
    need("optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize", "minimize"],
            load_if_exists=True,
        )  # fmt: skip
        known = study.user_attrs.get(CONDITIONS)
        if known is None:
            study.set_user_attr(CONDITIONS, dict(conditions))
            known = study.user_attrs[CONDITIONS]
    except Exception as error:  # SQLAlchemy's, the driver's, Optuna's own
        refusal = _unwritable(storage, error)
        if refusal is not None:
            raise refusal from error
        raise UsageError(
            f"the study's storage {_PASSWORD.sub('***', storage)} cannot be used: "
            f"{_PASSWORD.sub('***', _first_line(error))}",
            "give an SQLAlchemy URL such as sqlite:///study.db or postgresql://host/database; "
            "its driver has to be installed.",
        ) from error
    changed = differences(known, json.loads(json.dumps(conditions)))
    if changed:
        raise RunChanged(
            f"the study '{name}' was started under other conditions: {'; '.join(changed)}.",
            "trials could not be compared; give another --study name, or the same conditions.",
        )
    return study


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """OutputError in place of what the libraries say of a study's file that cannot be written."""
    try:
        yield
    except Exception as error:
        refusal = None if isinstance(error, ShrinkcError) else _unwritable(storage, error)
        if refusal is None:
            raise
        raise refusal from error


def _unwritable(storage: str, error: BaseException | None) -> OutputError | None:
    while error is not None:
        said = next((text for text in _SQLITE if text in str(error)), None)
        if said is not None:
            return OutputError(
                f"{storage.removeprefix('sqlite:///')} cannot be written: {said}.",
                "free some space or change its rights; the same command then goes on.",
            )
        error = error.__cause__ or error.__context__
    return None


def propose(study: Any, space: Space, seed: int) -> dict[str, Any] | None:
    """Parameters that no trial of the study has; None when there seem to be no more.

    Depends on nothing but the study's trials and the seed, so that a study in one go and one in
    parts make the same proposals.  Tree-structured Parzen estimator for two objectives, bytes and
    log perplexity; a trial that failed, or runs, counts as worse than any.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    number = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    copy = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP),
    )
    seen = set()
    complete = [t.values for t in trials if t.state.name == "COMPLETE"]
    worst = None
    if complete:
        worst = [2 * max(v[0] for v in complete), 1 + math.log(max(v[1] for v in complete))]
    for t in trials:
        seen.add(_key(t.params))
        values = [t.values[0], math.log(t.values[1])] if t.state.name == "COMPLETE" else worst
        if values is not None:
            copy.add_trial(
                optuna.create_trial(params=t.params, distributions=t.distributions, values=values)
            )
    for attempt in range(TRIES):
        if attempt == GUIDED:
            copy.sampler = optuna.samplers.RandomSampler(seed=number)
        trial = copy.ask()
        space.suggest(trial)
        if _key(trial.params) not in seen:
            return dict(trial.params)
        copy.tell(trial, worst, state=_state("COMPLETE" if worst else "FAIL"))
    return None


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _state(name: str) -> Any:
    import optuna

    return optuna.trial.TrialState[name]


def explore(
    study: Any,
    space: Space,
    run_trial: RunTrial,
    *,
    trials: int,
    seed: int,
    expired: Callable[[], bool] = lambda: False,
    finished: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Runs ``trials`` more trials, fewer if ``expired`` says so before one or the space is at its
    end; infeasible ones do not count, up to ten times as many.

    ``finished`` hears of every one.  A trial that fails is recorded with its reason and does not
    stop the others.  One that is interrupted, or cannot be written (OutputError), fails, and its
    values wait for whoever goes on.
    StageFailed if every one of them failed, or none was feasible in the whole study.
    """
    done: list[Result] = []
    counted = 0
    while counted < trials and len(done) < 10 * trials and not expired():
        params = propose(study, space, seed)
        if params is None:
            break
        result = _run_one(study, space, params, run_trial)
        done.append(result)
        counted += result.state != "infeasible"
        finished(result)
    failed = [r for r in done if r.state == "failed"]
    if failed and len(failed) == counted:
        raise StageFailed(
            f"all {counted} trials failed; the first: {failed[0].reason}",
            "'shrinkc compress' with the same recipe shows more.",
        )
    complete = any(t.state.name == "COMPLETE" for t in study.get_trials(deepcopy=False))
    if done and not counted and not complete:
        raise StageFailed(
            f"none of {len(done)} trials is possible; the first: {done[0].reason}",
            "change the recipe or its ranges.",
        )
    return done


def _run_one(study: Any, space: Space, params: dict[str, Any], run_trial: RunTrial) -> Result:
    """Runs what an interrupted trial left waiting, or else ``params``."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.PartialFixedSampler(params, optuna.samplers.RandomSampler())
    trial = study.ask()
    try:
        values = space.suggest(trial)
        outcome = run_trial(trial.number, values)
        if not math.isfinite(outcome.perplexity):
            raise StageFailed(f"the perplexity is {outcome.perplexity}.")
    except InfeasibleError as problem:
        return _told(study, trial, values, "infeasible", str(problem))
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, OutputError):
            return _told(study, trial, values, "failed", _reason(error))
        # Ctrl-C and the like, and a full disk, which says nothing of these values
        study.tell(trial, state=_state("FAIL"))
        study.enqueue_trial(trial.params)
        raise
    trial.set_user_attr("figures", outcome.figures)
    study.tell(trial, [outcome.packed_bytes, outcome.perplexity])
    return Result(trial.number, values, "complete", outcome)


def _told(study: Any, trial: Any, values: Values, state: str, reason: str) -> Result:
    trial.set_user_attr("state", state)
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=_state("PRUNED" if state == "infeasible" else "FAIL"))
    return Result(trial.number, values, state, reason=reason)


def _reason(error: Exception) -> str:
    if isinstance(error, ShrinkcError):
        return f"{error.title}: {error.message}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_first_line(error)} ({Path(last.filename).name}, {last.name})"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def results_of(study: Any, space: Space) -> list[Result]:
    """Every finished trial of the study, whoever ran it."""
    out = []
    for t in study.get_trials(deepcopy=False):
        name = t.state.name
        if name not in ("COMPLETE", "FAIL", "PRUNED"):
            continue
        values = space.suggest(_Finished(t.params))
        if name == "COMPLETE":
            figures = t.user_attrs.get("figures", {})
            outcome = Outcome(int(t.values[0]), t.values[1], figures)
            out.append(Result(t.number, values, "complete", outcome))
        else:
            state = t.user_attrs.get("state", "failed")
            reason = t.user_attrs.get("reason", "interrupted")
            out.append(Result(t.number, values, state, reason=reason))
    return out


class _Finished:
    """Suggests what a finished trial had."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._params[name]

    def suggest_int(self, name: str, low: int, high: int, **rest: Any) -> int:
        return int(self._params[name])

    def suggest_float(self, name: str, low: float, high: float, **rest: Any) -> float:
        return float(self._params[name])


def front_of(results: list[Result]) -> list[Result]:
    """Those that no other one beats in bytes and perplexity; from the smallest on."""
    complete = [(r.outcome.packed_bytes, r.outcome.perplexity, r) for r in results if r.outcome]
    best = math.inf
    out = []
    for _, perplexity, result in sorted(complete, key=lambda c: (c[0], c[1], c[2].number)):
        if perplexity < best:
            best = perplexity
            out.append(result)
    return out
