"""Which matrices have a second layout: as far as memory is left over, and never for what something else has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned
from shrinkc.driver.planning import prepare
from shrinkc.driver.summary import summary
from shrinkc.engines import CORES, ENGINES, Choice, Choices, MatrixSpec, with_second_layouts
from shrinkc.memory.plan import Plan
from shrinkc.storage import Offsets
from shrinkc.targets import KIB, SIRACUSA

DENSE, BOTH = ENGINES["neureka_1x1"], ENGINES["neureka_both"]
MIB = 1 << 20


def spec(name: str, rows: int, k: int = 64, bits: int = 8) -> MatrixSpec:
    return MatrixSpec(name, rows, k, bits, None, Offsets.NONE)


def copied(
    *specs: MatrixSpec,
    free: int = MIB,
    engine: str = "neureka_1x1",
    owners: dict[str, str] | None = None,
    widest: int | None = None,
) -> Choices:
    choices = Choices({s.name: Choice(engine) for s in specs})
    return with_second_layouts(
        choices, specs, list(ENGINES.values()), {"wmem": free}, owners or {}, widest
    )


def why_not(choices: Choices, name: str) -> str:
    ((engine, reason),) = choices.by_name[name].refused
    assert engine == "neureka_both"
    return reason


def test_what_neureka_runs_has_a_second_layout_where_one_token_is_quicker() -> None:
    large, tiny = spec("large", 512), spec("tiny", 8, 32)
    choices = copied(large, tiny)
    assert choices.by_name["large"] == Choice("neureka_both", BOTH.cycles(large, 1))
    assert BOTH.cycles(large, 1) < DENSE.cycles(large, 1)
    assert BOTH.cycles(large, 16) == DENSE.cycles(large, 16)
    assert choices.engine("tiny") == "neureka_1x1" and "with the second layout" in why_not(
        choices, "tiny"
    )


@pytest.mark.parametrize("engine", [CORES, "neureka_3x3"])
def test_what_others_run_has_none(engine: str) -> None:
    assert copied(spec("m", 512), engine=engine).by_name == {"m": Choice(engine)}


def test_those_have_copies_that_gain_most_per_byte() -> None:
    """Fewer bits take fewer bytes and gain more."""
    eight, four = spec("eight", 512), spec("four", 512, bits=4)
    more = BOTH.shape(four).bytes - DENSE.shape(four).bytes
    choices = copied(eight, four, free=more + 32)
    assert (choices.engine("eight"), choices.engine("four")) == ("neureka_1x1", "neureka_both")
    assert "bytes more of wmem, where" in why_not(choices, "eight")
    assert copied(eight, four, free=100).engines == {"neureka_1x1"}


def test_equal_matrices_share_a_copy() -> None:
    first, again = spec("first", 512), spec("again", 512)
    more = BOTH.shape(first).bytes - DENSE.shape(first).bytes
    choices = copied(first, again, free=more + 32, owners={"again": "first"})
    assert choices.by_name["first"] == choices.by_name["again"]
    assert choices.engines == {"neureka_both"}


def test_a_vector_may_be_too_wide() -> None:
    narrow, wide = spec("narrow", 512, 64), spec("wide", 512, 256)
    choices = copied(narrow, wide, widest=BOTH.shape(narrow).x_words)
    assert (choices.engine("narrow"), choices.engine("wide")) == ("neureka_both", "neureka_1x1")
    assert why_not(choices, "wide") == (
        f"needs vectors of {BOTH.shape(wide).x_words} words, where {BOTH.shape(narrow).x_words} have room"
    )


# --- plans -------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "hidden": 96, "intermediate": 400, "heads": 4, "kv_heads": 2, "vocab": 107, "layers": 2,
}  # fmt: skip


def planned(model: Path, **fields: Any) -> Planned:
    found = prepare(PlanRequest(model, context=48, **fields))
    assert isinstance(found, Planned)
    return found


def sizes(plan: Plan) -> dict[str, object]:
    """All but offsets, and what weight memory and L1 hold."""
    left_out = {"l1", "lower_buffers", "tables", "placements", "used", "l1_budget"}
    return {name: value for name, value in plan.to_json().items() if name not in left_out}


def test_a_plan_with_copies_is_otherwise_the_same(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, **SIZES)
    without, found = planned(tmp_path, engines=("cores", "neureka_1x1")), planned(tmp_path)
    assert without.choices.engines == {"neureka_1x1"} and found.choices.engines == {"neureka_both"}
    assert sizes(found.plan) == sizes(without.plan)
    assert found.plan.used["wmem"] > 1.5 * without.plan.used["wmem"]
    assert found.weight_bytes == without.weight_bytes and without.copy_bytes == 0
    more = found.plan.used["wmem"] - without.plan.used["wmem"]
    assert 0 <= more - found.copy_bytes < 32 * len(found.choices.by_name)  # what is between them
    assert any("more, for faster decoding" in v for v in summary(found, verbose=False))
    assert planned(tmp_path, engines=("neureka_both",)).choices.engines == {"neureka_both"}


@pytest.mark.slow
def test_second_layouts_take_no_memory_that_something_else_has(tmp_path: Path) -> None:
    """Any L1: the same chunks and caches, with second layouts of all matrices, of those whose vectors are narrow, or of
    none; and each of these is met."""
    write_tiny_llama(tmp_path, **SIZES)
    seen: dict[str, set[str]] = {}
    for l1 in range(26 * KIB, 112 * KIB, 2 * KIB):
        without = planned(tmp_path, engines=("cores", "neureka_1x1"), l1=l1)
        found = planned(tmp_path, l1=l1)
        assert sizes(found.plan) == sizes(without.plan), l1
        reasons = {r for c in found.choices.by_name.values() for _, r in c.refused}
        seen["+".join(sorted(found.choices.engines))] = reasons
    assert seen.keys() == {"neureka_1x1", "neureka_1x1+neureka_both", "neureka_both"}
    assert not seen["neureka_both"]
    assert any("needs vectors of" in r for r in seen["neureka_1x1+neureka_both"])
    assert "would leave less memory for what else there is" in seen["neureka_1x1"]


def test_copies_take_what_is_left_of_weight_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_llama(tmp_path, **SIZES)
    used = planned(tmp_path, engines=("cores", "neureka_1x1")).plan.used["wmem"]
    tight = SIRACUSA.with_room(wmem=used + 90 * KIB)
    monkeypatch.setattr("shrinkc.driver.planning.target_named", lambda name: tight)
    found = planned(tmp_path)
    assert found.choices.engines == {"neureka_1x1", "neureka_both"}
    assert found.plan.used["wmem"] <= used + 90 * KIB
    assert any("bytes more of wmem" in line for line in summary(found, verbose=True))
