"""Formatting of names and command lines, so that users can paste them into a shell."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

# os.fsdecode maps each byte of a file name that is not UTF-8 to one of these characters.
_BYTE = re.compile("[\udc80-\udcff]")
_NOT_PLAIN = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")


def is_text(value: str) -> bool:
    """Return whether ``value`` can be encoded in UTF-8; an argument of a command line may not."""
    return _BYTE.search(value) is None


def printable(text: str) -> str:
    """Return ``text`` with bytes that are not UTF-8 written as ``\\xff``, like ``ls``."""
    return _BYTE.sub(_escape, text)


def name_of(path: Path) -> str:
    """Return the last part of ``path`` with links resolved, printable as UTF-8."""
    # not Path.resolve, which fails for a link to itself
    return printable(os.path.basename(os.path.realpath(path)))


def quoted(*words: str | Path) -> str:
    """Return a shell command line of these words, always on one line.

    ``quoted("make", Path("a b"))`` is ``make 'a b'``.  Control characters and bytes that are not
    UTF-8 are written as in ``$'\\n'``.
    """
    return " ".join(_quote(str(word)) for word in words)


def _quote(word: str) -> str:
    if _NOT_PLAIN.search(word) is None:
        return shlex.quote(word)
    inner = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _NOT_PLAIN.sub(_escape, inner) + "'"


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]) & 0xFF:02x}"
