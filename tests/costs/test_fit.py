"""Coefficients are found again that measurements were made of."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")

from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkc.costs import Work
from shrinkc.costs.work import share, total

BENCH = Path(__file__).resolve().parents[2] / "examples" / "bench"
_script = runpy.run_path(str(BENCH / "cost_fit.py"))
Sample, fit, fit_more, predict, error_of = (
    _script[n] for n in ("Sample", "fit", "fit_more", "predict", "error_of")
)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8))
def test_known_coefficients(seed: int, n: int) -> None:
    """Also zeros among them, and features of very different sizes."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.5, 50, n) * rng.integers(0, 2, n)
    true[0] = 7.0
    counts = rng.uniform(1, 100, (3 * n + 5, n)) * 10.0 ** rng.integers(0, 4, n)
    samples = [
        Sample(Work({f"f{i}": v for i, v in enumerate(row)}), float(row @ true)) for row in counts
    ]
    found = fit(samples)
    assert [found[f"f{i}"] for i in range(n)] == pytest.approx(list(true), rel=1e-5, abs=1e-5)
    for s in samples:
        assert predict(found, s.work) == pytest.approx(s.cycles, rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_two_that_work_at_the_same_time(seed: int) -> None:
    """The longer one counts, here in half of the samples each; both are found."""
    rng = np.random.default_rng(seed)
    true = {"calls": 300.0, "fast.jobs": 55.0, "fast.rows": 9.0, "overlapped.rows": 4.0}
    samples = []
    for _ in range(60):
        counts = {
            "calls": 1.0, "fast.jobs": float(rng.integers(1, 40)), "fast.rows": float(rng.integers(1, 90)),
            "overlapped.rows": float(10 ** rng.uniform(0, 3.2)),
        }  # fmt: skip
        work = Work(counts)
        samples.append(Sample(work, predict(true, work)))
    found = fit(samples)
    assert found == pytest.approx(true, rel=0.02)
    off = [abs(predict(found, s.work) / s.cycles - 1) for s in samples]
    assert max(off) < 0.02


def test_errors_are_relative() -> None:
    """A large run does not outweigh the small ones."""
    small = [Sample(Work({"calls": 1}), 100.0)] * 3
    found = fit([*small, Sample(Work({"calls": 1}), 1e6)])
    assert 100 <= found["calls"] < 200


def test_what_never_was_the_longer_costs_nothing() -> None:
    work = Work({"fast.jobs": 10, "overlapped.rows": 1})
    found = fit([Sample(work, 500.0), Sample(work + work, 1000.0)])
    assert set(found) == {"fast.jobs", "overlapped.rows"} and predict(found, work) == pytest.approx(
        500
    )


def test_a_feature_that_some_have() -> None:
    with_both = Sample(Work({"calls": 1, "rows": 10}), 120.0)
    assert fit([Sample(Work({"calls": 1}), 20.0), with_both]) == pytest.approx(
        {"calls": 20.0, "rows": 10.0}
    )


@pytest.mark.parametrize("samples", [[], [Sample(Work({"calls": 1}), 0.0)]])
def test_nothing_measured(samples: list[Any]) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        fit(samples)
    with pytest.raises(ValueError, match="nothing was measured"):
        error_of([], [])


def test_errors() -> None:
    e = error_of([110.0, 80.0, 300.0], [100.0, 100.0, 300.0])
    assert (e.samples, e.median, e.p90) == (3, 0.1, 0.18)


def test_works_are_added() -> None:
    both = total([Work({"a": 1, "b": 2}, 3, 4), Work({"b": 5}, 1, 0)])
    assert both == Work({"a": 1, "b": 7}, 4, 4)
    assert both / 2 == Work({"a": 0.5, "b": 3.5}, 2, 2)


@pytest.mark.parametrize(("items", "workers", "most"), [(0, 8, 0), (1, 8, 1), (8, 8, 1), (9, 8, 2)])
def test_a_share(items: int, workers: int, most: int) -> None:
    assert share(items, workers) == most == len(range(0, items, workers))


def test_only_what_is_unknown_is_fitted() -> None:
    """Known coefficients stay, even if they are not those of the measurements."""
    rng = np.random.default_rng(1)
    counts = [{"calls": 1, "new": v, "newer": w} for v, w in rng.integers(1, 50, (20, 2)).tolist()]
    samples = [Sample(Work(c), 300 + 7 * c["new"] + 3 * c["newer"]) for c in counts]
    assert fit_more({"calls": 300.0}, samples) == pytest.approx({"new": 7.0, "newer": 3.0})
    with pytest.raises(ValueError, match="nothing was measured"):
        fit_more({"calls": 300.0, "new": 1.0, "newer": 2.0}, samples)
    with pytest.raises(ValueError, match=r"an engine has unknown features: fast\.jobs"):
        fit_more({}, [Sample(Work({"fast.jobs": 1}), 100.0)])
