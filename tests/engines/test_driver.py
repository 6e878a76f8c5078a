"""From a checkpoint to a directory on a target with two engines: plan, compile and budget agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.compression.compiled_choices import OnTarget
from shrinkc.compression.stages import gptq
from shrinkc.core.progress import Silent
from shrinkc.core.words import show_rounded
from shrinkc.driver.compiling import compile_model
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned, Shortfall
from shrinkc.driver.planning import prepare
from shrinkc.driver.summary import summary
from shrinkc.engines import CORES, Engine, MatrixSpec
from shrinkc.importer import load_config
from shrinkc.targets import KIB, SIRACUSA

from .plain import CORES_ALONE, EAGER, PLAIN, WITH_PLAIN

LARGE: dict[str, Any] = {
    "hidden": 96,
    "intermediate": 400,
    "heads": 4,
    "kv_heads": 2,
    "vocab": 107,
    "layers": 2,
}


@pytest.fixture(autouse=True)
def _target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shrinkc.driver.planning.target_named", lambda name: WITH_PLAIN)


def request_for(model: Path, **quant: Any) -> PlanRequest:
    return PlanRequest(model, context=16, **quant)


def planned(model: Path, **quant: Any) -> Planned:
    found = prepare(request_for(model, **quant))
    assert isinstance(found, Planned)
    return found


def test_plan_says_who_runs_what_and_why_not(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    def cycles(spec: MatrixSpec, tokens: int) -> int:
        return 100 if spec.name.endswith("gate_up") else 10**6

    register(replace(PLAIN, cycles=cycles))
    write_tiny_llama(tmp_path / "m", **LARGE)
    plan = planned(tmp_path / "m")
    lines = summary(plan, verbose=True)
    chosen = plan.choices.by_name
    on = {n for n, c in chosen.items() if c.engine == "plain"}
    assert on == {"layer0.gate_up", "layer1.gate_up"}
    for engine, count in ((CORES, 9 - len(on)), ("plain", len(on))):
        cycles = show_rounded(sum(c.cycles for c in chosen.values() if c.engine == engine))
        assert any(f"matrices: {count}, cycles per token: {cycles}" in line for line in lines)
    assert any("runs 2 of 9 matrices, the cores run the others" in line for line in lines)
    refused = [
        line.removeprefix("  not chosen") for line in lines if line.startswith("  not chosen")
    ]
    assert any(line.endswith(": head has 107 rows, no multiple of 8") for line in refused)
    assert any(": layer0.qkv (and 1 more) takes " in line for line in refused)
    cut = [p for p in plan.plan.placements if p.name not in on]
    tiles = sum(-(-p.blocks // p.tile_blocks) for p in cut)
    assert any(f" {tiles} per forward pass" in line for line in lines)
    told: Any = plan.to_json()["engines"]
    assert told["head"]["refused"] == {"plain": "has 107 rows, no multiple of 8"}
    assert told["layer0.gate_up"] == {
        "engine": "plain", "cycles": chosen["layer0.gate_up"].cycles, "refused": {},
    }  # fmt: skip


def test_plan_says_nothing_where_the_cores_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shrinkc.driver.planning.target_named", lambda name: CORES_ALONE)
    write_tiny_llama(tmp_path / "m", **LARGE)
    plan = planned(tmp_path / "m")
    assert not any("matrices" in line for line in summary(plan, verbose=False))
    assert "engines" not in plan.to_json()


@pytest.mark.parametrize("kind", ["float", "gptq"])
def test_compile_follows_the_plan(
    kind: str, tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """Headers and weights give the same choice, whose shapes the compiler compares."""
    register(EAGER)
    if kind == "float":
        write_tiny_llama(tmp_path / "m", **LARGE)
    else:
        tiny_gptq(tmp_path / "m", group=16, sym=True, desc_act="shared", eora_rank=None, layers=2)
    plan = planned(tmp_path / "m")
    on = {n for n, c in plan.choices.by_name.items() if c.engine == "plain"}
    assert on >= {f"layer{i}.{slot}" for i in (0, 1) for slot in ("qkv", "o", "gate_up", "down")}
    out = tmp_path / "out"
    compile_model(request_for(tmp_path / "m"), out, force=False, reporter=Silent())
    told = json.loads((out / "plan.json").read_text())
    assert {p["name"] for p in told["placements"] if p.get("engine") == "plain"} == on
    text = (out / "ir.txt").read_text()
    assert text.count(" on plain") == len(on) + ("head" in on)
    assert told["used"]["wmem"] == plan.plan.used["wmem"]


def test_what_is_offered_instead_is_planned_for_the_engines_too(
    tmp_path: Path, register: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight memory too small for all: the rest goes to the cores, and what is planned fits."""
    register(EAGER)
    write_tiny_llama(tmp_path / "m", **LARGE)
    small = WITH_PLAIN.with_room(wmem=100_000, flash=0)
    monkeypatch.setattr("shrinkc.driver.planning.target_named", lambda name: small)
    plan = planned(tmp_path / "m")
    engines = {c.engine for c in plan.choices.by_name.values()}
    assert engines == {CORES, "plain"}
    assert any("needs " in v and "bytes of wmem" in v for v in summary(plan, verbose=True))


