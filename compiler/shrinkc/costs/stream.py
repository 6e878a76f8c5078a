"""Arrival times of weight tiles: a model of sc_stream.c in cycles."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """A weight tile of ``bytes`` bytes that the DMA copies into L1.

    ``ahead`` > 0: it comes from flash through L2, and this many later tiles are being fetched when it is taken."""

    bytes: int
    ahead: int = 0

    @property
    def fetched(self) -> bool:
        return self.ahead > 0


class Stream:
    """Stream of tiles in order of use: while the cores use one, the DMA copies the next and flash delivers later ones.

    ``dma`` and ``flash``: bytes per cycle.
    """

    def __init__(self, tiles: Sequence[Tile], dma: float, flash: float, now: float = 0.0) -> None:
        self._tiles, self._dma, self._flash = tiles, dma, flash
        self._most = max((t.ahead for t in tiles), default=0)
        self._next = 0  # to be copied into L1
        self._outside = iter(t for t in tiles if t.fetched)
        # arrival times of the next tile in L1, and of tiles from flash in L2, oldest first
        self._copied, self._fetched = now, deque[float]()
        self._fetch(now)
        self._load(now)

    def take(self, now: float) -> tuple[float, float]:
        """Return the cycles that the cores wait for the next tile at ``now``: (for the DMA, for flash).

        The core that requests the tile after it waits for flash."""
        there = max(now, self._copied)
        return there - now, self._load(there) - there

    def take_equal(self, now: float, count: int, work: float) -> tuple[float, float]:
        """Return the waits of ``take`` for ``count`` equal tiles, each followed by ``work`` cycles.

        Once a tile leaves transfers equally far ahead as the tile before it, all further tiles but the last
        take equally long and are skipped."""
        dma = flash = 0.0
        in_flight = self._most + 2  # tiles being transferred, or requested, when one is taken
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
        """Return the remaining cycles of the next tile's transfer, and of those from flash if it is from flash."""
        fetched = self._next < len(self._tiles) and self._tiles[self._next].fetched
        return self._copied - now, *(there - now for there in self._fetched if fetched)

    def _skip(self, count: int, cycles: float) -> None:
        if self._tiles[self._next].fetched:
            next(itertools.islice(self._outside, count - 1, None))
            self._fetched = deque(there + cycles for there in self._fetched)
        self._next += count
        self._copied += cycles

    def _load(self, now: float) -> float:
        """Start the copy of the next tile; return when the core that starts it can go on."""
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
        """Request as many tiles from flash as the queue can hold."""
        while len(self._fetched) < self._most and (tile := next(self._outside, None)) is not None:
            begin = max(now, self._fetched[-1]) if self._fetched else now
            self._fetched.append(begin + tile.bytes / self._flash)


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
