"""What a target says of itself, and that it is said nowhere else."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shrinkc
from memory.shapes import make_shape
from shrinkc.core.errors import DoesNotFit, UsageError
from shrinkc.core.resources import resource
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.targets import (
    CHIPS,
    COPIED,
    DEFAULT,
    FETCHED,
    KIB,
    MACHINES,
    MEMORIES,
    PROGRAMS,
    SIRACUSA,
    TARGETS,
    Level,
    Target,
    target_named,
)

ALL = pytest.mark.parametrize("target", PROGRAMS.values(), ids=lambda t: t.program.name)


@ALL
def test_its_programs_are_targets_that_say_the_same(target: Target) -> None:
    """The program that a machine runs is a target's own, and that machine is the one that runs it."""
    assert target.board or target_named(target.name) is target
    for machine, name in target.programs.items():
        assert machine in MACHINES and PROGRAMS[name].machine == machine
    assert target.machine == target.runs_on[-1]


@ALL
def test_its_files_are_there(target: Target) -> None:
    for folder in target.program.folders:
        assert any((resource("runtime_c") / "platform" / folder).iterdir())
    if target.program.isa is not None:
        script = (resource("toolchain") / target.program.name / "link.ld").read_text()
        for symbol in target.symbols:
            assert symbol in script
        if "pulp" in target.program.folders:
            for section in ("", "_arena", "_large"):
                assert f"*(.bss.sc_l1{section})" in script
        for level in target.on_chip:
            section = {"wmem": ".sc_wmem", "l2": ".sc_l2_blob"}[level.name]
            assert (section in script) == target.program.sections


@ALL
def test_a_plan_uses_its_memories_and_no_others(target: Target) -> None:
    shape = make_shape()
    plan = make_plan(shape, target)
    assert verify(plan, shape, target) > 0
    assert set(plan.capacity) == set(plan.used) == {v.name for v in target.levels}
    assert {p.level for p in plan.placements} <= {v.name for v in target.stored}


def test_every_chip_has_names_where_programs_are_run() -> None:
    assert CHIPS and set(CHIPS) == {t.name for t in TARGETS.values() if t.machine == "gvsoc"}
    assert len({t.gvsoc for t in TARGETS.values() if t.gvsoc}) == len(CHIPS)
    assert MEMORIES["flash"].access == FETCHED and MEMORIES["wmem"].access == COPIED


def test_nothing_said_is_the_default() -> None:
    for function in (shrinkc.plan, shrinkc.compile):
        assert inspect.signature(function).parameters["target"].default == DEFAULT.name


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=f"allowed: {', '.join(TARGETS)}"):
        target_named("board")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"levels": (Level("l1", KIB), Level("l2", KIB), Level("rom", 1))}, "the engine knows no rom"),
        ({"levels": (Level("l1", KIB), Level("l2", KIB), Level("l2", KIB))}, "a memory occurs twice"),
        ({"levels": (Level("l2", KIB), Level("l1", KIB))}, "l1 comes first"),
        ({"levels": (Level("l1", KIB), Level("wmem", KIB))}, "l2 is one of the others"),
        ({"levels": (Level("l1", -1), Level("l2", KIB))}, "l1 has -1 bytes"),
        ({"l2_system": -8}, "l2_system has -8 bytes"),
        ({"cores": 0}, "0 cores"),
        ({"programs": {"host": "host", "board": "siracusa"}}, "machines are host, qemu, gvsoc"),
        ({"programs": {"gvsoc": "siracusa"}}, "every target has a program for host"),
        ({"programs": {"host": "host"}}, "one machine runs the target's own program"),
        ({"gvsoc": None}, "gvsoc runs it, or it has no name there"),
        ({"program": replace(SIRACUSA.program, folders=("pulp",))}, "the target's own folder first"),
        ({"program": replace(SIRACUSA.program, isa=None)}, "the host has no linker script"),
        ({"program": replace(SIRACUSA.program, sections=False)}, "every blob has its section"),
        ({"code": ("flash", "l2")}, "code lies in memories that the DMA copies from"),
        ({"code": ()}, "code has memories and bytes, or neither"),
        ({"code_bytes": -64}, "code_bytes has -64 bytes"),
    ],
)  # fmt: skip
def test_a_description_that_contradicts_itself_is_refused(
    changed: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=f"target siracusa: .*{fault}"):
        replace(SIRACUSA, **changed)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(ValueError, match="0 cores; .*l1_system has -1 bytes; .*machines are"):
        replace(SIRACUSA, cores=0, l1_system=-1, programs={"board": "siracusa"})


def test_memories_that_are_not_there() -> None:
    small = replace(SIRACUSA, levels=(Level("l1", 256 * KIB), Level("l2", 300 * KIB)))
    assert (small.room("wmem"), small.has("wmem"), small.room("l2")) == (0, False, 300 * KIB)
    with pytest.raises(ValueError, match="has no flash, wmem"):
        small.with_room(wmem=1, flash=1)
    large = make_shape(hidden=128, ffn=512, layers=8)
    with pytest.raises(DoesNotFit, match=r"have \d+ in L2, excess") as refused:
        make_plan(large, small)
    (lack,) = refused.value.lacks
    assert (lack.level, lack.memories) == ("weights", ("L2",))
    l2 = small.room("l2") + lack.excess + 16 * len(large.matrices)
    plan = make_plan(large, small.with_room(l2=l2))
    assert verify(plan, large, small.with_room(l2=l2)) > 0


@ALL
def test_code_takes_its_room_where_it_lies(target: Target) -> None:
    """And back where it was, all is as before."""
    for name in target.code:
        moved = target.with_code(name)
        for level in target.on_chip:
            here = (level.name == name) - (level.name == target.code[0])
            assert moved.room(level.name) == level.bytes - here * target.code_bytes
        places = {s: v for s, v in moved.symbols.items() if s.startswith("SC_CODE_IN_")}
        assert [s for s, v in places.items() if v] == [f"SC_CODE_IN_{name.upper()}"]
        assert len(places) == len(target.code)
        again = moved.with_code(target.code[0])
        assert (again.levels, again.symbols) == (target.levels, target.symbols)
    with pytest.raises(ValueError, match=f"target {target.name} has no code in l1"):
        target.with_code("l1")


def test_a_plan_that_uses_what_is_not_there_has_a_fault() -> None:
    """The verifier asks the target itself, whatever the planner thought there was."""
    shape = make_shape()
    plan = make_plan(shape, SIRACUSA)
    assert {p.level for p in plan.placements} == {"wmem"}
    levels = tuple(v for v in SIRACUSA.levels if v.name != "wmem")
    faults = faults_of(plan, shape, replace(SIRACUSA, levels=levels))
    assert [f for f in faults if f.endswith(": unknown level wmem")] == faults
    assert len(faults) == len(plan.placements)


def test_the_names_of_chips_stand_in_few_files() -> None:
    """A target is its description, its platform folder, its linker script; nothing else names it."""
    package = Path(shrinkc.__file__).parent
    naming = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if any(f'"{name}"' in file.read_text() for name in CHIPS)
    }
    described = {f"targets/{name.replace('-', '_')}.py" for name in CHIPS}
    # the API's default is written out, so that its documentation shows it; cycles were measured on one chip
    assert naming == {*described, "api.py", "costs/table.py", "engines/cores.py"}
