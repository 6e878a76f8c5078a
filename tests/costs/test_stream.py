"""Tiles arrive when sc_stream.c would have them: two buffers on the chip, and some outside."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shrinkc.costs.stream import Stream, Tile


def finished(stream: Stream, tiles: int, work: float, now: float = 0.0) -> float:
    for _ in range(tiles):
        now += sum(stream.take(now)) + work
    return now


def test_the_first_tile_is_waited_for() -> None:
    stream = Stream([Tile(800)], dma=8, flash=1)
    assert stream.take(40.0) == (60.0, 0.0)


def test_a_tile_that_is_there_costs_nothing() -> None:
    stream = Stream([Tile(800)], dma=8, flash=1)
    assert stream.take(100.0) == (0.0, 0.0)


@pytest.mark.parametrize(("work", "end"), [(50.0, 10 * 100.0 + 50), (130.0, 100 + 10 * 130.0)])
def test_the_slower_of_copy_and_work(work: float, end: float) -> None:
    """Ten tiles of 100 cycles: all but the first travel while the cores work."""
    assert finished(Stream([Tile(800)] * 10, dma=8, flash=1), 10, work) == end


@pytest.mark.parametrize(
    ("work", "end"), [(50.0, 10 * 800.0 + 100 + 50), (900.0, 800 + 100 + 9000.0)]
)
def test_the_slower_of_fetch_and_work(work: float, end: float) -> None:
    """From flash: the first is fetched and copied, then fetch, copy and work overlap.

    The core that sends a tile into L1 waits until it is fetched, before it works on the one it has.
    """
    stream = Stream([Tile(800, ahead=1)] * 10, dma=8, flash=1)
    now = finished(stream, 10, work)
    # what is left of the last fetches when the work is the shorter
    assert end <= now <= end + 900


def test_flash_bounds_a_long_stream() -> None:
    """1000 tiles of 1000 bytes at a byte per cycle take a million cycles and little more."""
    stream = Stream([Tile(1000, ahead=1)] * 1000, dma=8, flash=1)
    assert 1e6 < finished(stream, 1000, 300.0) < 1.003e6


@pytest.mark.parametrize(("ahead", "waits"), [(1, 2700.0), (2, 1800.0), (3, 900.0), (7, 0.0)])
def test_tiles_ahead_arrive_while_the_cores_do_without(ahead: int, waits: float) -> None:
    """Work of 4,000 cycles: of five tiles of 900 each that come from flash then, as many are there as may be on
    their way; in front of it there were two."""
    stream = Stream([Tile(900, ahead)] * 8, dma=900, flash=1)
    now = 0.0
    for _ in range(2):
        now += sum(stream.take(now))
    now, waited = now + 4000.0, 0.0
    for _ in range(4):
        took = sum(stream.take(now))
        now, waited = now + took, waited + took
    assert waited == pytest.approx(waits, abs=10)


def test_waits_are_told_apart() -> None:
    stream = Stream([Tile(800), Tile(800, ahead=1)], dma=8, flash=1)
    on_chip, outside = stream.take(0.0)
    assert (on_chip, outside) == (100.0, 700.0)  # the second's fetch began at 0
    assert stream.take(800.0) == (100.0, 0.0)


RUNS = st.lists(
    st.tuples(
        st.integers(1, 3000), st.booleans(), st.integers(1, 40), st.sampled_from([0.0, 30.5, 400.0])
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(
    runs=RUNS,
    dma=st.sampled_from([1.7, 8.0]),
    flash=st.sampled_from([0.3, 1.0, 8.0]),
    ahead=st.integers(1, 7),
)
def test_equal_tiles_at_once_are_those_one_by_one(
    runs: list[tuple[int, bool, int, float]], dma: float, flash: float, ahead: int
) -> None:
    tiles = [Tile(size, ahead * out) for size, out, count, _ in runs for _ in range(count)]
    one_by_one, at_once = Stream(tiles, dma, flash, 5.0), Stream(tiles, dma, flash, 5.0)
    now = 7.0
    for _, _, count, work in runs:
        begin, waits = now, [0.0, 0.0]
        for _ in range(count):
            took = one_by_one.take(now)
            waits = [a + b for a, b in zip(waits, took, strict=True)]
            now += sum(took) + work
        assert at_once.take_equal(begin, count, work) == pytest.approx(waits, abs=1e-3)
