"""Journal of finished pieces of long work, so that it can resume after an interruption."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadData, RunChanged
from shrinkc.core.fingerprint import Fingerprint, differences
from shrinkc.core.output import locked_file, output_error
from shrinkc.core.parsing import parse_json

_MAGIC = b"shrinkc-journal 1\n"


class Journal:
    """File with a fingerprint of the work and a line per finished piece.

    Each line begins with its checksum.  Damaged lines, such as the last one of a killed process, are ignored and
    counted in ``damaged``; their work must be repeated.  ``records`` are the intact ones in order.  ``empty``: the
    file has no records now.

    Creates ``path`` if it does not exist.  Raises RunChanged if the file was begun with another ``made_from``,
    BadData if it is not a journal, OutputError if it cannot be written or another process uses it.
    """

    def __init__(self, path: Path, made_from: Fingerprint) -> None:
        self.path = path
        self._file = locked_file(
            path, f"another shrinkc is working with {path}.", "wait for it, or choose another file."
        )
        self._full = False
        try:
            self.records, self.damaged = self._read(json.loads(json.dumps(made_from)))
        except BaseException:
            os.close(self._file)
            raise
        self.empty = not self.records

    def _read(self, made_from: Fingerprint) -> tuple[list[dict[str, Any]], int]:
        content = self.path.read_bytes()
        if not content.startswith(_MAGIC) and not _MAGIC.startswith(content):
            raise BadData(
                f"{self.path} is not a file of earlier results.",
                "give such a file, or a name that does not exist yet.",
            )
        lines = content[len(_MAGIC) :].split(b"\n")
        found = [value for value in map(_parsed, lines) if value is not None]
        if not found or "made_from" not in found[0]:
            os.ftruncate(self._file, 0)  # new, or its fingerprint is damaged
            self._write(_MAGIC + _line({"made_from": made_from}))
            return [], sum(map(bool, lines))
        changed = differences(found[0]["made_from"], made_from)
        if changed:
            raise RunChanged(
                f"{self.path} belongs to another run: {'; '.join(changed)}.",
                "undo this change to continue, delete the file to start over, or choose another file.",
            )
        if lines[-1]:
            self._write(b"\n")  # ends a truncated last line, so that the next line is readable
        return found[1:], sum(map(bool, lines)) - len(found)

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record at once.  After an OutputError the file is unchanged, and further records are dropped
        silently."""
        if not self._full:
            self._full = True
            self._write(_line(record))
            self._full = self.empty = False

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a full disk may accept a part
                written += os.write(self._file, line[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise output_error(self.path, error) from error


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, allow_nan=False).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    with suppress(ValueError):
        value = parse_json(text)
        return value if isinstance(value, dict) else None
    return None
