"""When weight tiles arrive: the stream of sc_stream.c in cycles instead of bytes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """``bytes`` that the DMA copies into L1; through L2 from flash where ``ahead`` is not 0, the tiles that are on
    their way from there when one is taken."""

    bytes: int
    ahead: int = 0

    @property
    def fetched(self) -> bool:
        return self.ahead > 0


class Stream:
    """Tiles in the order in which they are used; the next one travels while the cores work on one, and
    from flash further ones are on their way.

    ``dma`` and ``flash``: bytes per cycle.
    """

    def __init__(self, tiles: Sequence[Tile], dma: float, flash: float, now: float = 0.0) -> None:
        self._tiles, self._dma, self._flash = tiles, dma, flash
        self._most = max((t.ahead for t in tiles), default=0)
        self._next = 0  # to be copied into L1
        self._outside = iter(t for t in tiles if t.fetched)
        # when what is under way is there: the next tile, and of those from flash the oldest first
        self._copied, self._fetched = now, deque[float]()
        self._fetch(now)
        self._load(now)

    def take(self, now: float) -> tuple[float, float]:
        """Cycles that the cores wait for the next tile when they ask for it at ``now``: for the DMA,
        and for flash, for which the core waits that requests the next tile."""
        there = max(now, self._copied)
        return there - now, self._load(there) - there

    def take_equal(self, now: float, count: int, work: float) -> tuple[float, float]:
        """The same of ``count`` equal tiles, each followed by ``work`` cycles, in all.

        Once what is under way is as far ahead as at the tile before, every further one takes as long, until
        the last tiles, which none like them follow."""
        dma = flash = 0.0
        in_flight = self._most + 2  # tiles that are on their way, or about to be, when one is taken
        before: tuple[float, ...] | None = None
        while count:
            took = self.take(now)
            dma, flash = dma + took[0], flash + took[1]
            now, count = now + sum(took) + work, count - 1
            if count <= in_flight:
                continue  # too few are left to skip any
            ahead = self._ahead(now)
            if before is not None and _close(ahead, before):
                skipped, count = count - in_flight, in_flight
                cycles = skipped * (sum(took) + work)
                self._skip(skipped, cycles)
                dma, flash, now = dma + skipped * took[0], flash + skipped * took[1], now + cycles
            before = ahead
        return dma, flash

    def _ahead(self, now: float) -> tuple[float, ...]:
        """How long after ``now`` what is under way is there: the next tile, and where that is from flash those
        behind it; tiles that are not do not wait for one that is."""
        fetched = self._next < len(self._tiles) and self._tiles[self._next].fetched
        return self._copied - now, *(there - now for there in self._fetched if fetched)

    def _skip(self, count: int, cycles: float) -> None:
        if self._tiles[self._next].fetched:
            next(itertools.islice(self._outside, count - 1, None))
            self._fetched = deque(there + cycles for there in self._fetched)
        self._next += count
        self._copied += cycles

    def _load(self, now: float) -> float:
        """Sends the next tile on its way; when the core that does it goes on."""
        if self._next == len(self._tiles):
            return now
        tile = self._tiles[self._next]
        self._next += 1
        if tile.ahead:
            now = max(now, self._fetched.popleft())
            self._fetch(now)
        self._copied = now + tile.bytes / self._dma
        return now

    def _fetch(self, now: float) -> None:
        """Asks for as many tiles from flash as may be on their way, one after the other."""
        while len(self._fetched) < self._most and (tile := next(self._outside, None)) is not None:
            begin = max(now, self._fetched[-1]) if self._fetched else now
            self._fetched.append(begin + tile.bytes / self._flash)


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
