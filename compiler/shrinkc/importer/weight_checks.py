"""Checks and wording shared by the readers of weight files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# a message stays readable when every tensor of a large model is wrong
_MAX_LISTED = 40


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


def listing(faults: Sequence[str]) -> str:
    """Join ``faults`` into one text, cut after the first forty."""
    shown = "; ".join(faults[:_MAX_LISTED])
    return shown if len(faults) <= _MAX_LISTED else f"{shown}; and {len(faults) - _MAX_LISTED} more"
