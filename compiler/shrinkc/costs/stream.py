"""When weight tiles arrive: the stream of sc_stream.c in cycles instead of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