def test_the_cores_run_all_where_an_engine_would_leave_too_little_memory(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """It is said, with what lacks; and a model that fits the cores alone still compiles."""
    register(replace(EAGER, scratch=lambda shape, tokens: SIRACUSA.l1))
    write_tiny_llama(tmp_path / "m", **LARGE)
    plan = planned(tmp_path / "m")
    assert plan.choices.engines == {CORES}
    assert {p.engine for p in plan.plan.placements} == {CORES}
    (said,) = [v for v in summary(plan, verbose=True) if "would leave l1 " in v]
    assert ": layer0.qkv (and 7 more) would leave l1 " in said
    assert "bytes short there" in said
    written = compile_model(
        request_for(tmp_path / "m"), tmp_path / "out", force=False, reporter=Silent()
    )
    assert written.files > 0
    assert " on plain" not in (tmp_path / "out" / "ir.txt").read_text()


def test_a_model_that_does_not_fit_lacks_what_the_cores_lack(
    tmp_path: Path, register: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_llama(tmp_path / "m", **LARGE)
    small = WITH_PLAIN.with_room(l1=20_000)
    lacks = []
    for target in (small, replace(small, engines=(CORES,))):
        monkeypatch.setattr("shrinkc.driver.planning.target_named", lambda name, t=target: t)
        found = prepare(request_for(tmp_path / "m"))
        assert isinstance(found, Shortfall)
        lacks.append(found.lacks)
        register(EAGER)
    assert lacks[0] == lacks[1] != ()


@pytest.mark.slow
def test_no_budget_of_l1_changes_a_choice(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """Choices decide numbers, so the smallest L1 has those of the largest, until it is refused."""
    register(EAGER)
    write_tiny_llama(tmp_path / "m", **{**LARGE, "vocab": 112})
    full = planned(tmp_path / "m")
    assert full.choices.engines == {"plain"}
    budgets = range(64 * KIB, 0, -KIB)
    found = [prepare(replace(request_for(tmp_path / "m"), l1=l1)) for l1 in budgets]
    fitting = [p for p in found if isinstance(p, Planned)]
    assert 10 < len(fitting) < len(found)
    assert all(p.choices == full.choices for p in fitting)


def test_a_budget_counts_what_the_engine_stores(
    tmp_path: Path, register: Callable[[Engine], None]
) -> None:
    """A byte per weight whatever its width, where plain runs a matrix."""
    register(EAGER)
    write_tiny_llama(tmp_path / "m", **{**LARGE, "vocab": 112})
    config = load_config(tmp_path / "m")
    settings = gptq.Settings(sym=True, group_size=32)
    spaces = [
        OnTarget(config, settings, 0, target.with_room(flash=0), 1000)
        for target in (CORES_ALONE, WITH_PLAIN)
    ]
    cores, both = (s.matrices(config, 32)["down"] for s in spaces)
    assert cores[4] < 0.6 * cores[8]
    assert both[4] > 0.8 * both[8] > 0.8 * cores[8]
    shape = spaces[1].uniform(config, 32, 4, 4)
    down = next(m for m in shape.layers[0] if m.name.endswith("down"))
    assert down.engine == "plain" and down.store is PLAIN.store
