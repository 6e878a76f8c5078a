"""Checks of a recipe's settings, declared as annotations of dataclass fields.

``Annotated[int, Between(1, 8)]`` is a whole number from 1 to 8.  Every check after the type is called with the key and
the value, and raises BadRecipe.  Its ``str()`` describes the allowed values.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from shrinkc.core.errors import BadRecipe

_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class Between:
    """``low`` <= value <= ``high``."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"{self.low} and more" if self.high == math.inf else f"{self.low} to {self.high}"

    def __call__(self, key: str, value: float) -> None:
        if not self.low <= value <= self.high:
            raise BadRecipe(f"{key} = {value}; {self} is allowed.")


class OneOf:
    """One of the given values."""

    def __init__(self, *allowed: object) -> None:
        self.allowed = allowed

    def __str__(self) -> str:
        return ", ".join(map(str, self.allowed))

    def __call__(self, key: str, value: object) -> None:
        if value not in self.allowed:
            raise BadRecipe(f"{key} = {value!r}; {self} are allowed.")


class NotEmpty:
    """A list or table with at least one value."""

    def __str__(self) -> str:
        return "at least one value"

    def __call__(self, key: str, value: Sized) -> None:
        if not value:
            raise BadRecipe(f"{key} is empty; {self} is needed.")


@dataclass(frozen=True)
class MultipleOf:
    """A multiple of ``of``."""

    of: int

    def __str__(self) -> str:
        return f"a multiple of {self.of}"

    def __call__(self, key: str, value: int) -> None:
        if value % self.of:
            raise BadRecipe(f"{key} = {value}; {self} is allowed.")


Dtype = Annotated[str, OneOf("bfloat16", "float32")]
Share = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class Checked:
    """Settings that are checked against their annotations when they are made.  Raises BadRecipe."""

    def __post_init__(self) -> None:
        problems = []
        cls: Any = type(self)
        for key, hint in hints_of(cls).items():
            try:
                converted(key, hint, getattr(self, key))
            except BadRecipe as error:
                problems.append(error.message.rstrip("."))
        if problems:
            raise BadRecipe("; ".join(problems) + ".")


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Return the keys of a settings class with their types and checks."""
    return get_type_hints(cls, include_extras=True)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the most similar known word as a question in brackets, or "" if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def converted_key(table: str, hints: Mapping[str, Any], key: str, value: Any) -> Any:
    """Check and convert the value of a key by ``hints`` of :func:`hints_of`; ``table`` precedes the key in messages."""
    if key not in hints:
        raise BadRecipe(
            f"{table}{key} = {value!r}: there is no such key{did_you_mean(key, hints)}.",
            f"keys of {table.rstrip(' .')}: {', '.join(hints)}.",
        )
    return converted(f"{table}{key}", hints[key], value)


def converted(where: str, hint: Any, value: Any) -> Any:
    """Convert a TOML value to the type ``hint``; raise BadRecipe if it has another type or is not allowed."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = converted(where, arguments[0], value)
        for check in arguments[1:]:
            check(where, value)
        return value
    if origin in (Union, types.UnionType):
        return _one_type_of(where, arguments, value)
    if origin is tuple:
        # a single value means a list with one value
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(converted(where, arguments[0], item) for item in items)
    if origin is Mapping or is_typeddict(hint):
        if not isinstance(value, Mapping):
            raise BadRecipe(f"{where} = {value!r}; a table is allowed.")
        if origin is Mapping:
            return {k: converted(f'{where}."{k}"', arguments[1], v) for k, v in value.items()}
        return {k: converted_key(f"{where}.", hints_of(hint), k, v) for k, v in value.items()}
    if isinstance(value, (int, float)) and not abs(value) < 1 << 63:
        raise BadRecipe(f"{where} = {value}; numbers of a recipe are finite and less than 2^63.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in _TYPES and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise _refusal(where, value, [hint])
    return value


def _one_type_of(where: str, options: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in options:
        return None
    kinds = [option for option in options if option is not type(None)]
    # for "value or list of values", report the problem with a value, not that it is no list
    alike = [kind for kind in kinds if _is_list(kind) == isinstance(value, list | tuple)]
    if len(alike) == 1:
        return converted(where, alike[0], value)
    for kind in kinds:
        try:
            return converted(where, kind, value)
        except BadRecipe:
            continue
    raise _refusal(where, value, kinds)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_list(hint: Any) -> bool:
    return get_origin(_bare(hint)) is tuple


def _refusal(where: str, value: Any, kinds: list[Any]) -> BadRecipe:
    return BadRecipe(f"{where} = {value!r}; {' or '.join(map(_type_name, kinds))} is allowed.")


def _type_name(hint: Any) -> str:
    if _is_list(hint):
        return f"a list ({_type_name(get_args(_bare(hint))[0])} each)"
    return _TYPES.get(_bare(hint), str(hint))


def exactly_one(**values: object) -> None:
    """Raise BadRecipe unless exactly one of the keys is given (None and () mean not given)."""
    given = [key for key, value in values.items() if value is not None and value != ()]
    if len(given) != 1:
        names = ", ".join(values)
        have = " and ".join(given) if given else "none of them"
        raise BadRecipe(f"exactly one of {names} is needed; {have} is given.")
