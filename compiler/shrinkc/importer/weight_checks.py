"""Checks and wording shared by the readers of weight files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# a message stays readable when every tensor of a large model is wrong
_MAX_LISTED = 16
_EXAMPLES = 3


def non_finite(name: str, values: NDArray[np.float32]) -> str | None:
    """Describe NaN and infinity in ``values``: tensor, count and first index; None if clean."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    bad = np.flatnonzero(~finite)
    first = [int(i) for i in np.unravel_index(bad[0], values.shape)]
    return (
        f"{name} holds {bad.size} NaN or infinite value{'s' if bad.size > 1 else ''} "
        f"of {values.size}, the first at {first}"
    )


def listing(items: Sequence[str], many: str = "faults", one: str = "{}") -> str:
    """Join up to sixteen ``items``, each put into ``one``; of more, their number and the first three.

    ``many`` says what they are: "210 tensors are Q4_K, e.g. a; b; c".
    """
    if len(items) <= _MAX_LISTED:
        return "; ".join(one.format(item) for item in items)
    return f"{len(items)} {many}, e.g. {'; '.join(items[:_EXAMPLES])}"
