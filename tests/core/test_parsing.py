"""JSON that somebody else may have written."""

from __future__ import annotations

import pytest

from shrinkc.core.parsing import is_number, parse_json


def test_what_is_json() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, b"\xff", "9" * 10_000])
def test_all_else_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("number", ["4.0", "1e3", "NaN", "-Infinity"])
def test_integers_alone(number: str) -> None:
    assert parse_json("[4]", integers=True) == [4]
    parse_json(number)
    with pytest.raises(ValueError, match="is not an integer"):
        parse_json(number, integers=True)


def test_what_can_be_reckoned_with() -> None:
    assert all(map(is_number, (0, -4, 2.5, 10**300)))
    others = (None, "4", [4], True, float("nan"), float("inf"), 10**400)
    assert not any(map(is_number, others))
