"""Files of questions, and which of them are asked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.parsing import parse_json
from shrinkc.core.shell import printable

Item = TypeVar("Item")


def read_bytes(path: Path) -> bytes:
    """The content of ``path``; BadData when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(
            f"{path} cannot be read: {error.strerror}.", "check the path of the file."
        ) from error


def decoded(content: bytes, path: Path) -> str:
    """UTF-8 text with LF as line ends; BadData otherwise."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def file_facts(path: Path) -> dict[str, object]:
    """What identifies a file of data, without its place on this machine."""
    content = read_bytes(path)
    return {
        "file": printable(path.name),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank; BadData otherwise."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise BadData(f"{path}, line {number}: no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise BadData(f"{path}, line {number}: no JSON object.")
        yield number, row


def spread(items: Sequence[Item], count: int | None, path: Path) -> list[Item]:
    """``count`` items at equal distances over the file (None: all): files are sorted by source.

    Raises UsageError for more than there are.
    """
    wanted = len(items) if count is None else count
    if not 1 <= wanted <= len(items):
        raise UsageError(
            f"{wanted} items are asked for, {path} has {len(items)}.",
            f"allowed: 1 to {len(items)}.",
        )
    return [items[i * len(items) // wanted] for i in range(wanted)]


def proportion(correct: int, items: int) -> dict[str, object]:
    """Share of ``correct`` and its standard error sqrt(p (1 - p) / (n - 1)), None for one item."""
    share = correct / items
    error = math.sqrt(share * (1 - share) / (items - 1)) if items > 1 else None
    return {"accuracy": share, "standard_error": error}
