"""A search over recipes: bytes against perplexity, as an Optuna study that many may work on.

The study is the memory: every trial's values, outcome or reason of failure are in its storage, so
that any number of processes, on any number of machines, now or later, go on from what is known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np

from shrinkc.compression.space import Space, Values
from shrinkc.compression.steps import check_unchanged
from shrinkc.core.errors import OutputError, ShrinkcError, StageFailed
from shrinkc.core.fingerprint import Fingerprint

STARTUP = 10  # trials before the sampler learns from them
GUIDED, TRIES = 40, 200  # proposals that may be known already: of the sampler, then random ones
CONDITIONS = "shrinkc"  # the study's attribute that says what its trials have in common

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
    """One finished trial of a study.  ``state``: complete, infeasible or failed.  ``best``: no other
    one is smaller and better."""

    number: int
    values: Values
    state: str
    outcome: Outcome | None = None
    reason: str | None = None
    best: bool = False

    def to_json(self) -> dict[str, Any]:
        known = {"trial": self.number, "state": self.state, "values": self.values}
        if self.reason is not None:
            known["reason"] = self.reason
        return known | (vars(self.outcome) if self.outcome else {})


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """OutputError in place of what the libraries say of a study's storage: it cannot be opened,
    read or written."""
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, ImportError) as error:
        said = str(error.__cause__ or error).strip().split("\n")[0]
        raise OutputError(
            _PASSWORD.sub("***", f"the study's storage {storage} cannot be used: {said}."),
            "free some space or change its rights, and give the same command again; --storage is "
            "a URL such as sqlite:///study.db or postgresql://host/database, whose driver has to be "
            "installed.",
        ) from error


def open_study(storage: str, name: str, conditions: Fingerprint) -> Any:
    """The Optuna study called ``name``, made if there is none.

    ``conditions`` are what all its trials have in common.  Raises RunChanged, naming what differs,
    when the study was made under others; OutputError for a storage that cannot be used.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage_errors(storage):
        study = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize", "minimize"],
            load_if_exists=True,
        )  # fmt: skip
        if CONDITIONS not in study.user_attrs:
            study.set_user_attr(CONDITIONS, dict(conditions))
        before = study.user_attrs[CONDITIONS]
    check_unchanged(
        f"the study '{name}' was started under other conditions",
        before,
        json.loads(json.dumps(conditions)),
        "trials could not be compared; give another --study name, or the same conditions.",
    )
    return study


def propose(study: Any, space: Space, seed: int) -> dict[str, Any] | None:
    """Parameters whose values no trial of the study has; None when there seem to be no more.

    A trial that was interrupted comes first.  Depends on nothing but the study's trials and the
    seed, so that a study in one go and one in parts make the same proposals.  They are made by
    Optuna's tree-structured Parzen estimator, to which trials that were pruned are worse than any
    other, on a copy of the study.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    known = [space.values(t.params) for t in trials if t.params]
    tried = [space.values(t.params) for t in trials if t.state.name != "FAIL"]
    for trial in trials:
        if trial.params and space.values(trial.params) not in tried:
            return dict(trial.params)
    number = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    copy = optuna.create_study(
        directions=study.directions,
        sampler=optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP),
    )
    copy.add_trials(trials)
    for attempt in range(TRIES):
        if attempt == GUIDED:
            copy.sampler = optuna.samplers.RandomSampler(seed=number)
        trial = copy.ask(space.distributions)
        if space.values(trial.params) not in known:
            return dict(trial.params)
        copy.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return None


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
    stop the others.  One that is interrupted, or cannot be written (OutputError), waits for
    whoever goes on.
    StageFailed if every one of them failed, or none was feasible in the whole study.
    """
    done: list[Result] = []
    counted = 0
    while counted < trials and len(done) < 10 * trials and not expired():
        params = propose(study, space, seed)
        if params is None:
            break
        number = _run_one(study, space, params, run_trial)
        if number is None:
            continue
        done += [r for r in results_of(study) if r.number == number]
        counted += done[-1].state != "infeasible"
        finished(done[-1])
    failed = [r for r in done if r.state == "failed"]
    if failed and len(failed) == counted:
        raise StageFailed(
            f"all {counted} trials failed; the first: {failed[0].reason}",
            "'shrinkc compress' with the same recipe shows more.",
        )
    if done and not counted and not study.best_trials:
        raise StageFailed(
            f"none of {len(done)} trials is possible; the first: {done[0].reason}",
            "change the recipe or its ranges.",
        )
    return done


def _run_one(
    study: Any, space: Space, params: Mapping[str, Any], run_trial: RunTrial
) -> int | None:
    """Runs a trial with these parameters and returns its number; None if another process has just
    begun the same."""
    from optuna.trial import Trial, TrialState, create_trial

    values = space.values(params)
    # All at once.  Optuna's queue lets two processes on SQLite take the same trial, and Study.ask()
    # shows others a trial without its values.
    token = uuid4().hex
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING, params=dict(params), distributions=space.distributions,
            user_attrs={"values": values, "token": token},
        )
    )  # fmt: skip
    trials = study.get_trials(deepcopy=False)
    begun = next(t for t in trials if t.user_attrs.get("token") == token)
    trial = Trial(study, begun._trial_id)
    earlier = (t for t in trials if t.number < begun.number and t.state.name != "FAIL")
    if any(t.user_attrs.get("values") == values for t in earlier):
        trial.set_user_attr("state", "duplicate")
        study.tell(trial, state=TrialState.FAIL)
        return None
    try:
        outcome = run_trial(trial.number, values)
        if not math.isfinite(outcome.perplexity):
            raise StageFailed(f"the perplexity is {outcome.perplexity}.")
    except BaseException as error:
        if not isinstance(error, Exception) or isinstance(error, OutputError):
            # Ctrl-C and the like, and a full disk, which says nothing of these values
            study.tell(trial, state=TrialState.FAIL)
            raise
        kind = f"{getattr(error, 'title', type(error).__name__)}: "
        infeasible = isinstance(error, InfeasibleError)
        trial.set_user_attr("state", "infeasible" if infeasible else "failed")
        said = error.message if isinstance(error, ShrinkcError) else str(error)
        trial.set_user_attr("reason", " ".join(f"{'' if infeasible else kind}{said}".split()))
        study.tell(trial, state=TrialState.PRUNED)  # FAIL is nothing that the sampler learns from
    else:
        trial.set_user_attr("outcome", vars(outcome))
        # the sampler measures how far trials are apart: nats do not grow without bound
        study.tell(trial, [outcome.packed_bytes, math.log(outcome.perplexity)])
    return int(trial.number)


def results_of(study: Any) -> list[Result]:
    """Every finished trial of the study, whoever ran it."""
    best = {t.number for t in study.best_trials}
    out = []
    for t in study.get_trials(deepcopy=False):
        values = t.user_attrs.get("values", {})
        if t.state.name == "COMPLETE":
            outcome = Outcome(**t.user_attrs["outcome"])
            result = Result(t.number, values, "complete", outcome, best=t.number in best)
            out.append(result)
        elif t.state.is_finished() and t.user_attrs.get("state") != "duplicate":
            state = t.user_attrs.get("state", "failed")
            reason = t.user_attrs.get("reason", "interrupted")
            out.append(Result(t.number, values, state, reason=reason))
    return out


def front_of(results: Sequence[Result]) -> list[Result]:
    """Those that no other one beats in bytes and perplexity; from the smallest on."""
    return sorted(
        (r for r in results if r.best), key=lambda r: r.outcome.packed_bytes if r.outcome else 0
    )
