"""Search over recipes for few bytes and low perplexity, as an Optuna study.

The study's storage has the values, and the outcome or reason of failure, of every trial.  Any number of processes on
any number of machines can work on a study at the same time or later.
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
# proposals that may repeat earlier trials: the first GUIDED are the sampler's, the rest of TRIES are random
GUIDED, TRIES = 40, 200
CONDITIONS = "shrinkc"  # attribute of a study with the conditions that its trials share

_PASSWORD = re.compile(r"(?<=:)[^:/@]+(?=@)")


class InfeasibleError(Exception):
    """A trial's recipe is impossible; found by preflight before any work."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial.  ``figures``: further JSON-able values."""

    packed_bytes: int
    perplexity: float
    figures: dict[str, Any] = field(default_factory=dict)


RunTrial = Callable[[int, Values], Outcome]
"""Function that runs the trial of a number; raises InfeasibleError, or another exception if the trial fails."""


@dataclass(frozen=True)
class Result:
    """A finished trial of a study.  ``state``: complete, infeasible or failed.  ``best``: it is on the Pareto front of
    bytes and perplexity."""

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
    """Raise OutputError instead of the libraries' errors if a study's storage cannot be opened, read or written."""
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
    """Open the Optuna study ``name``, or make it.

    ``conditions``: fingerprint that all its trials share.  Raises RunChanged with the differences if the study was
    made with other conditions, and OutputError if the storage cannot be used.
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
    """Propose parameters with values that no trial of the study has; None if there seem to be no more.

    Interrupted trials are proposed first.  The result depends only on the study's trials and the seed, so an
    interrupted search makes the same proposals as an uninterrupted one.  New proposals come from Optuna's
    tree-structured Parzen estimator on a copy of the study; it ranks pruned trials below all others.
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
    """Run ``trials`` more trials, or fewer if ``expired()`` is true before one or no new values are left.

    Infeasible trials do not count, but at most 10 · ``trials`` are started.  ``finished`` is called after each trial.
    A failed trial is recorded with its reason, and the search continues.  A trial that is interrupted or cannot be
    written (OutputError) is proposed again later.  Raises StageFailed if all trials failed, or if the study has no
    feasible trial.
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
    """Run a trial with these parameters and return its number; None if another process has just started the same."""
    from optuna.trial import Trial, TrialState, create_trial

    values = space.values(params)
    # The trial is added with its values in one call: Optuna's queue lets two processes on SQLite take the same
    # trial, and Study.ask() shows other processes a trial without values.
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
            # an interrupt or a full disk, which do not depend on these values
            study.tell(trial, state=TrialState.FAIL)
            raise
        kind = f"{getattr(error, 'title', type(error).__name__)}: "
        infeasible = isinstance(error, InfeasibleError)
        trial.set_user_attr("state", "infeasible" if infeasible else "failed")
        said = error.message if isinstance(error, ShrinkcError) else str(error)
        trial.set_user_attr("reason", " ".join(f"{'' if infeasible else kind}{said}".split()))
        study.tell(trial, state=TrialState.PRUNED)  # the sampler ignores FAIL
    else:
        trial.set_user_attr("outcome", vars(outcome))
        # the sampler uses distances between trials, which nats keep moderate
        study.tell(trial, [outcome.packed_bytes, math.log(outcome.perplexity)])
    return int(trial.number)


def results_of(study: Any) -> list[Result]:
    """Return every finished trial of the study, of all processes."""
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
    """Return the Pareto front of bytes and perplexity, sorted by bytes."""
    return sorted(
        (r for r in results if r.best), key=lambda r: r.outcome.packed_bytes if r.outcome else 0
    )
