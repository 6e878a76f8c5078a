"""JSON that somebody else may have written."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(text: str | bytes, *, integers: bool = False) -> Any:
    """What ``json.loads`` gives; raises ValueError for all that is no JSON, brackets without end included,
    and for numbers that are no ``integers`` where only those are allowed."""
    other = _refuse if integers else None
    try:
        return json.loads(text, parse_float=other, parse_constant=other)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that can be reckoned with: finite, and no integer beyond a float."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number} is no integer")
