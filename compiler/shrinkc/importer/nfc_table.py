"""Tables of the normalisation form NFC (https://unicode.org/reports/tr15), for the C encoder.

The library tokenizers knows an older version of Unicode than Python.  So the tables have the characters that the
library changes or sorts.  All versions of Unicode agree on the form and the class of a character that they have.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

from tokenizers import normalizers

GROWTH = 3
"""NFC, and each step on the way to it, makes a character at most this many times as long in UTF-8."""
CLASS = 0xFFFFFF
_SEPARATOR = "\n"  # it neither joins nor moves


@cache
def nfc_tables() -> tuple[bytes, bytes]:
    """Return (characters, pairs).

    Characters are sorted by code.  Each has three numbers of 24 bits.  A character that decomposes has its code and
    the two codes of its form; the second may be 0.  A mark has its code, its combining class (1 to 254) and
    :data:`CLASS`.  Pairs are 16-bit indices of the characters that two codes compose to, sorted by these codes.
    Hangul syllables are computed instead.
    """
    written = {p: unicodedata.decomposition(chr(p)) for p in range(0x80, 0x110000)}
    points = [p for p, form in written.items() if form and form[0] != "<"]  # <compat> is of NFKC
    decomposed = dict(zip(points, _each(normalizers.NFD(), map(chr, points)), strict=True))
    composed = dict(zip(points, _each(normalizers.NFC(), map(chr, points)), strict=True))
    forms: dict[int, tuple[int, int]] = {}
    joined: list[tuple[int, int, int]] = []
    for point in points:
        if decomposed[point] == chr(point):
            continue
        first, *rest = (int(code, 16) for code in written[point].split())
        forms[point] = first, rest[0] if rest else 0
        if composed[point] == chr(point):
            joined.append((first, rest[0], point))
    for point in _marks():
        forms.setdefault(point, (unicodedata.combining(chr(point)), CLASS))
    ordered = sorted(forms)
    index = {point: i for i, point in enumerate(ordered)}
    characters = b"".join(
        number.to_bytes(3, "little") for point in ordered for number in (point, *forms[point])
    )
    return characters, b"".join(index[p].to_bytes(2, "little") for _, _, p in sorted(joined))


def _marks() -> list[int]:
    """Return the characters that the library sorts by their combining class."""
    marks = [p for p in range(0x80, 0x110000) if unicodedata.combining(chr(p))]
    # each beside a mark of another class, in the wrong order
    wrong = [
        chr(p) + "\u0315" if unicodedata.combining(chr(p)) > 232 else "\u0345" + chr(p)
        for p in marks
    ]
    sorted_ = _each(normalizers.NFD(), wrong)
    return [p for p, before, after in zip(marks, wrong, sorted_, strict=True) if before != after]


def _each(normalizer: Any, texts: Any) -> list[str]:
    """Normalise all texts in one call."""
    found: list[str] = normalizer.normalize_str(_SEPARATOR.join(texts)).split(_SEPARATOR)
    return found
