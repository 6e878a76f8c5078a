"""Work of one execution of an op, as counts that are proportional to cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """Work of one op.

    ``features``: name -> count on the busiest core.  Another engine does ``<engine>.<name>`` while the cores do
    ``overlapped.<name>``; the longer of the two counts.  ``moved``: bytes that the DMA copies during the op, without
    weight tiles.  ``fetched``: bytes from flash for which the op waits.  ``swapped``: bytes from HyperRAM that arrive
    during the op; other transfers count as the bytes that arrive in their time."""

    features: Mapping[str, float] = field(default_factory=dict)
    moved: float = 0.0
    fetched: float = 0.0
    swapped: float = 0.0

    def __add__(self, other: Work) -> Work:
        names = {**self.features, **other.features}
        both = {n: self.features.get(n, 0.0) + other.features.get(n, 0.0) for n in names}
        fetched, swapped = self.fetched + other.fetched, self.swapped + other.swapped
        return Work(both, self.moved + other.moved, fetched, swapped)

    def __truediv__(self, n: float) -> Work:
        features = {name: count / n for name, count in self.features.items()}
        return Work(features, self.moved / n, self.fetched / n, self.swapped / n)


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic and memory traffic of one execution of an op, for a roofline.

    ``products``: multiply-accumulates; ops that only shift or compare count one per element.  ``bytes``: stored
    weights, KV cache, inputs and result, each once.
    """

    products: float = 0.0
    bytes: float = 0.0


OVERLAPPED = "overlapped"


def lane(feature: str) -> str:
    """Return the unit that does the work of a feature: an engine's name, OVERLAPPED, or "" for the cores."""
    name, dot, _ = feature.partition(".")
    return name if dot else ""


def total(works: Iterable[Work]) -> Work:
    """Return the sum."""
    return sum(works, Work())


def share(items: int, workers: int) -> int:
    """Return how many of ``items`` the busiest worker has if ``workers`` take them in turn."""
    return -(-items // workers)
