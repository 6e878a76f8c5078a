"""Reading of evaluation data, and the choice of evenly spaced items."""

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
    """Return the content of ``path``.  Raises BadData if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(
            f"{path} cannot be read: {error.strerror}.", "check the path of the file."
        ) from error


def decoded(content: bytes, path: Path) -> str:
    """Return UTF-8 ``content`` as text; CRLF and CR become LF.  Raises BadData."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text; CRLF and CR become LF.  Raises BadData."""
    return decoded(read_bytes(path), path)


def file_facts(path: Path) -> dict[str, object]:
    """Return name, size and SHA-256 of a data file; no path, so that reports of two machines are equal."""
    content = read_bytes(path)
    return {
        "file": printable(path.name),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def json_lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of each line that is not blank.  Raises BadData."""
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


def evenly_spaced(items: Sequence[Item], count: int | None, source: str) -> list[Item]:
    """Return ``count`` items (None: all) at equal distances, since data sets are often sorted by origin.

    Raises UsageError if there are fewer items, BadData if there are none.
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
