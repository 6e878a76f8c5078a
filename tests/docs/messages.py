"""The messages of all refusals, read from the source: what docs/troubleshooting.md is held against."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from shrinkc.core import errors

PACKAGE = Path(errors.__file__).resolve().parents[1]
VALUE = "…"  # stands for what a message says of the case at hand


def codes() -> dict[str, int]:
    """Class of an error -> its exit code."""
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {n: v.exit_code for n, v in found.items() if issubclass(v, errors.ShrinkcError)}


def text_of(node: ast.expr) -> list[str]:
    """What a string expression may say, VALUE for what is not written there; [] for no string."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = [str(p.value) if isinstance(p, ast.Constant) else VALUE for p in node.values]
        return ["".join(parts)]
    if isinstance(node, ast.IfExp):
        return text_of(node.body) + text_of(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left) or [VALUE], text_of(node.right) or [VALUE]
        return [a + b for a in left for b in right]
    return []


def messages(package: Path = PACKAGE) -> Iterator[tuple[str, int | None]]:
    """(text, exit code) of every text in the source; no code for one that is not the first argument of
    an error, because it becomes part of a message elsewhere."""
    known = codes()
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        said: set[int] = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in known:
                texts = text_of(node.args[0])
                said.update(id(part) for part in ast.walk(node.args[0]))
                yield from ((text, known[name]) for text in texts)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in said:
                yield from ((text, None) for text in text_of(node))


def joined(text: str) -> str:
    """Without line ends, runs of blanks, and runs of values."""
    words = " ".join(text.split())
    while VALUE + VALUE in words:
        words = words.replace(VALUE + VALUE, VALUE)
    return words
