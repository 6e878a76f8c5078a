"""Interleaved LM heads: every n-th tile is on the chip, the others are in flash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shrinkc.costs import cost_table
from shrinkc.engines import Choice, Choices
from shrinkc.memory import planner
from shrinkc.memory.cycles import Passes, cost_of
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of, verify
from shrinkc.quantize import QuantOptions
from shrinkc.targets import KIB, SIRACUSA

from .shapes import make_shape, smol, sound, with_placement


@given(blocks=st.integers(1, 300), tile=st.integers(1, 40), every=st.integers(2, 13))
def test_pieces_are_all_of_it(blocks: int, tile: int, every: int) -> None:
    """Compared with counting tile by tile, for last tiles of all sizes."""
    p = Placement(
        "head", "flash", 64, 24 * blocks, 24, blocks, min(tile, blocks), "cores", every, "l2", 8
    )
    starts = range(0, blocks, p.tile_blocks)
    chip = sum(min(p.tile_blocks, blocks - at) for i, at in enumerate(starts) if p.tile_on_chip(i))
    assert p.pieces == (("l2", 8, 24 * chip), ("flash", 64, 24 * (blocks - chip)))


def test_the_head_gets_the_room_on_the_chip_first() -> None:
    """For SmolLM2, prefill then waits less for tiles of the LM head, and decoding takes as long as before."""
    table = cost_table("siracusa")
    assert table is not None
    s = smol(512)
    plan = sound(s, SIRACUSA)
    head = plan.placements[-1]
    assert (head.name, head.level, head.chip_level) == (
        "head",
        "flash",
        "wmem",
    ) and head.interleave >= 2
    assert head.chip_bytes > 0.7 * SIRACUSA.room("wmem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "HEAD_INTERLEAVES", ())
        without = sound(s, SIRACUSA)
    assert without.placements[-1].interleave == 0

    def cycles(of: Plan, tokens: int) -> float:
        return cost_of([Passes(s, of, SIRACUSA).steps(tokens, 64)], table).cycles

    assert cycles(plan, 8) < 0.96 * cycles(without, 8)
    assert cycles(plan, 1) < 1.002 * cycles(without, 1)


def test_a_head_of_one_tile_lies_in_one_memory() -> None:
    s = make_shape(
        vocab=96, hidden=256, ffn=768, heads=4, kv_heads=2, head_dim=32, layers=17, context=512, tied=False,
        options=QuantOptions(bits=8, group_size=32, embedding_bits=4),
    )  # fmt: skip
    plan = sound(s, SIRACUSA)
    head = next(p for p in plan.placements if p.name == "head")
    assert plan.stage_bytes > 0 and head.blocks == head.tile_blocks and head.interleave == 0


def test_misplaced_tiles_of_the_head() -> None:
    """The verifier reports tiles in an unknown or too small memory, overlapping, misaligned, or of another matrix."""
    away = Choices({name: Choice("neureka_1x1") for name in ("layer0.gate_up", "layer3.o")})
    s, t = make_shape(choices=away), SIRACUSA.with_room(wmem=61_000, l2=222 * KIB)
    for plan in (make_plan(s, t, budget) for budget in (None, 48 * KIB)):
        last = len(plan.placements) - 1
        head = plan.placements[last]
        assert head.name == "head" and head.interleave > 1 and verify(plan, s, t) > 0
        taken = max(
            (x.offset for x in [*plan.placements, *plan.tables] if x.level == head.chip_level),
            default=-1,
        )
        room = (t.l2 if head.chip_level == "l2" else t.room("wmem")) - head.chip_bytes
        for fields in (
            {"interleave": 1}, {"chip_level": "flash"}, {"chip_level": "hyperram"}, {"chip_level": ""},
            {"chip_level": "rom"},
            {"chip_offset": head.chip_offset + 2}, {"chip_offset": -16}, {"chip_offset": room + 16},
            {"level": "l2", "offset": 0}, *([{"chip_offset": taken}] if taken >= 0 else []),
            *([{"interleave": head.interleave - 1}] if head.interleave > 2 else []),
        ):  # fmt: skip
            assert faults_of(with_placement(plan, last, **fields), s, t), fields
        one_tile = {"tile_blocks": head.blocks, "chip_offset": head.chip_offset}
        assert any(
            "leaves nothing" in fault
            for fault in faults_of(with_placement(plan, last, **one_tile), s, t)
        )
        other = {"interleave": 2, "chip_level": head.chip_level, "chip_offset": head.chip_offset}
        assert faults_of(with_placement(plan, 0, **other), s, t)
