"""Leaves out fields of the generated tables, and named numbers, that no code of a compiled directory reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from shrinkc.codegen.unused import COMMENT, WORD

STRUCT = re.compile(r"(?ms)^typedef struct(?: \w+)? \{\n(?P<body>.*?)^\} (?P<name>\w+);")
TABLES = frozenset({"sc_matrix", "sc_vector_layout", "sc_result"})
"""Structs that only model.c has initialisers of, and these name their fields."""
FIELD = re.compile(
    r"(?ms)^    (?P<type>[\w ]+ \*?)(?P<names>\w+(?:, \w+)*);(?P<rest>[ \t]*(?:/\*.*?\*/)?\n)"
)
READ = re.compile(r"(?:->|(?<=[\w\])])\s*\.)\s*(\w+)")
ENUM = re.compile(r"(?ms)^enum \w+ \{(?P<body>[^}]*)\};")
NUMBERED = re.compile(r"(?s)\s*(\w+) = (\w+)(,?)([ \t]*/\*.*?\*/)?")


def with_read_fields(texts: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """``texts``: file name -> C source; ``others``: the other sources of the directory."""
    code = [COMMENT.sub(" ", text) for text in (*texts.values(), *others)]
    read = {name for text in code for name in READ.findall(text)}
    gone: set[str] = set()

    def fields(found: re.Match[str]) -> str:
        names = found["names"].split(", ")
        left = [name for name in names if name in read]
        gone.update(set(names) - set(left))
        if len(left) == len(names):
            return found[0]
        return f"    {found['type']}{', '.join(left)};{found['rest']}" if left else ""

    def struct(found: re.Match[str]) -> str:
        if found["name"] not in TABLES:
            return found[0]
        return found[0].replace(found["body"], FIELD.sub(fields, found["body"]))

    done = {name: STRUCT.sub(struct, text) for name, text in texts.items()}
    if gone and "model.c" in done:
        assigned = rf"\.(?:{'|'.join(sorted(gone))}) = (?:[^,{{}}()]|\([^()]*\))*"
        done["model.c"] = re.sub(rf",\s*{assigned}(?=[,}}\s])|{assigned}, ?", "", done["model.c"])
    return _with_named_numbers(done, others)


def _with_named_numbers(texts: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """Without names that an enum with a name of its own gives to numbers, and that nothing refers to."""
    every = [*texts.values(), *others]
    words = [WORD.findall(COMMENT.sub(" ", text)) for text in every]
    counts: dict[str, int] = {}
    for found in words:
        for word in found:
            counts[word] = counts.get(word, 0) + 1

    def enum(found: re.Match[str]) -> str:
        items = list(NUMBERED.finditer(found["body"]))
        if not items or "".join(i[0] for i in items).strip() != found["body"].strip():
            return found[0]
        left = [i for i in items if counts[i[1]] > 1]
        if not left or len(left) == len(items):
            return found[0]
        last = left[-1]
        body = "".join(i[0] for i in left[:-1])
        body += last[0] if not last[3] else re.sub(r",[ \t]*", " ", last[0], count=1)
        end = "\n" if found["body"].endswith("\n") else " "
        return found[0].replace(found["body"], body.rstrip() + end)

    return {name: ENUM.sub(enum, text) for name, text in texts.items()}
