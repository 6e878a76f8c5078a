"""The refusals of a recipe's values: the key, the value, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shrinkc.core.errors import BadRecipe


def between(key: str, value: float, low: float, high: float = math.inf) -> None:
    """BadRecipe unless low <= value <= high."""
    if not low <= value <= high:
        allowed = f"{low} and more" if high == math.inf else f"{low} to {high}"
        raise BadRecipe(f"{key} = {value}; {allowed} is allowed.", key=key)


def one_of(key: str, value: object, allowed: Sequence[object]) -> None:
    """BadRecipe unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise BadRecipe(f"{key} = {value!r}; {names} are allowed.", key=key)


def exactly_one(**values: object) -> None:
    """BadRecipe unless one and only one of the keys is given (None and () are not given)."""
    given = [key for key, value in values.items() if value is not None and value != ()]
    if len(given) != 1:
        names = ", ".join(values)
        have = " and ".join(given) if given else "none of them"
        raise BadRecipe(f"exactly one of {names} is needed; {have} is given.")
