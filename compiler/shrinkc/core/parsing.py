"""Parsing of untrusted JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints


def parse_json(text: str | bytes, *, integers: bool = False) -> Any:
    """Return ``json.loads(text)``.  Raises ValueError for invalid or too deeply nested JSON, and with ``integers``
    for numbers that are not integers."""
    other = _refuse if integers else None
    try:
        return json.loads(text, parse_float=other, parse_constant=other)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty dict if there is none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number with a finite float value."""
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def as_number(value: object) -> float:
    """Return ``value``.  Raises ValueError unless it is a number with a finite float value."""
    if not is_number(value):
        raise ValueError(f"{value!r:.40} is not a number")
    return value  # type: ignore[return-value]


def as_text(value: object) -> str:
    """Return ``value``.  Raises ValueError unless it is a string."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def check_fields(thing: object) -> None:
    """Raise TypeError if a field of a dataclass has another type than annotated, or no finite float value.  Only
    fields annotated as int, float, str, bool or None are checked."""
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
