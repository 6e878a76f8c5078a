"""Which engine runs which matrix, and why not another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shrinkc.costs import Work, cost_table
from shrinkc.engines import CORES, ENGINES, THE_CORES, Choices, Engine, MatrixSpec, choose
from shrinkc.engines.choice import both
from shrinkc.storage import BLOCKS, Offsets, stored_group

from .plain import EAGER, PLAIN

MIB = 1 << 20


def spec(name: str = "layer0.o", rows: int = 64, k: int = 64, **fields: object) -> MatrixSpec:
    base = MatrixSpec(name, rows, k, bits=8, group_size=None, offsets=Offsets.NONE)
    return replace(base, **fields)  # type: ignore[arg-type]


def chosen(
    *specs: MatrixSpec,
    engine: Engine = PLAIN,
    room: int = MIB,
    owners: dict[str, str] | None = None,
) -> Choices:
    return choose(specs, [THE_CORES, engine], {"wmem": room}, owners)


def why_not(choices: Choices, name: str = "layer0.o") -> str:
    """The one reason why plain does not run a matrix, which is then the cores'."""
    assert choices.engine(name) == CORES
    ((engine, reason),) = choices.by_name[name].refused
    assert engine == "plain"
    return reason


def test_the_cheaper_one_runs_it() -> None:
    large, small = spec("large", 512, 96), spec("small", 64, 64)
    choices = chosen(large, small)
    assert choices.engine("large") == "plain"
    assert choices.by_name["large"].cycles == PLAIN.cycles(large, 1) < THE_CORES.cycles(large, 1)
    assert choices.by_name["large"].refused == ()
    assert why_not(choices, "small") == (
        f"takes {both(PLAIN, small)} cycles there, {both(THE_CORES, small)} on the cores, for two tokens"
    )
    assert choices.by_name["small"].cycles == THE_CORES.cycles(small, 1)


def test_the_cores_run_what_both_run_alike() -> None:
    same = replace(PLAIN, cycles=THE_CORES.cycles)
    assert "on the cores" in why_not(chosen(spec(), engine=same))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (spec(offsets=Offsets.WIDE, group_size=32), "has offsets, for which plain has no sums"),
        (spec(rows=107), "has 107 rows, no multiple of 8"),
        (spec(rank=3), "has an adapter, which the cores add block by block"),
    ],
)
def test_what_it_cannot_run_stays_with_the_cores(given: MatrixSpec, reason: str) -> None:
    assert why_not(chosen(given, engine=EAGER)) == reason


def test_an_embedding_needs_its_rows() -> None:
    tied = spec("head", embedding=True)
    assert chosen(tied, engine=EAGER).engine("head") == "plain"
    blind = replace(EAGER, reads_rows=False)
    assert chosen(spec("head"), engine=blind).engine("head") == "plain"
    reason = why_not(chosen(tied, engine=blind), "head")
    assert reason == "is the embedding as well, whose rows plain cannot give"


def test_memory_goes_to_those_that_gain_most_per_byte() -> None:
    """Equal matrices, but the cores are slower with the second, whose weights are 3 bit."""
    wide, narrow = spec("wide", 512, 96), spec("narrow", 512, 96, bits=3)
    size = {s.name: PLAIN.shape(s).bytes + 64 for s in (wide, narrow)}
    choices = chosen(wide, narrow, room=size["narrow"] + 200)
    assert choices.engine("narrow") == "plain"
    assert "bytes of wmem, where " in why_not(choices, "wide")
    both = chosen(wide, narrow, room=sum(size.values()))
    assert {both.engine("wide"), both.engine("narrow")} == {"plain"}
    none = chosen(wide, narrow, room=100)
    assert why_not(none, "narrow").endswith("where 100 are left")


def test_equal_matrices_have_one_engine_and_take_their_bytes_once() -> None:
    first, again, other = (spec(n, 512, 96) for n in ("first", "again", "other"))
    room = PLAIN.shape(first).bytes + 64
    owners = {"again": "first"}
    choices = chosen(other, first, again, room=room, owners=owners)
    # twice the gain for the same bytes
    assert choices.by_name["first"] == choices.by_name["again"]
    assert [choices.engine(n) for n in ("first", "again", "other")] == ["plain", "plain", CORES]


def test_several_engines_are_compared() -> None:
    faster = replace(PLAIN, name="faster", cycles=lambda s, tokens: PLAIN.cycles(s, tokens) - 1)
    large = spec("large", 512, 96)
    choices = choose([large], [THE_CORES, PLAIN, faster], {"wmem": MIB})
    assert choices.engine("large") == "faster"


def test_the_cores_cost_what_is_calibrated() -> None:
    """The coefficients of products, less what counters take; more of anything costs more."""
    table = cost_table("siracusa")
    assert table is not None
    one = spec("m", 200, 96)  # 25 blocks in one tile
    work = Work({"calls": 1, **THE_CORES.work(THE_CORES.shape(one), 1, (25,))})
    assert THE_CORES.cycles(one, 1) == round(table.cycles("linear", work).whole - table.probe)
    for bits in (8, 6, 5, 4, 3, 2):
        less = THE_CORES.cycles(spec("m", 512, 96, bits=bits), 1)
        more = (
            THE_CORES.cycles(spec("m", 1024, 96, bits=bits), 1),
            THE_CORES.cycles(spec("m", 512, 192, bits=bits), 1),
            THE_CORES.cycles(spec("m", 512, 96, bits=bits), 2),
        )
        assert less < min(more), bits
    # a matrix of which each weight is used once is copied no faster than the DMA can
    large = spec("m", 8192, 2048)
    assert THE_CORES.cycles(large, 1) >= THE_CORES.shape(large).bytes / table.dma


def test_the_cores_run_everything_as_they_always_did() -> None:
    for k in (1, 63, 64, 100, 576):
        for bits, pad in ((8, 4), (4, 8), (3, 32), (2, 16)):
            for group in (None, 16, 32, 128):
                assert THE_CORES.cut(k, group, bits) == (stored_group(k, group), pad)
    assert THE_CORES.store is BLOCKS
    assert THE_CORES.refusal(spec(rank=4, offsets=Offsets.ZEROS, embedding=True)) is None


def test_every_engine_is_known_by_its_name() -> None:
    assert ENGINES[CORES] is THE_CORES
    assert all(name == engine.name for name, engine in ENGINES.items())


@pytest.mark.parametrize(
    "fields", [{"name": "no name"}, {"name": "Loud"}, {"levels": ()}, {"levels": ("wmem", "flash")}]
)
def test_an_engine_checks_itself(fields: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        replace(PLAIN, **fields)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        replace(THE_CORES, levels=("wmem",))
    for store in ({"rows": 12}, {"align": 8}):
        with pytest.raises(AssertionError):
            replace(PLAIN.store, **store)  # type: ignore[arg-type]
