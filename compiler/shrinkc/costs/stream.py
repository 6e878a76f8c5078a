"""When weight tiles arrive: the stream of sc_stream.c in cycles instead of bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

BEHIND = 3  # tiles that are on their way, or about to be, when one is taken


@dataclass(frozen=True)
class Tile:
    """``bytes`` that the DMA copies into L1, through L2 from flash where ``fetched``."""

    bytes: int
    fetched: bool = False


class Stream:
    """Tiles in the order in which they are used; the next one travels while the cores work on one, and
    from flash a third is on its way.

    ``dma`` and ``flash``: bytes per cycle.
    """

    def __init__(self, tiles: Sequence[Tile], dma: float, flash: float, now: float = 0.0) -> None:
        self._tiles, self._dma, self._flash = tiles, dma, flash
        self._next = 0  # to be copied into L1
        self._outside = iter(t for t in tiles if t.fetched)
        self._fetched = self._copied = now  # when what is under way is there
        self._fetch(now)
        self._load(now)

    def take(self, now: float) -> tuple[float, float]:
        """Cycles that the cores wait for the next tile when they ask for it at ``now``: for the DMA,
        and for flash, for which the core waits that sends the tile behind it on its way."""
        there = max(now, self._copied)
        return there - now, self._load(there) - there

    def take_equal(self, now: float, count: int, work: float) -> tuple[float, float]:
        """The same of ``count`` equal tiles with ``work`` cycles behind each, in all.

        Once what is under way is as far ahead as at the tile before, every further one takes as long, until
        the last tiles that have none like them behind."""
        dma = flash = 0.0
        before: tuple[float, float] | None = None
        while count:
            took = self.take(now)
            dma, flash = dma + took[0], flash + took[1]
            now, count = now + sum(took) + work, count - 1
            ahead = self._ahead(now)
            if count > BEHIND and before is not None and _close(ahead, before):
                skipped, count = count - BEHIND, BEHIND
                cycles = skipped * (sum(took) + work)
                self._skip(skipped, cycles)
                dma, flash, now = dma + skipped * took[0], flash + skipped * took[1], now + cycles
            before = ahead
        return dma, flash

    def _ahead(self, now: float) -> tuple[float, float]:
        """How long after ``now`` what is under way is there: the next tile, and where that is from flash the
        one behind it; tiles that are not do not wait for one that is."""
        fetched = self._next < len(self._tiles) and self._tiles[self._next].fetched
        return self._copied - now, self._fetched - now if fetched else 0.0

    def _skip(self, count: int, cycles: float) -> None:
        if self._tiles[self._next].fetched:
            next(itertools.islice(self._outside, count - 1, None))
            self._fetched += cycles
        self._next += count
        self._copied += cycles

    def _load(self, now: float) -> float:
        """Sends the next tile on its way; when the core that does it goes on."""
        if self._next == len(self._tiles):
            return now
        tile = self._tiles[self._next]
        self._next += 1
        if tile.fetched:
            now = max(now, self._fetched)
            self._fetch(now)
        self._copied = now + tile.bytes / self._dma
        return now

    def _fetch(self, now: float) -> None:
        tile = next(self._outside, None)
        if tile is not None:
            self._fetched = now + tile.bytes / self._flash


def _close(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
