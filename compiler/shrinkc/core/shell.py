"""Names and command lines as they are shown: what is printed can be pasted into a shell."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

# A byte of a file name that is not UTF-8 is one of these in a str (os.fsdecode).
_BYTE = re.compile("[\udc80-\udcff]")
_NOT_PLAIN = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")


def is_text(value: str) -> bool:
    """Whether ``value`` can be written as UTF-8: a word of the command line need not be."""
    return _BYTE.search(value) is None


def printable(text: str) -> str:
    """``text`` with bytes that are not UTF-8 written as ``\\xff``, as ``ls`` shows them."""
    return _BYTE.sub(_escape, text)


def name_of(path: Path) -> str:
    """The last part of ``path``, wherever a link leads, as it may stand in a text file."""
    # unlike a Path's own, which does not end at a link that leads to itself
    return printable(os.path.basename(os.path.realpath(path)))


def quoted(*words: str | Path) -> str:
    """A command line of these words, for the shell and on one line whatever is in them.

    ``quoted("make", Path("a b"))`` is ``make 'a b'``; control characters and bytes that are not
    UTF-8 come in the form ``$'\\n'``.
    """
    return " ".join(_quote(str(word)) for word in words)


def _quote(word: str) -> str:
    if _NOT_PLAIN.search(word) is None:
        return shlex.quote(word)
    inner = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _NOT_PLAIN.sub(_escape, inner) + "'"


def _escape(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]) & 0xFF:02x}"
