"""Makes ``runtime_c/platform/host/sc_unicode.h`` from the installed ``tokenizers``.

    python tests/helpers/unicode_tables.py > runtime_c/platform/host/sc_unicode.h

The library's regular expressions and its ``Digits`` know different versions of Unicode, so each is
asked about every code point.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import Regex
from tokenizers.pre_tokenizers import Digits, PreTokenizer, Split

_POINTS = [point for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000]
_BLOCK = 4096
_PER_LINE = 7


def table_file() -> str:
    """Return the text of the file."""
    classes = {
        "letter": (r"\p{L} of a regular expression", _matches(r"\p{L}")),
        "number": (r"\p{N} of a regular expression", _matches(r"\p{N}")),
        "space": (r"\s of a regular expression", _matches(r"\s")),
        "digit": ("what the pre-tokenizer Digits cuts out", _cut_out(Digits(True))),
    }
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0",
        f" * Classes of characters as in tokenizers {tokenizers.__version__}, first and last of each range.",
        " * Made by tests/helpers/unicode_tables.py. */",
        "/* clang-format off */",
    ]
    for name, (meaning, points) in classes.items():
        lines.append(f"static const uint32_t {name}_ranges[][2] = {{ /* {meaning} */")
        pairs = [f"{{0x{first:x}, 0x{last:x}}}," for first, last in _ranges(points)]
        for i in range(0, len(pairs), _PER_LINE):
            lines.append("    " + " ".join(pairs[i : i + _PER_LINE]))
        lines.append("};")
    return "\n".join([*lines, "/* clang-format on */", ""])


def _matches(pattern: str) -> list[int]:
    return _kept(Split(Regex(pattern), "removed", invert=True), "")


def _cut_out(step: PreTokenizer) -> list[int]:
    """The characters that ``step`` isolates even between letters."""
    return [point for point in _kept(step, "a") if point != ord("a")]


def _kept(step: PreTokenizer, between: str) -> list[int]:
    points: list[int] = []
    for start in range(0, len(_POINTS), _BLOCK):
        block = [chr(point) for point in _POINTS[start : start + _BLOCK]]
        text = between.join(["", *block, ""])
        pieces = [piece for piece, _ in step.pre_tokenize_str(text)]
        if between:
            # a character that is not isolated stays with its neighbours
            pieces = [piece for piece in pieces if len(piece) == 1]
        points += [ord(char) for piece in pieces for char in piece]
    return points


def _ranges(points: Iterable[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for point in points:
        if ranges and point == ranges[-1][1] + 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return ranges


if __name__ == "__main__":
    print(table_file(), end="")
