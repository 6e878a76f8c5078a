"""When a KV cache streams from HyperRAM, and that the verifier accepts every plan with such a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit
from shrinkc.costs import cost_table
from shrinkc.memory.cycles import FLASH, Passes, cost_of
from shrinkc.memory.parts import kv_layers_bytes
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import verify
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, MIB, PULP_OPEN, SIRACUSA, Target

from .shapes import make_shape, shapes, sound

LLAMA_1B = {
    "hidden": 2048, "ffn": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64,
    "vocab": 128256, "piece_bytes": 1_000_000,
}  # fmt: skip
LARGE_FLASH = SIRACUSA.with_room(flash=1024 * MIB)


def llama_1b(context: int, kv_bits: int = 8) -> ModelShape:
    options = QuantOptions(bits=4, group_size=64, embedding_bits=4, kv_bits=kv_bits)
    return make_shape(**LLAMA_1B, context=context, options=options)  # type: ignore[arg-type]


def test_llama_3_2_1b_streams_only_what_no_memory_holds() -> None:
    assert not sound(llama_1b(1024), LARGE_FLASH).kv_streamed
    plan = sound(llama_1b(1200), LARGE_FLASH)
    assert plan.kv_streamed and plan.kv_layers == {"hyperram": 16}
    assert not sound(llama_1b(1200, kv_bits=4), LARGE_FLASH).kv_streamed


def test_the_context_of_llama_3_2_1b_is_what_hyperram_holds() -> None:
    """A position takes 16 layers * 8 heads * (4 + 64 + 64) bytes; 4 positions are a block."""
    most = 64 * MIB // (16 * 8 * 132) // 4 * 4
    assert most == 3968
    sound(llama_1b(most), LARGE_FLASH)
    with pytest.raises(DoesNotFit, match=r"^HyperRAM: need 67110912 bytes, have 67108864") as error:
        make_plan(llama_1b(most + 1), LARGE_FLASH)
    (lack,) = error.value.lacks
    assert lack.level == "hyperram" and lack.largest == (("kv cache", lack.need),)
    sound(llama_1b(4096), LARGE_FLASH.with_room(hyperram=lack.need + 2 * MIB))
    assert sound(llama_1b(4096, kv_bits=4), LARGE_FLASH).kv_streamed


def test_scores_that_l1_cannot_hold() -> None:
    """Each of 8 cores has 6 bytes per position unless the cache streams."""
    shape = make_shape(heads=8, kv_heads=1, head_dim=64, context=4096)
    small, large = 128 * KIB, 256 * KIB
    assert not sound(shape, SIRACUSA, large).kv_streamed
    assert sound(shape, SIRACUSA, small).kv_streamed
    short = make_shape(heads=8, kv_heads=1, head_dim=64, context=1024)
    with pytest.raises(DoesNotFit, match=r"^L1: need"):
        make_plan(short, SIRACUSA, 48 * KIB)


def test_nothing_streams_without_hyperram_or_with_a_window_below_a_block() -> None:
    shape = llama_1b(2000)
    for s, t in (
        (shape, replace(PULP_OPEN, levels=without_hyperram(PULP_OPEN))),
        (replace(shape, windows=(3, *[0] * 15)), LARGE_FLASH.with_room(l2=MIB)),
    ):
        with pytest.raises(DoesNotFit, match=r"^L[12]: need"):
            make_plan(s, t)


def without_hyperram(t: Target) -> tuple[object, ...]:
    return tuple(v for v in t.levels if v.name != "hyperram")


def test_cycles_count_the_bytes_of_hyperram() -> None:
    """The keys pass the HyperBus twice and the values once, for each token of a pass and turn."""
    table = cost_table("siracusa")
    assert table is not None
    s = llama_1b(3968)
    plan = sound(s, LARGE_FLASH)
    passes = Passes(s, plan, LARGE_FLASH)

    def attention(position: int) -> float:
        cost = cost_of([passes.steps(1, position)], table)
        steps = [step for step in cost.steps if step.name.endswith("attn")]
        assert len(steps) == 16
        return sum(step.busy[FLASH] for step in steps)

    more = 16 * 1000 * 8 * (2 * 68 + 64)
    assert more < attention(3000) - attention(2000) < 1.1 * more


@settings(max_examples=40, deadline=None)
@given(
    s=shapes(), budget=st.integers(24 * KIB, 128 * KIB), less=st.integers(1, 16),
    kv_bits=st.sampled_from((8, 4)),
)  # fmt: skip
def test_every_plan_is_sound(s: ModelShape, budget: int, less: int, kv_bits: int) -> None:
    """L2 lacks up to a quarter of a layer's cache, and no other memory on the chip can hold one."""
    s = replace(s, kv_bits=kv_bits if s.head_dim % 4 == 0 else 8, windows=())
    levels = tuple(replace(v, writable=0) if v.name == "wmem" else v for v in SIRACUSA.levels)
    target = replace(SIRACUSA, levels=levels)
    plan = planned(s, target, budget)
    assume(not plan.kv_in_l1)
    others = sum(b.bytes for b in plan.lower_buffers if b.level == "l2" and b.name != "kv cache")
    layer = max(kv_layers_bytes(s, plan.chunk))
    target = target.with_room(l2=others + layer - less * layer // 64)
    plan = planned(s, target, budget)
    check_fits(s, target, budget)
    assert verify(plan, s, target) > 0
    if plan.kv_streamed:
        stage = next(b.bytes for b in plan.lower_buffers if b.name == "kv stage")
        assert plan.kv_layers == {"hyperram": s.num_layers} and stage < layer


def planned(s: ModelShape, t: Target, budget: int) -> Plan:
    """Return the plan, or give the example up if there is none."""
    try:
        return make_plan(s, t, budget)
    except DoesNotFit:
        assume(False)
        raise
