"""Choice of one option per matrix with the least increase in loss within a number of bytes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from shrinkc.checkpoints import need

GAP = 1e-6  # relative gap to the optimum at which the solver stops
LARGEST_LOSS, LEAST_LOSS = 1e3, 1e-300  # losses are scaled so that the largest is 1000
ROUNDS = 24  # attempts to fill the memories
CLOSE = 10  # that share of the bytes, 2**-CLOSE, may stay free

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
    losses = np.array([loss for kind in members for _, _, loss in kind])
    # bytes beyond each item's fewest, in the largest unit that is exact: the solver's tolerances are absolute
    fewest = [min(size for _, size, _ in kind) for kind in members]
    sizes = np.array(
        [size - low for kind, low in zip(members, fewest, strict=True) for _, size, _ in kind]
    )
    unit = max(1, int(np.gcd.reduce(sizes)))
    left = budget - sum(min(size for _, size, _ in item) for item in items)
    with nothing_printed():
        found = milp(
            losses * (LARGEST_LOSS / max(losses.max(), LEAST_LOSS)),
            integrality=np.ones(len(columns)),
            bounds=(0, counts[of_kind]),
            constraints=[
                LinearConstraint(each, counts, counts),
                LinearConstraint([sizes // unit], ub=left // unit),
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


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Discard what the solver's C++ code prints on standard output: SciPy 1.17 leaves lines of a debugger there, which
    would be in the middle of an answer in JSON."""
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda _: None
    try:
        flush(None)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
            flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def largest_that_fits(
    choose: Callable[[int], T],
    bytes_of: Callable[[T], int],
    lacking: Callable[[T], int | None],
    least: int,
    most: int,
) -> T | None:
    """Return a choice of nearly the most bytes that the planner can place, or None.

    ``choose`` returns the best choice within a number of bytes; ``least`` bytes are enough for the smallest one.
    ``lacking`` returns None if a choice fits, else the missing bytes, or 0 if they are unknown, because matrices do not
    fill the memories exactly.  Each failure after the first doubles the step down; then the gap is bisected.
    """
    low, high, at = least, most, most
    found: T | None = None
    step = 0
    for number in range(ROUNDS):
        choice = choose(at)
        missing = lacking(choice)
        if missing is None:
            found, low = choice, at
        elif at <= least:
            break
        else:
            high = min(at, bytes_of(choice)) - max(1, missing)
        if found is not None:
            if high - low <= high >> CLOSE:
                break
            at = (low + high + 1) // 2
        else:
            if number:
                step = max(2 * step, missing or 0, high >> CLOSE, 1)
            at = max(least, high - step)
    return found
