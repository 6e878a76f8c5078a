"""Choice of one bit-width per matrix with the least increase in loss within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shrinkc.checkpoints import need

GAP = 1e-6  # relative gap to the optimum at which the solver stops

Option = tuple[int, int, float]
"""Bit-width, bytes, increase in loss."""


def knapsack(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Return the index of one option per item with the least sum of losses within ``budget`` bytes, or None.

    A multiple-choice knapsack problem, solved with SciPy's mixed-integer solver.
    """
    if sum(min(size for _, size, _ in item) for item in items) > budget:
        return None
    need("scipy")
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import csr_array

    of_item = np.repeat(np.arange(len(items)), [len(item) for item in items])
    columns = np.arange(len(of_item))
    once = csr_array((np.ones(len(columns)), (of_item, columns)))
    _, sizes, losses = zip(*(option for item in items for option in item), strict=True)
    found = milp(
        losses,
        integrality=np.ones(len(columns)),
        bounds=(0, 1),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint([sizes], ub=budget)],
        options={"mip_rel_gap": GAP},
    )
    chosen = columns[found.x > 0.5]
    first = np.searchsorted(of_item, np.arange(len(items)))
    return [int(index) for index in chosen - first]
