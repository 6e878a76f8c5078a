"""One width for each matrix: the least growth of the loss within so many bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

STEPS = 200_000  # of a budget, where the sizes have no larger common divisor

Option = tuple[int, int, float]
"""Width, bytes, growth of the loss."""


def knapsack(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Index of one option per item: the least sum of growths within ``budget`` bytes, or None.

    Dynamic programming over bytes in units of their common divisor, or of budget / STEPS rounded
    up where that is larger; the bytes that rounding leaves over are then given to what gains most.
    """
    spare = budget - sum(min(size for _, size, _ in item) for item in items)
    if spare < 0:
        return None
    # only what is beyond each item's least has to be shared out
    extra = [[size - min(s for _, s, _ in item) for _, size, _ in item] for item in items]
    unit = math.gcd(*(e for item in extra for e in item)) or 1
    unit = max(unit, -(-spare // STEPS), 1)
    room = spare // unit
    best = np.zeros(room + 1)
    picks = []
    for item, more in zip(items, extra, strict=True):
        value = np.full(room + 1, np.inf)
        pick = np.zeros(room + 1, np.int8)
        for index, ((_, _, loss), e) in enumerate(zip(item, more, strict=True)):
            cost = -(-e // unit)
            if cost > room:
                continue
            candidate = best[: room + 1 - cost] + loss
            better = candidate < value[cost:]
            value[cost:][better] = candidate[better]
            pick[cost:][better] = index
        best = value
        picks.append(pick)
    at, chosen = room, []
    for more, pick in zip(reversed(extra), reversed(picks), strict=True):
        index = int(pick[at])
        chosen.append(index)
        at -= -(-more[index] // unit)
    chosen.reverse()
    return _filled(items, chosen, budget)


def _filled(items: Sequence[Sequence[Option]], chosen: list[int], budget: int) -> list[int]:
    """While something fits that lowers the loss, the one that does so most per byte is taken."""
    left = budget - sum(item[i][1] for item, i in zip(items, chosen, strict=True))

    def swaps() -> Iterator[tuple[float, int, int, int]]:
        for number, item in enumerate(items):
            _, size, loss = item[chosen[number]]
            for index, (_, other, lower) in enumerate(item):
                if lower < loss and other - size <= left:
                    more = other - size
                    yield (loss - lower) / max(more, 1e-9), number, index, more

    while (swap := max(swaps(), default=None)) is not None:
        _, number, index, more = swap
        chosen[number] = index
        left -= more
    return chosen
