"""The planner arranges the lower memories so that a pass fetches the least from flash and HyperRAM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shrinkc.core.errors import DoesNotFit
from shrinkc.costs import cost_table
from shrinkc.engines import Choice, Choices
from shrinkc.memory import planner
from shrinkc.memory.cycles import Passes, cost_of
from shrinkc.memory.lower import FETCH_CYCLES, LowerNeeds, arrange
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of
from shrinkc.quantize import QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, MIB, PULP_OPEN, SIRACUSA

from .shapes import make_shape, smol, sound

NO_RAM = replace(SIRACUSA, levels=tuple(v for v in SIRACUSA.levels if v.name != "hyperram"))

LLAMA_1B = {
    "hidden": 2048, "ffn": 8192, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64,
    "vocab": 128256, "piece_bytes": 900_000,
}  # fmt: skip
Q3 = QuantOptions(bits=3, embedding_bits=3)


def tables(plan: Plan) -> dict[str, str]:
    return {table.name: table.level for table in plan.tables}


@pytest.mark.slow
@pytest.mark.parametrize("context", [88, 512, 1024, 2048])
def test_contexts_of_smollm2(context: int) -> None:
    """Contexts above 88 need a cache or tables outside L2."""
    plan = sound(smol(context), SIRACUSA)
    assert sum(plan.kv_layers.values()) == 30
    assert tables(plan)["pieces"] == "flash"


def test_contexts_of_llama_3_2_1b() -> None:
    for context in (128, 1024):
        sound(make_shape(**LLAMA_1B, context=context, options=Q3), SIRACUSA)  # type: ignore[arg-type]


@pytest.mark.slow
def test_without_hyperram_the_cache_fills_l2_and_weight_memory() -> None:
    plan = sound(smol(400), NO_RAM)
    assert set(plan.kv_layers) == {"l2", "wmem"}
    flash = [make_plan(smol(400), NO_RAM.with_room(l2=n * MIB)).used["flash"] for n in (2, 3, 4)]
    assert flash == sorted(flash, reverse=True) and flash[0] > flash[-1], (
        "more room, fewer weights there"
    )
    with pytest.raises(DoesNotFit, match="L2: need .* Largest: kv cache") as refused:
        make_plan(smol(1024), NO_RAM)
    (lack,) = refused.value.lacks
    exact = NO_RAM.with_room(l2=lack.need)
    assert lack.need - 2 * KIB < sound(smol(1024), exact).used["l2"] <= lack.need
    with pytest.raises(DoesNotFit):  # the margin is for a table that can go elsewhere
        make_plan(smol(1024), NO_RAM.with_room(l2=lack.need - 2 * KIB))


def test_on_the_chip_nothing_is_fetched() -> None:
    """HyperRAM and flash are not used if weights and KV cache fit on the chip."""
    s = make_shape(context=600, layers=30)
    plan = sound(s, SIRACUSA, 64 * KIB)
    assert plan.kv_layers == {"l2": 30}
    assert plan.used["flash"] == plan.used["hyperram"] == plan.table_stage == 0
    less = SIRACUSA.with_room(l2=plan.used["l2"] - 20 * KIB)
    moved = sound(s, less, 64 * KIB)
    assert set(moved.kv_layers) == {"l2", "wmem"} and moved.used["hyperram"] == 0


def test_a_table_goes_to_flash_if_the_weights_then_fit_on_the_chip() -> None:
    """A pass reads a few bytes of a table, but whole matrices."""
    s = make_shape(piece_bytes=60_000)
    whole = sound(s, NO_RAM)
    assert set(tables(whole).values()) == {"l2"}
    room = whole.used["l2"] + whole.used["wmem"]
    short = NO_RAM.with_room(
        wmem=whole.used["wmem"] // 2, l2=room - whole.used["wmem"] // 2 - 40_000
    )
    plan = sound(s, short)
    assert tables(plan)["pieces"] == "flash"
    assert {p.level for p in plan.placements} == {"wmem", "l2"}
    assert plan.stage_bytes == 0 < plan.table_stage


def test_a_small_table_stays() -> None:
    """A small table stays on the chip: fetching from it would take longer than fetching as many bytes of weights."""
    s = make_shape(context=4, vocab=40, piece_bytes=20)
    need = sum(x.bytes for x in sound(s, NO_RAM).tables)
    assert need < 2 * FETCH_CYCLES
    for wmem in range(0, 64 * KIB, 4 * KIB):
        plan = sound(s, NO_RAM.with_room(wmem=wmem, l2=170 * KIB))
        assert set(tables(plan).values()) <= {"l2", "wmem"}


@pytest.mark.slow
def test_weights_stay_where_the_cache_can_go() -> None:
    """The KV cache goes to HyperRAM rather than displace weights to flash, which every pass reads completely."""
    plan, without = sound(smol(512), SIRACUSA), sound(smol(128), NO_RAM)
    assert plan.kv_layers == {"hyperram": 30}
    assert plan.used["flash"] < without.used["flash"]


def test_a_chip_without_weight_memory() -> None:
    s = make_shape(context=600, layers=30)
    plan = sound(s, PULP_OPEN.with_room(l2=300 * KIB))
    assert plan.kv_layers == {"hyperram": 30}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@example(
    context=140, l2=100, wmem=3, writable=191, ram=100, layers=9
)  # more L2 takes more of the cache
@example(context=141, l2=100, wmem=3, writable=192, ram=100, layers=9)
@given(
    context=st.integers(64, 500), l2=st.integers(100, 600), wmem=st.integers(0, 900),
    writable=st.integers(0, 900), ram=st.sampled_from([0, 100, 64 * 1024]), layers=st.integers(2, 12),
)  # fmt: skip
def test_any_memories(
    context: int, l2: int, wmem: int, writable: int, ram: int, layers: int
) -> None:
    """The planner makes a valid plan, or refuses and names exactly the HyperRAM or the L2 that is needed."""
    s = make_shape(context=context, layers=layers)
    levels = tuple(
        replace(v, writable=writable * KIB) if v.name == "wmem" else v for v in SIRACUSA.levels
    )
    t = replace(SIRACUSA, levels=levels).with_room(l2=l2 * KIB, wmem=wmem * KIB, hyperram=ram * KIB)
    lacking: list[str] = []
    while True:
        try:
            plan = make_plan(s, t, 64 * KIB)
            break
        except DoesNotFit as refused:
            (lack,) = refused.lacks
            assert lack.excess > 0
            lacking.append(lack.level)
            assert lacking in (["l2"], ["hyperram"], ["hyperram", "l2"])
            t = t.with_room(**{lack.level: lack.need})
    assert faults_of(plan, s, t) == []


def test_an_embedding_in_flash_where_engines_run_every_matrix() -> None:
    """No tiles are copied then, but rows of the embedding still need a stage."""
    sizes = {
        "hidden": 96, "ffn": 256, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 16,
        "vocab": 49152, "tied": False, "piece_bytes": 335_000,
    }  # fmt: skip
    names = [m.name for m in make_shape(**sizes).matrices if m.name != "embedding"]  # type: ignore[arg-type]
    choices = Choices({name: Choice("neureka_1x1") for name in names})
    s = make_shape(**sizes, choices=choices)  # type: ignore[arg-type]
    assert sound(s, SIRACUSA).embed_stage > 0


def on_chip(plan: Plan) -> list[int]:
    """Return the layer of each matrix on the chip."""
    return [
        int(p.name.split(".")[0].removeprefix("layer"))
        for p in plan.placements
        if p.level != "flash" and p.name.startswith("layer")
    ]


def test_matrices_on_the_chip_are_spread_over_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SmolLM2's first three layers on the chip, flash would be idle meanwhile.  Instead each third of the layers
    has matrices on the chip, and at most 1 % more bytes come from flash."""
    monkeypatch.setattr(planner, "HEAD_INTERLEAVES", ())
    s = smol(512)
    plan = sound(s, SIRACUSA)
    thirds = [sum(at // 10 == third for at in on_chip(plan)) for third in range(3)]
    assert min(thirds) > 0 and max(thirds) - min(thirds) <= 2, thirds
    needs = LowerNeeds(plan.kv_in_l1, plan.logits_in_l1, plan.chunk, plan.tile_bytes)
    first = arrange(s, SIRACUSA, needs)
    layers = {p.name.split(".")[0] for p in first.placements if p.level != "flash"}
    assert layers == {f"layer{i}" for i in range(len(layers))}
    assert plan.used["flash"] < 1.01 * first.used["flash"]


@pytest.mark.slow
def test_flash_has_a_longer_queue_where_that_pays() -> None:
    """More than two buffers are used if they save cycles and fit; two are the minimum."""
    table = cost_table("siracusa")
    assert table is not None
    s = smol(512)
    plan = sound(s, SIRACUSA)
    assert 2 < plan.stages <= 8
    fewer = replace(plan, stages=2)
    longer, shorter = (cost_of([Passes(s, p, SIRACUSA).steps(1, 64)], table) for p in (plan, fewer))
    assert longer.cycles < 0.99 * shorter.cycles
    least = make_plan(s, SIRACUSA.with_room(wmem=0, l2=1 << 30)).used["l2"]
    assert sound(s, SIRACUSA.with_room(wmem=0, l2=least)).stages == 0, "nothing travels from flash"
    exact = l2_of_two_stages(s)
    assert sound(s, SIRACUSA.with_room(wmem=0, l2=exact)).stages == 2
    with pytest.raises(DoesNotFit):
        make_plan(s, SIRACUSA.with_room(wmem=0, l2=exact - 16))


def l2_of_two_stages(s: ModelShape) -> int:
    """Return the smallest L2 with which all weights are in flash."""
    with pytest.raises(DoesNotFit) as refused:
        make_plan(s, SIRACUSA.with_room(wmem=0, l2=SIRACUSA.l2_system))
    (lack,) = refused.value.lacks
    return lack.need
