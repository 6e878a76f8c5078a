"""JSON that somebody else may have written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints


def parse_json(text: str | bytes, *, integers: bool = False) -> Any:
    """What ``json.loads`` gives; raises ValueError for all that is no JSON, brackets without end included,
    and for numbers that are no ``integers`` where only those are allowed."""
    other = _refuse if integers else None
    try:
        return json.loads(text, parse_float=other, parse_constant=other)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def json_object(path: Path) -> dict[str, Any]:
    """The object that a file holds; an empty one where it holds none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that can be reckoned with: finite, and no integer beyond a float."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def as_number(value: object) -> float:
    """A number that can be reckoned with; ValueError for what is none."""
    if not is_number(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return value  # type: ignore[return-value]


def as_text(value: object) -> str:
    """ValueError for what is no text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def check_fields(thing: object) -> None:
    """TypeError where a field of a dataclass is of another type than it says, or a number that cannot be reckoned
    with; fields of other types than int, float, str, bool and None are not looked at."""
    for name, hint in get_type_hints(type(thing)).items():
        kinds = {*get_args(hint)} if isinstance(hint, UnionType) else {hint}
        value = getattr(thing, name)
        if not kinds <= {int, float, str, bool, type(None)}:
            continue
        allowed = kinds | ({int} if float in kinds else set())
        if type(value) not in allowed or (type(value) in (int, float) and not is_number(value)):
            raise TypeError(f"{name} is {value!r:.40}")


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number} is not an integer")
