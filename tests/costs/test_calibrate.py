"""The script behind ``make calibrate``: from measurements to a table, and on from where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")

import calibrate

from memory.shapes import make_shape
from shrinkc.costs import cost_table
from shrinkc.memory.cycles import Passes, cost_of
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions
from shrinkc.targets import SIRACUSA


def test_what_is_held_out_is_not_fitted() -> None:
    jobs = calibrate.jobs_of("siracusa")
    assert len({job.name for job in jobs}) == len(jobs)
    fitted = {job.shape for job in jobs if not job.held_out}
    held = {job.shape for job in jobs if job.held_out}
    assert fitted and held and not fitted & held
    for attribute in ("hidden", "ffn"):
        seen = {getattr(s, attribute) for s in fitted}
        assert sum(getattr(s, attribute) not in seen for s in held) > len(held) / 2
    for shape in fitted | held:
        assert max(shape.prompts) + calibrate.NEW <= shape.context
        assert set(shape.formats) <= set(calibrate.FORMATS)


def runs_of(table: Any) -> list[Any]:
    """Runs as they would be measured if ``table`` were true, of shapes with names of their own."""
    runs = []
    for at, (hidden, ffn, heads, kv_heads, dim) in enumerate(
        [(64, 160, 8, 4, 8), (96, 256, 6, 6, 16), (128, 352, 4, 4, 32), (256, 704, 8, 4, 32),
         (400, 1200, 3, 1, 64), (48, 100, 12, 3, 4), (80, 224, 10, 5, 8), (320, 900, 5, 5, 32)]
    ):  # fmt: skip
        for bits in (8, 4):
            shape = make_shape(
                hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads, head_dim=dim, layers=3,
                vocab=300 + 200 * at, options=QuantOptions(bits=bits, embedding_bits=bits),
            )  # fmt: skip
            passes = Passes(shape, make_plan(shape, SIRACUSA), SIRACUSA)
            held = at % 4 == 3
            shapes = calibrate.HELD_OUT if held else calibrate.FITTED
            job = calibrate.Job(shapes[at % len(shapes)], f"{at} at {bits}", "siracusa", True)
            run = calibrate.Run(job)
            for steps in ([passes.steps(1, 5)], [passes.steps(1, 100)], passes.prompt(30)):
                cost = cost_of(steps, table)
                plain = cost.without_probes(table).cycles
                run.phases.append(calibrate.Measured(steps, cost.ops, plain))
            runs.append(run)
    return runs


def test_a_table_is_found_again() -> None:
    """Cycles of products, vectors and the rest, the DMA's rate and what counters cost; no error is left."""
    known = cost_table("siracusa")
    assert known is not None
    known = replace(known, dma=5.0, probe=123.0)
    found = calibrate.calibrated(runs_of(known), "siracusa")
    # a product that waits now and then is among those that are fitted, at the cost of some precision
    assert found.dma == pytest.approx(5.0, abs=0.3) and found.probe == 123.0
    assert set(found.errors) == set(known.ops) - {*calibrate.APART}
    assert set(found.ops) == set(known.ops)
    for op, error in found.errors.items():
        assert error.p90 < 0.05, op
    assert found.passes is not None and found.passes.p90 < 0.03
    assert found.fitted and found.held_out


def test_a_new_width_is_added_to_a_table() -> None:
    """Its features are found again; all others are the table's, whatever was measured."""
    known = cost_table("siracusa")
    assert known is not None
    others = {
        op: {name: v for name, v in per.items() if not name.endswith("_w4")}
        for op, per in known.ops.items()
    }
    wrong = {op: {name: others[op].get(name, 1e6) for name in per} for op, per in known.ops.items()}
    found = calibrate.extended(runs_of(known), replace(known, ops=wrong), {4})
    for op, per in found.ops.items():
        assert {name: per[name] for name in others[op]} == others[op]
    for op in ("linear", "silumul"):
        assert found.ops[op]["words_w4"] == pytest.approx(known.ops[op]["words_w4"], rel=0.05)


def test_errors_are_of_what_was_held_out() -> None:
    known = cost_table("siracusa")
    assert known is not None
    runs = runs_of(known)
    for run in runs:
        if run.job.held_out:
            for phase in run.phases:
                phase.cycles = {op: 1.25 * cycles for op, cycles in phase.cycles.items()}
    found = calibrate.calibrated(runs, "siracusa")
    for op, error in found.errors.items():
        assert error.median == pytest.approx(0.2, abs=0.02), op
    assert found.passes.median < 0.01


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that was measured is not run again, unless it is another one by now."""
    calls: list[int] = []

    def measured(out: Path, prompt: int, job: Any) -> dict[str, Any]:
        calls.append(prompt)
        ops = [{"op": "qkv", "cycles": 10.0}]
        phase = {"ops": ops}
        plain = {"prefill": 9, "decode": [8, 9, 10]}
        return {"new": job.new, "prefill": phase, "decode": phase, "plain": plain}

    monkeypatch.setattr(calibrate, "_runs", measured)
    shape = calibrate.Shape(32, 64, 4, 2, 8, 1, 32, ("w8",), (2, 5))
    job = calibrate.Job(shape, "w8", "siracusa", True)
    first = calibrate.measure(job, tmp_path)
    assert calls == [2, 5] and len(first.phases) == 4
    prefill, decode = first.phases[2:]
    assert (prefill.plain, decode.plain, decode.times) == (9, 9, 3)
    assert [len(steps) for steps in (prefill.steps, decode.steps)] == [1, 3]
    again = calibrate.measure(job, tmp_path)
    assert calls == [2, 5] and again.phases == first.phases
    calibrate.measure(replace(job, format="w4"), tmp_path)
    assert calls == [2, 5, 2]


def test_the_data_has_the_errors_of_the_packaged_table() -> None:
    table = cost_table("siracusa")
    assert table is not None
    assert calibrate.figures.read("cost_model")["rows"] == calibrate.rows(table)
