"""The packaged tables, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import calibrate
import pytest

from shrinkc.core.errors import ShrinkcError
from shrinkc.costs import CALIBRATED, CostTable, Work, cost_table, read_table
from shrinkc.costs.table import Cycles, cycles_of
from shrinkc.ir.ops import OPS
from shrinkc.storage import WIDTHS
from shrinkc.targets import TARGETS

TABLE = CostTable(
    target="siracusa",
    ops={"linear": {"calls": 100.0, "fast.jobs": 7.0}},
    dma=8.0,
    flash=1.0,
    probe=0.0,
    clock_mhz=72.0,
)


@pytest.mark.parametrize("target", CALIBRATED)
def test_the_packaged_table(target: str) -> None:
    """Every op and width of today was measured, and on shapes that were held out too."""
    table = cost_table(target)
    assert table is not None and table.target == target and target in TARGETS
    assert TARGETS[target].gvsoc, "only simulated cores have counters"
    assert set(table.ops) == {op.lower() for op in OPS}
    assert set(table.errors) == set(table.ops) - {*calibrate.APART}
    for op in ("linear", "silumul"):
        kinds = ("words", "group_words")
        assert {f"{kind}_w{bits}" for kind in kinds for bits in WIDTHS} <= set(table.ops[op])
    assert all(v >= 0 for per in table.ops.values() for v in per.values())
    assert table.fitted >= 50 and table.held_out >= 10
    for op, error in table.errors.items():
        assert error.samples >= 20 and error.median <= 0.25, op
    assert {"date", "simulator", "compiler", "shrinkc", "machine", "command"} <= set(table.made)


def test_targets_without_a_table() -> None:
    assert cost_table("host") is None and cost_table("rv32") is None


def test_cycles_by_engine() -> None:
    work = Work({"calls": 2, "fast.jobs": 3, "unheard": 9})
    assert TABLE.cycles("linear", work) == Cycles(221.0, 200.0, {"fast": 21.0})
    assert TABLE.unknown("linear", work) == ["unheard"]
    assert TABLE.cycles("other", work) == Cycles(0.0, 0.0, {"fast": 0.0})


@pytest.mark.parametrize(("rows", "whole"), [(4, 100 + 21), (40, 100 + 80)])
def test_the_longer_of_an_engine_and_the_cores_beside_it(rows: int, whole: float) -> None:
    per = {"calls": 100.0, "fast.jobs": 7.0, "overlapped.rows": 2.0}
    found = cycles_of(per, Work({"calls": 1, "fast.jobs": 3, "overlapped.rows": rows}))
    assert found == Cycles(whole, 100.0 + 2 * rows, {"fast": 21.0})


def written(path: Path, change: Any) -> Path:
    found = TABLE.to_json()
    change(found)
    path.write_text(json.dumps(found))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_table(written(tmp_path / "t.json", lambda found: None)) == TABLE


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", lambda found: found.update(version=99))
    with pytest.raises(ShrinkcError) as caught:
        read_table(path)
    assert "is version 99 of the table of costs; this shrinkc reads 1" in str(caught.value)
    assert "make calibrate" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("version"),
        lambda found: found.pop("ops"),
        lambda found: found.update(ops=[1]),
        lambda found: found.update(dma="fast"),
        lambda found: found.update(errors={"linear": {"median": 1}}),
    ],
)
def test_what_is_no_table(tmp_path: Path, change: Any) -> None:
    with pytest.raises(ShrinkcError, match=r"t\.json"):
        read_table(written(tmp_path / "t.json", change))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ShrinkcError, match="is no table of costs"):
        read_table(tmp_path / "t.json")
