"""Checks and messages shared by the readers of weight files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# keeps a message readable even if every tensor of a large model is wrong
_MAX_LISTED = 16
_EXAMPLES = 3


def non_finite(name: str, values: NDArray[np.float32]) -> str | None:
    """Return a description of NaN and infinity in ``values`` (tensor, count, first index); None if all are finite."""
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
    """Join up to sixteen ``items``, each formatted by ``one``; for more, return their number and the first three.

    ``many`` names them: "210 tensors are Q4_K, e.g. a; b; c".
    """
    if len(items) <= _MAX_LISTED:
        return "; ".join(one.format(item) for item in items)
    return f"{len(items)} {many}, e.g. {'; '.join(items[:_EXAMPLES])}"
