"""Weights so large that a result would leave the fixed point: found while lowering, refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from shrinkc.core.errors import BadWeights
from shrinkc.importer.model import Weight, dense
from shrinkc.importer.weight_checks import listing

# A result may have 2**34, which takes four bits less than an int32 has before the point: the device
# brings gates to Q16 for the sigmoid with a left shift of at most 20 (ir/rules.py: rule_shifts).
FRAC_MIN = -4


class WeightLimits:
    """Collects every tensor at fault, so that one refusal names them all."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[float, float]] = {}  # tensor -> (has, allowed)

    def check(
        self,
        frac: int,
        tensors: Mapping[str, Weight],
        before: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Whether a result with ``frac`` fraction bits is within the limit; else notes why not.

        ``tensors`` by name are the matrices whose products make the result; ``before`` are the
        gains, or the first half of an adapter, that multiply their inputs.
        """
        if frac >= FRAC_MIN:
            return True
        sizes = {name: largest(tensor) for name, tensor in tensors.items()}
        others = {name: largest(tensor) for name, tensor in (before or {}).items()}
        size, other = max(sizes.values()), max(others.values(), default=1.0)
        # Each bit that lacks halves what the product of both may be.  Where one alone is more than
        # its share, it is at fault; where both are, either.
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
        """Raise BadWeights if there were any."""
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
    """The largest magnitude."""
    values = dense(weight)
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _rounded_down(value: float) -> str:
    """Two digits that are not more than ``value``."""
    text = f"{value:.1e}"
    if float(text) > value:
        text = f"{value - 0.05 * 10.0 ** math.floor(math.log10(value)):.1e}"
    return f"{float(text):g}"
