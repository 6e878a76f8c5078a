"""Leaves out of comments what they say about names that a compiled directory does not have.

The runtime's comments refer to functions, macros and files for every model. A sentence, or a remark in brackets, is
left out if it names one that the directory of a model lacks.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping

from shrinkc.codegen.unused import COMMENT, QUOTED, WORD

CITED = re.compile(
    r"(?<![\w./<-])(?:(?P<file>\w+(?:<\w+>)?\.[chS])\b|(?P<function>\w+)\(\)|(?P<name>(?:SC|sc|LLM|llm)_\w+(?![\w./])))(?P<any>[*<])?"
)
BRACKETS = re.compile(r"\s*\((?:[^()]|\(\))*\)")
SENTENCE = re.compile(r"(?<=[^\s.][.;])\s+")
WIDTH = 110


def without_missing_names(texts: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """``texts``: path -> C source, all sources of a directory; ``others``: its build files, which define names too."""
    names = {path.rsplit("/", 1)[-1] for path in texts}
    for text in (*texts.values(), *others):
        names.update(WORD.findall(COMMENT.sub(" ", text)))
    return {path: _with_comments(text, names) for path, text in texts.items()}


def missing_names(comment: str, names: Collection[str]) -> list[str]:
    """The functions, macros and files in a comment that are not in ``names``.

    A function of ``numerics`` or of a Python file is the compiler's.  ``SC_ON_*`` and ``sc_dot_w<bits>.h`` are there if
    a name begins that way.
    """
    found = []
    for sentence in SENTENCE.split(comment):
        for cited in CITED.finditer(sentence):
            name = cited["file"] or cited["function"] or cited["name"]
            if (
                cited["function"]
                and not name.startswith("sc_")
                and re.search(r"\.py\b|\bnumerics\b", sentence)
            ):
                continue
            start = name.split("<")[0]
            begins = bool(cited["any"]) or start != name
            if name not in names and not (begins and any(n.startswith(start) for n in names)):
                found.append(name)
    return found


def _with_comments(text: str, names: Collection[str]) -> str:
    parts, at = [], 0
    for found in re.finditer(f"{COMMENT.pattern}|{QUOTED.pattern}", text, re.DOTALL):
        if not found[0].startswith("/*") or not missing_names(_plain(found[0]), names):
            continue
        start, end = found.span()
        line_start = text.rfind("\n", 0, start) + 1
        line_end = text.find("\n", end) + 1 or len(text)
        continued = text[:line_end].endswith("\\\n")
        new = "" if continued else _rewritten(found[0], start - line_start, names)
        if new == found[0] or continued:
            continue
        alone = not text[line_start:start].strip() and not text[end:line_end].strip()
        if not new and alone:
            start, end = line_start, line_end
        elif not new:
            start = len(text[:start].rstrip(" "))
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])


def _plain(comment: str) -> str:
    """The words of a comment in one line."""
    return " ".join(re.sub(r"(?m)^\s*\*(?!/)", " ", comment[2:-2]).split())


def _rewritten(comment: str, column: int, names: Collection[str]) -> str:
    """``comment``, which begins at ``column``, without what it says about missing names; "" if nothing is left."""
    lines = [re.sub(r"^\s*\*? ?", "", line) for line in comment[2:-2].rstrip().split("\n")]
    paragraphs: list[list[str]] = [[]]
    for line in lines:  # an indented line, or an empty one, is not part of a paragraph
        if not line.strip() or line.startswith((" ", "SPDX")):
            paragraphs += [[line], []]
        else:
            paragraphs[-1].append(line)
    prefix = " " * (column + 1) + "* "
    out: list[str] = []
    for paragraph in paragraphs:
        text = " ".join(paragraph)
        if not missing_names(text, names):
            out += paragraph
            continue
        left = _left_of(text, names)
        out += textwrap.wrap(left, WIDTH - len(prefix) - 3) if left else []
    while out and not out[-1].strip():
        out.pop()
    if not any(line.strip() and not line.startswith("SPDX") for line in out):
        return ""
    body = "\n".join((prefix + line).rstrip() for line in out[1:])
    return f"/* {out[0]}" + (f"\n{body}" if body else "") + " */"


def _left_of(text: str, names: Collection[str]) -> str:
    """The sentences, and the clauses before and after a semicolon, without missing names."""
    text = BRACKETS.sub(lambda found: "" if missing_names(found[0], names) else found[0], text)
    kept = [part for part in SENTENCE.split(text) if not missing_names(part, names)]
    left = re.sub(r"; (?=[A-Z][a-z ])", ". ", " ".join(kept))
    if left.endswith(";"):
        left = left[:-1] + ("." if text.endswith(".") else "")
    return left
