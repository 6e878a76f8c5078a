"""Refusal of weights so large that a result would overflow its fixed-point format."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from shrinkc.core.errors import BadWeights
from shrinkc.importer.model import Weight, dense
from shrinkc.importer.weight_checks import listing

# Results may reach 2**34, so 4 integer bits lie above the int32.  More is not possible: the device shifts
# gates left by at most 20 to get Q16 for the sigmoid (rule_shifts in ir/ops/silumul.py).
FRAC_MIN = -4


class WeightLimits:
    """Collection of all tensors with too large values, so that one refusal names them all."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, float]] = {}  # tensor -> (has, allowed)

    def check(
        self,
        frac: int,
        tensors: Mapping[str, Weight],
        before: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Return whether a result with ``frac`` fraction bits is within the limit; record the tensors if not.

        ``tensors`` maps the names of the matrices that compute the result to their weights.  ``before`` maps
        the RMSNorm weights, or the first half of an adapter, that multiply the inputs.
        """
        if frac >= FRAC_MIN:
            return True
        sizes = {name: largest(tensor) for name, tensor in tensors.items()}
        others = {name: largest(tensor) for name, tensor in (before or {}).items()}
        size, other = max(sizes.values()), max(others.values(), default=1.0)
        # Each missing bit halves the largest allowed product of both sizes.  A tensor is reported if its
        # size exceeds its share of the product; if both exceed it, both are reported.
        product = size * other * 2.0 ** (frac - FRAC_MIN)
        share = math.sqrt(product) if others else 0.0
        for found, factor in ((sizes, other), (others, size)):
            allowed = max(product / factor, share)
            for name, value in found.items():
                if value > allowed:
                    _, least = self._faults.get(name, (value, allowed))
                    self._faults[name] = value, min(allowed, least)
        return False

    def refuse(self, source: str) -> None:
        """Raise BadWeights that names every recorded tensor; do nothing if there is none."""
        faults = [
            f"{name} holds values up to {value:.3g}, at most {_rounded_down(allowed)} fits"
            for name, (value, allowed) in self._faults.items()
        ]
        if faults:
            raise BadWeights(
                f"{source}: results could leave the integer model's range of 2**34: "
                f"{listing(faults, 'tensors are too large')}.",
                "the checkpoint is damaged or training diverged.",
            )


def largest(weight: Weight) -> float:
    """Return the largest magnitude of a weight."""
    values = dense(weight)
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _rounded_down(value: float) -> str:
    """Format ``value`` rounded down to two digits."""
    text = f"{value:.1e}"
    if float(text) > value:
        text = f"{value - 0.05 * 10.0 ** math.floor(math.log10(value)):.1e}"
    return f"{float(text):g}"
