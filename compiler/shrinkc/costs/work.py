"""The work of one execution of an op, in counts that its cycles are proportional to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """``features``: name -> count, on the core that does most.  ``<engine>.<what>`` is done by another engine,
    ``overlapped.<what>`` by the cores at the same time: the longer of both counts.  ``moved``: bytes that the DMA
    copies for this op alone while it runs, without tiles of weights.  ``fetched``: bytes from flash that it waits for.
    """

    features: Mapping[str, float] = field(default_factory=dict)
    moved: float = 0.0
    fetched: float = 0.0

    def __add__(self, other: Work) -> Work:
        names = {**self.features, **other.features}
        both = {n: self.features.get(n, 0.0) + other.features.get(n, 0.0) for n in names}
        return Work(both, self.moved + other.moved, self.fetched + other.fetched)

    def __truediv__(self, n: float) -> Work:
        features = {name: count / n for name, count in self.features.items()}
        return Work(features, self.moved / n, self.fetched / n)


@dataclass(frozen=True)
class Arithmetic:
    """What one execution of an op computes and touches, whatever does it: for a roofline.

    ``products``: multiplications, each with its addition; of ops that only shift or compare one
    per element.  ``bytes``: of weights as they are stored, of the cache, of inputs and result, each once.
    """

    products: float = 0.0
    bytes: float = 0.0


OVERLAPPED = "overlapped"


def lane(feature: str) -> str:
    """The unit that does the work: an engine's name, OVERLAPPED, or "" for the cores."""
    name, dot, _ = feature.partition(".")
    return name if dot else ""


def total(works: Iterable[Work]) -> Work:
    """The sum."""
    return sum(works, Work())


def share(items: int, workers: int) -> int:
    """Of ``items`` that ``workers`` take in turn, how many the first has, which has most."""
    return -(-items // workers)
