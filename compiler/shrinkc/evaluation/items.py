"""Files of questions, and which of them are asked."""

from __future__ import annotations

import hashlib
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


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text: CRLF and CR become LF.  Raises BadData."""
    return decoded(read_bytes(path), path)


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


def spread(items: Sequence[Item], count: int | None, source: str) -> list[Item]:
    """``count`` items at equal distances over the data (None: all), which is sorted by source.

    Raises UsageError for more than there are, BadData where there is none.
    """
    if not items:
        raise BadData(
            f"{source} has no questions.", "give a file that has what the task asks about."
        )
    wanted = len(items) if count is None else count
    if not 1 <= wanted <= len(items):
        raise UsageError(
            f"{wanted} items are asked for, {source} has {len(items)}.",
            f"allowed: 1 to {len(items)}.",
        )
    return [items[i * len(items) // wanted] for i in range(wanted)]
