"""Mutations of JSON and TOML: of the values, which keep the text well-formed, and of the text."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from random import Random
from typing import Any

from .blind import FLOATS, INTEGERS, Mutator, blind

Place = tuple[Any, Any]
"""A container and the key or index in it."""

TEXTS = (
    "", " ", "\0", "a" * 5000, "\ud800", "\U0001f600", "../../../etc/passwd", "/dev/null", "~nobody/x", "nan", "1e999",
    "true", "-1", "\u202e", "{{ x }}", "{% for", "(", "[a-", "\\", "*", "llama", "float32", "\n",
)  # fmt: skip
_TWICE = "\0twice"  # of a key that occurs twice in the text
_DEEP = 3000


def places(tree: Any) -> Iterator[Place]:
    """Every value within ``tree``."""
    found = [tree]
    while found:
        here = found.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here))
        for key in keys:
            yield here, key
            if isinstance(here[key], (dict, list)):
                found.append(here[key])


def odd_value(rng: Random, old: Any) -> Any:
    """Something that is not ``old``: of its type mostly, at some limit, or of another type."""
    kind = rng.randrange(10)
    if isinstance(old, bool) and kind < 5:
        return not old
    if isinstance(old, int) and abs(old) < 1 << 64 and kind < 6:
        near = (old + 1, old - 1, -old, old * 2, old // 2, old * 1000, float(old), str(old))
        return rng.choice((*near, rng.choice(INTEGERS), 10**400))
    if isinstance(old, float) and kind < 6:
        return rng.choice(
            (-old, old * 1e6, old * 1e-6, int(old) if abs(old) < 1e9 else 0, rng.choice(FLOATS))
        )
    if isinstance(old, str) and kind < 6:
        return rng.choice(
            (old[:-1], old * 2, old.upper(), f" {old}", f"{old}\0", rng.choice(TEXTS))
        )
    if isinstance(old, list) and kind < 6:
        return rng.choice((old[:-1], old[1:], old * 2, old[::-1], [old], [*old, None], []))
    if isinstance(old, dict) and kind < 6:
        return rng.choice(({}, {"": old}, [old], list(old), {**old, "more": 1}))
    return rng.choice((
        None, True, False, [], {}, [[]], {"a": {}}, rng.choice(INTEGERS), rng.choice(FLOATS), rng.choice(TEXTS),
    ))  # fmt: skip


def mutate_tree(rng: Random, tree: Any) -> str:
    """Changes one thing within ``tree``, a dict or list; says what."""
    found = list(places(tree))
    if not found:
        return "nothing to change"
    # values that are few and decide much are near the root
    here, key = min(rng.sample(found, min(2, len(found))), key=lambda p: len(str(p[0])))
    if rng.random() < 0.5:
        here, key = rng.choice(found)
    shown = f"{key!r}"[:60]
    how = rng.randrange(10)
    if how == 0:
        del here[key]
        return f"{shown} is missing"
    if how == 1 and isinstance(here, dict):
        here[f"{key}{_TWICE}"] = odd_value(rng, here[key]) if rng.random() < 0.5 else here[key]
        return f"{shown} comes twice"
    if how == 2 and isinstance(here, dict):
        other = rng.choice((*TEXTS[:8], f"{key}x", "quantization_config", "__metadata__"))
        here[other] = here.pop(key)
        return f"{shown} is called {other[:40]!r}"
    if how == 3:
        there, other = rng.choice(found)
        try:
            value = json.loads(json.dumps(there[other]))
        except (KeyError, IndexError):
            value = None
        here[key] = value
        return f"{shown} is the value of {other!r}"[:120]
    if how == 4 and rng.random() < 0.1:
        deep: Any = here[key]
        for _ in range(rng.choice((30, 400))):
            deep = {"a": deep} if rng.random() < 0.5 else [deep]
        here[key] = deep
        return f"{shown} lies deep"
    here[key] = odd_value(rng, here[key])
    return f"{shown} is {here[key]!r}"[:120]


def dump_json(tree: Any) -> bytes:
    """The text of a mutated tree."""
    text = json.dumps(tree)
    return text.replace(json.dumps(_TWICE)[1:-1], "").encode("utf-8")


def json_values(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A value of a JSON file is another, missing, twice, or elsewhere; otherwise its text is changed."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return text(rng, data)
    if not isinstance(tree, (dict, list)):
        return text(rng, data)
    said = mutate_tree(rng, tree)
    try:
        return dump_json(tree), said
    except RecursionError:  # lies too deep to be written
        return text(rng, data)


def toml_values(rng: Random, data: bytes) -> tuple[bytes, str]:
    """The same of a TOML file."""
    try:
        tree = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return text(rng, data)
    said = mutate_tree(rng, tree)
    try:
        return _toml(tree), said
    except RecursionError:  # lies too deep to be written
        return text(rng, data)


def _toml(tree: dict[str, Any]) -> bytes:
    loose = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    lines = [f"{_key(k)} = {_toml_value(v)}" for k, v in loose.items()]
    for name, content in tree.items():
        if isinstance(content, dict):
            lines += [
                f"[{_key(name)}]",
                *(f"{_key(k)} = {_toml_value(v)}" for k, v in content.items()),
            ]
    return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


def _key(name: str) -> str:
    return json.dumps(name.replace(_TWICE, ""), ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if value is None:
        return '"none"'
    return json.dumps(value, ensure_ascii=False)


def text(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Another encoding, other brackets, nothing at all, something endless."""
    whole = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"1e999",
        "a string": b'"x"',
        "an empty object": b"{}",
        "brackets without end": b"[" * _DEEP * 40,
        "a deep list": b"[" * _DEEP + b"]" * _DEEP,
        "deep objects": b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
        "a long number": b'{"a": ' + b"9" * 10000 + b"}",
        "behind a byte order mark": b"\xef\xbb\xbf" + data,
        "UTF-16": data.decode("utf-8", "replace").encode("utf-16"),
        "Latin-1": data.decode("utf-8", "replace").encode("latin-1", "replace") + b"\xe9",
        "twice": data + data,
        "with a comma more": data.replace(b"}", b",}", 1),
        "with NaN": data.replace(b"1", b"NaN", 1),
        "with half a character": data.replace(b'"', b'"\\ud800', 1),
        "with a comment": data.replace(b"{", b"{ // x\n", 1),
    }
    name = rng.choice((*whole, "blind"))
    return blind(rng, data) if name == "blind" else (whole[name], f"the text is {name}")


JSON: tuple[Mutator, ...] = (json_values, json_values, json_values, text)
TOML: tuple[Mutator, ...] = (toml_values, toml_values, toml_values, text)
