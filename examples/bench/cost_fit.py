"""Coefficients from measurements: non-negative least squares of relative errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from shrinkc.costs.table import Error, cycles_of
from shrinkc.costs.work import OVERLAPPED, Work, lane


@dataclass(frozen=True)
class Sample:
    """One measurement of an op: ``cycles`` without waits for transfers."""

    work: Work
    cycles: float


def fit(samples: Sequence[Sample]) -> dict[str, float]:
    """Feature -> cycles, none negative, such that relative errors are small.

    Where an engine and the cores work at the same time, a sample measures the slower one.  Which one that is depends on
    the coefficients, and they depend on it: so both are found by iteration, from several guesses; the best result wins.
    ValueError where nothing was measured.
    """
    if not samples or any(s.cycles <= 0 for s in samples):
        raise ValueError("nothing was measured")
    best: tuple[float, dict[str, float]] | None = None
    for guess in ("both", "engine", "cores"):
        found = _iterate(samples, guess)
        off = [predict(found, s.work) / s.cycles - 1 for s in samples]
        loss = float(np.square(off).sum())
        if best is None or loss < best[0]:
            best = loss, found
        if not any(lane(name) for s in samples for name in s.work.features):
            break
    assert best is not None
    # a feature of a lane that was never the slower one has no measurable cost
    unseen = {name: 0.0 for s in samples for name in s.work.features}
    return dict(sorted({**unseen, **best[1]}.items()))


def fit_more(known: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, float]:
    """Feature -> cycles of the features that ``known`` lacks, which must be of the cores; ``known`` stays.

    ValueError where nothing was measured, or if an engine has an unknown feature."""
    counts, rest = [], []
    for s in samples:
        more = {name: v for name, v in s.work.features.items() if name not in known}
        if any(lane(name) for name in more):
            raise ValueError(f"an engine has unknown features: {', '.join(more)}")
        counts.append({name: v / s.cycles for name, v in more.items()})
        rest.append(1 - predict(known, s.work) / s.cycles)
    names = sorted({name for c in counts for name in c})
    if not names:
        raise ValueError("nothing was measured")
    rows = np.array([[c.get(name, 0.0) for name in names] for c in counts])
    size = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    found = nnls(rows / size, np.array(rest))[0] / size
    return {name: float(v) for name, v in zip(names, found, strict=True)}


def _iterate(samples: Sequence[Sample], guess: str) -> dict[str, float]:
    """The coefficients after at most 20 iterations that start from ``guess``."""
    shorter: list[str] = [
        {"both": "-", "engine": OVERLAPPED, "cores": "engine"}[guess] for _ in samples
    ]
    found: dict[str, float] = {}
    for _ in range(20):
        counted = [_counted(s.work, less) for s, less in zip(samples, shorter, strict=True)]
        found = _linear(counted, [s.cycles for s in samples])
        before, shorter = shorter, [_shorter(found, s.work) for s in samples]
        if before == shorter:
            break
    return found


def _shorter(per: Mapping[str, float], work: Work) -> str:
    """The faster one of an engine and the cores that work at the same time: OVERLAPPED (the cores) or "engine"."""
    lanes = dict.fromkeys((OVERLAPPED, "engine"), 0.0)
    for name, count in work.features.items():
        if who := lane(name):
            lanes[OVERLAPPED if who == OVERLAPPED else "engine"] += per.get(name, 0.0) * count
    return "engine" if lanes[OVERLAPPED] > lanes["engine"] else OVERLAPPED


def _counted(work: Work, shorter: str) -> dict[str, float]:
    """The features of ``work`` without those of the faster lane."""
    if shorter == OVERLAPPED:
        return {n: v for n, v in work.features.items() if lane(n) != OVERLAPPED}
    if shorter == "engine":
        return {n: v for n, v in work.features.items() if lane(n) in ("", OVERLAPPED)}
    return dict(work.features)


def _linear(counts: Sequence[Mapping[str, float]], cycles: Sequence[float]) -> dict[str, float]:
    names = sorted({name for c in counts for name in c})
    rows = np.array(
        [[c.get(n, 0.0) / took for n in names] for c, took in zip(counts, cycles, strict=True)]
    )
    size = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    found = nnls(rows / size, np.ones(len(cycles)))[0] / size
    return {name: float(v) for name, v in zip(names, found, strict=True)}


def predict(per: Mapping[str, float], work: Work) -> float:
    """Cycles from begin to end, without waits."""
    return cycles_of(per, work).whole


def error_of(predicted: Sequence[float], measured: Sequence[float]) -> Error:
    """ValueError where there is nothing to compare."""
    if not measured:
        raise ValueError("nothing was measured")
    off = np.abs(np.array(predicted) / np.array(measured) - 1)
    median, p90 = np.quantile(off, [0.5, 0.9])
    return Error(len(measured), round(float(median), 4), round(float(p90), 4))
