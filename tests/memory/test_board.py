"""Plans for boards: sizes to the byte, and nothing but RAM and flash."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit, Lack, UsageError
from shrinkc.driver.fitting import shortfalls
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import HOST, KIB, MIB, MOST, PULP_OPEN, RV32, SIRACUSA, board_of, with_sizes

from .shapes import make_shape, shapes, with_placement

LARGE = board_of(1024 * MIB, 1024 * MIB)
EXAMPLES = settings(max_examples=15, deadline=None)


def lack(s: ModelShape, ram: int, flash: int) -> Lack:
    with pytest.raises(DoesNotFit) as refused:
        check_fits(s, board_of(ram, flash))
    (found,) = refused.value.lacks
    with pytest.raises(DoesNotFit) as again:
        make_plan(s, board_of(ram, flash))
    assert again.value.lacks == (found,)
    return found


@EXAMPLES
@given(s=shapes())
def test_what_is_said_to_be_needed_fits_and_a_byte_less_does_not(s: ModelShape) -> None:
    ram = lack(s, 1, 1024 * MIB)
    assert (ram.level, ram.name, ram.have, ram.excess) == ("l1", "RAM", 1, ram.need - 1)
    flash = lack(s, 1024 * MIB, 1)
    assert (flash.level, flash.name, flash.have) == ("wmem", "flash", 1)
    target = board_of(ram.need, flash.need)
    plan = make_plan(s, target)
    assert verify(plan, s, target) > 0
    assert plan.used == {"l1": ram.need, "wmem": flash.need} == plan.capacity
    assert lack(s, ram.need - 1, flash.need) == replace(ram, have=ram.need - 1)
    assert lack(s, ram.need, flash.need - 1) == replace(flash, have=flash.need - 1)


@EXAMPLES
@given(s=shapes(), ram=st.integers(8 * KIB, 1024 * KIB))
def test_every_plan_is_sound(s: ModelShape, ram: int) -> None:
    target = board_of(ram, 512 * MIB)
    try:
        plan = make_plan(s, target)
    except DoesNotFit:
        assume(False)
    assert verify(plan, s, target) > 0
    assert plan.used["l1"] <= ram
    assert plan.kv_in_l1 and plan.logits_in_l1 and not plan.tile_bytes
    assert {p.level for p in plan.placements} == {x.level for x in plan.tables} == {"wmem"}
    assert {b.level for b in plan.lower_buffers} == {"wmem"}
    assert "tiles" not in {b.name for b in plan.l1} and "gain" not in {b.name for b in plan.l1}


def test_more_ram_gives_longer_chunks_and_no_less_fits() -> None:
    s = make_shape()
    least = lack(s, 1, MIB).need
    chunks = [
        make_plan(s, board_of(least + more, MIB)).chunk for more in range(0, 64 * KIB, 4 * KIB)
    ]
    assert chunks == sorted(chunks) and chunks[0] == 1 and chunks[-1] == 16


def test_what_a_program_writes_takes_ram() -> None:
    """The KV cache, a word for each token, and the logits."""
    short, long, wide = (
        make_shape(context=64), make_shape(context=128), make_shape(context=64, vocab=1512),
    )  # fmt: skip
    need = [lack(s, 1, MIB).need for s in (short, long, wide)]
    cache = 64 * 5 * 4 * (8 + 4 + 8)
    assert need[1] - need[0] >= cache + 4 * 64
    assert need[2] - need[0] == 4000


def test_fewer_bits_take_less_flash_and_as_much_ram() -> None:
    eight, four = make_shape(), make_shape(options=QuantOptions(bits=4, embedding_bits=4))
    assert lack(eight, MIB, 1).need - lack(four, MIB, 1).need > 50 * KIB
    assert abs(lack(eight, 1, MIB).need - lack(four, 1, MIB).need) < KIB


def test_both_memories_are_named_in_one_refusal() -> None:
    s = make_shape()
    found = shortfalls(s, board_of(8 * KIB, 64 * KIB), None)
    assert [x.label for x in found] == ["RAM", "flash"]
    assert str(found[0]).startswith("RAM: need ") and str(found[1]).startswith("Flash: need ")
    target = board_of(*(x.need for x in found))
    assert verify(make_plan(s, target), s, target) > 0


def changed(plan: Plan, name: str, **fields: object) -> Plan:
    """With other values of the buffer ``name`` in flash."""
    buffers = [replace(b, **fields) if b.name == name else b for b in plan.lower_buffers]  # type: ignore[arg-type]
    return replace(plan, lower_buffers=buffers)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda p: with_placement(p, 3, tile_blocks=1), "tiles of 1 blocks, and it is read in place"),
        (lambda p: with_placement(p, 3, level="l2"), "unknown level l2"),
        (lambda p: with_placement(p, 3, offset=2 * MIB), "flash: "),
        (lambda p: replace(p, kv_in_l1=False, kv_tile_blocks=1), "cache or logits are not in RAM"),
        (lambda p: replace(p, table_stage=64), "a buffer for weights or tables"),
        (lambda p: replace(p, l1_budget=p.used["l1"] - 1), " of "),
        (lambda p: changed(p, "code", bytes=KIB), f"flash code: {KIB} bytes for"),
        (lambda p: changed(p, "layer table", level="l1"), "flash layer table: no bytes for"),
    ],
)  # fmt: skip
def test_a_plan_that_is_wrong_has_a_fault(change: Any, fault: str) -> None:
    s, target = make_shape(), board_of(96 * KIB, MIB)
    plan = make_plan(s, target)
    assert faults_of(plan, s, target) == []
    assert any(fault in f for f in faults_of(change(plan), s, target))


def test_without_sizes_a_target_is_as_it_is() -> None:
    assert with_sizes(RV32, {}) is RV32
    assert with_sizes(SIRACUSA, {"flash": None}) == SIRACUSA
    assert with_sizes(RV32, {"ram": 64 * KIB, "flash": MIB}) == board_of(64 * KIB, MIB)


def test_off_chip_memories_have_the_sizes_of_the_board() -> None:
    found = with_sizes(SIRACUSA, {"flash": 64 * MIB, "hyperram": 8 * MIB})
    assert (found.room("flash"), found.room("hyperram")) == (64 * MIB, 8 * MIB)
    assert (
        found.with_room(flash=SIRACUSA.room("flash"), hyperram=SIRACUSA.room("hyperram"))
        == SIRACUSA
    )
    assert with_sizes(SIRACUSA, {"flash": MOST}).room("hyperram") == SIRACUSA.room("hyperram")


@pytest.mark.parametrize(
    ("target", "sizes", "refusal"),
    [
        (RV32, {"ram": 64 * KIB}, "--ram needs --flash"),
        (RV32, {"flash": MIB}, "--flash needs --ram"),
        (
            RV32,
            {"ram": KIB, "flash": MIB, "hyperram": MIB},
            "--hyperram is not possible with --target rv32",
        ),
        (RV32, {"ram": 0, "flash": MIB}, "--ram 0 is not possible"),
        (RV32, {"ram": KIB, "flash": 1 << 31}, "--flash 2147483648 is not possible"),
        (SIRACUSA, {"ram": 64 * KIB, "flash": MIB}, "--ram is not possible with --target siracusa"),
        (SIRACUSA, {"flash": 0}, "--flash 0 is not possible"),
        (SIRACUSA, {"hyperram": 1 << 31}, "--hyperram 2147483648 is not possible"),
        (PULP_OPEN, {"flash": MIB + 2}, "--flash 1048578 is not possible"),
        (HOST, {"ram": MIB, "flash": MIB}, "--ram and --flash are not possible with --target host"),
    ],
)
def test_sizes_that_are_not_possible(target: Any, sizes: Any, refusal: str) -> None:
    with pytest.raises(UsageError, match=refusal):
        with_sizes(target, sizes)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"cores": 8}, "a board has RAM and flash, and one core"),
        ({"levels": RV32.levels}, "a board has RAM and flash, and one core"),
        ({"board": False}, "l2 is one of the others"),
    ],
)
def test_a_board_that_contradicts_itself(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        replace(LARGE, **changes)
