"""Choice of one option per matrix with the least increase in loss within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from shrinkc.checkpoints import need

GAP = 1e-6  # relative gap to the optimum at which the solver stops
# Attempts with fewer bytes if the planner cannot place a choice.  The first STEPPED ones subtract the missing bytes,
# the others bisect.
ROUNDS, STEPPED = 16, 4

Option = tuple[int, int, float]
"""Bit-width or another number that names the option, bytes, increase in loss."""

T = TypeVar("T")


def knapsack(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Return the index of one option per item with the least sum of losses within ``budget`` bytes, or None.

    A multiple-choice knapsack problem, solved with SciPy's mixed-integer solver.  Items with equal options, such as the
    same matrix in layers of equal sensitivity, are one variable per option that counts them: the solver would search
    all their permutations.  Of equal items, the first ones get the options with the least loss.
    """
    if sum(min(size for _, size, _ in item) for item in items) > budget:
        return None
    need("scipy", how="'pip install scipy' is enough to choose widths.")
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array

    members: dict[tuple[Option, ...], list[int]] = {}
    for number, item in enumerate(items):
        members.setdefault(tuple(item), []).append(number)
    counts = np.array([len(equal) for equal in members.values()], float)
    of_kind = np.repeat(np.arange(len(members)), [len(kind) for kind in members])
    columns = np.arange(len(of_kind))
    each = csr_array((np.ones(len(columns)), (of_kind, columns)))
    _, sizes, losses = zip(*(option for kind in members for option in kind), strict=True)
    found = milp(
        losses,
        integrality=np.ones(len(columns)),
        bounds=(0, counts[of_kind]),
        constraints=[
            LinearConstraint(each, counts, counts),
            LinearConstraint([sizes], ub=budget),
        ],
        options={"mip_rel_gap": GAP},
    )
    chosen = [0] * len(items)
    taken = iter(np.rint(found.x).astype(int))
    for kind, equal in members.items():
        times = [next(taken) for _ in kind]
        order = sorted(range(len(kind)), key=lambda i: kind[i][2])
        picked = [index for index in order for _ in range(times[index])]
        for number, index in zip(equal, picked, strict=True):
            chosen[number] = index
    return chosen


def largest_that_fits(
    choose: Callable[[int], T],
    bytes_of: Callable[[T], int],
    lacking: Callable[[T], int | None],
    least: int,
    most: int,
) -> T | None:
    """Return the choice with the most bytes that the planner can place, or None.

    ``choose`` returns the best choice within a number of bytes; ``least`` bytes are enough for the smallest one.
    ``lacking`` returns None if a choice fits, else the missing bytes, or 0 if they are unknown, because matrices do not
    fill the memories exactly.
    """
    low, high, at = least, most, most
    found: T | None = None
    for number in range(ROUNDS):
        choice = choose(at)
        missing = lacking(choice)
        if missing is None:
            found, low = choice, at
        else:
            high = bytes_of(choice) - max(1, missing)
        if low >= high:
            break
        at = high if number < STEPPED else (low + high + 1) // 2
    return found
