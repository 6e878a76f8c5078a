"""Leaves out of C sources what no program of a compiled directory refers to.

The sources are those of ``runtime_c``: formatted by clang-format, without conditionals that the model decides
(conditionals.py). They are split into top-level items (a function, a type, a variable, a macro, a directive). An item
stays if its name occurs in one that stays. That is coarser than what a linker does, and can only keep too much: a name
that is built with ``##`` counts as all names with the same beginning and end.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shrinkc.codegen.conditionals import DIRECTIVE, end_of_line

WORD = re.compile(r"[A-Za-z_]\w*")
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'')
ATTRIBUTE = re.compile(r"__attribute__\s*\(\((?:[^()]|\([^()]*\))*\)\)")
# a name made of a fixed part and an argument, but not a member of a struct
PASTED = re.compile(r"(?<![\w.>])(\w*)\s*##\s*(\w+)\s*(?:##\s*(\w*))?")
MARK = re.compile(rf"{COMMENT.pattern}|{QUOTED.pattern}|[(){{}}\[\];]|(?m:^)[ \t]*#", re.DOTALL)
CALL = re.compile(r"([A-Z][A-Z0-9_]*)\(\s*(\w+)?")


@dataclass(frozen=True, eq=False)
class Item:
    """A part of a file at its top level.

    ``kind``: ``code``, ``define``, ``undef``, ``include``, ``open``, ``else`` and ``close`` (of a conditional),
    ``comment``, ``blank`` or ``other`` (a directive that always stays).  ``names``: what it defines; code without
    one, such as a _Static_assert, stays if other code of its file does.  ``words``: identifiers in it;
    ``patterns``: of names that it makes with ``##``.
    """

    kind: str
    text: str
    names: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()


def words_of(text: str) -> frozenset[str]:
    """Identifiers outside comments."""
    return frozenset(WORD.findall(COMMENT.sub(" ", text)))


def _patterns(text: str) -> tuple[re.Pattern[str], ...]:
    """Of names that a macro makes from its arguments."""
    if "##" not in text:
        return ()
    found = []
    for before, _, after in PASTED.findall(COMMENT.sub(" ", text)):
        if len(before) > 2 or len(after) > 2:
            found.append(re.compile(re.escape(before) + r"\w*" + re.escape(after)))
    for after in re.findall(r"\w+\s*##\s*(_\w+)", text):
        found.append(re.compile(r"\w+" + re.escape(after)))
    return tuple(found)


def _defined_names(code: str) -> frozenset[str]:
    """Names that a top-level declaration or definition introduces."""
    text = re.sub(r"(?m)^\s*#.*$", " ", ATTRIBUTE.sub(" ", COMMENT.sub(" ", code))).strip()
    if text.startswith("_Static_assert"):
        return frozenset()
    called = CALL.match(text)
    if called and not text.endswith("}"):
        return frozenset({called[2]} if called[2] and text.endswith(";") else ())
    names: set[str] = set()
    tag = re.match(r"(?:typedef\s+)?(?:struct|union|enum)\s*(\w+)?\s*\{", text)
    if tag:
        if tag[1]:
            names.add(tag[1])
        if text.startswith(("enum", "typedef enum")):
            body = text[text.index("{") + 1 : text.rindex("}")]
            names |= set(re.findall(r"(?:^|,)\s*(\w+)", body))
        names |= set(WORD.findall(text[text.rindex("}") :]))
        return frozenset(names)
    if text.startswith("typedef"):
        pointer = re.search(r"\(\s*\*?\s*(\w+)\s*\)\s*\(", text)
        names.add(pointer[1] if pointer else WORD.findall(text.split("(")[0].split("[")[0])[-1])
        return frozenset(names)
    head = re.split(r"[={]", text, maxsplit=1)[0]
    call = re.search(r"(\w+)\s*\(", head)
    if call:
        return frozenset({call[1]})
    for part in head.split(","):
        found = WORD.findall(part.split("[")[0])
        if found:
            names.add(found[-1])
    return frozenset(names)


def _code_end(text: str, at: int) -> int:
    """End of the declaration or definition that begins at ``at``, with the rest of its last line."""
    depth, function = 0, False
    start = at
    while found := MARK.search(text, start):
        mark, start = found[0], found.end()
        if mark.startswith(("/*", '"', "'")):
            continue
        if mark.lstrip().startswith("#"):
            start = end_of_line(text, found.start())
            continue
        if mark in "({[":
            if mark == "{" and depth == 0:
                function = text[at : found.start()].rstrip().endswith(")")
            depth += 1
        elif mark in ")}]":
            depth -= 1
        ends = depth == 0 and (mark == ";" or (mark == "}" and function))
        # the call of a macro, without semicolon
        if depth == 0 and mark == ")" and text.startswith("\n", start):
            ends = CALL.match(text, at) is not None and not text.startswith("\n{", start)
        if depth < 0:
            break
        if ends:
            return text.find("\n", start) + 1 or len(text)
    raise ValueError(f"a declaration without an end: {text[at : at + 200]!r}")


@lru_cache(maxsize=1024)
def items_of(text: str) -> tuple[Item, ...]:
    """The items of a file, in order; joined they are the file. Raises ValueError if it is not balanced."""
    items: list[Item] = []
    at = 0
    while at < len(text):
        line_end = text.find("\n", at) + 1 or len(text)
        line = text[at:line_end]
        if not line.strip():
            items.append(Item("blank", line))
            at = line_end
        elif line.startswith("/*"):
            end = text.find("\n", text.index("*/", at)) + 1 or len(text)
            items.append(Item("comment", text[at:end]))
            at = end
        elif line.lstrip().startswith("#"):
            whole = text[at : end_of_line(text, at)]
            if "/*" in whole and "*/" not in whole:
                whole = text[at : text.find("\n", text.index("*/", at)) + 1]
            items.append(_directive(whole))
            at += len(whole)
        else:
            end = _code_end(text, at)
            code = text[at:end]
            if "/*" in code.splitlines()[-1] and code.rfind("*/") < code.rfind("/*"):
                end = text.find("\n", text.index("*/", end)) + 1
                code = text[at:end]
            items.append(Item("code", code, _defined_names(code), words_of(code), _patterns(code)))
            at = end
    return tuple(items)


def _directive(line: str) -> Item:
    found = DIRECTIVE.match(line)
    assert found is not None, line
    kind = found[1]
    if kind in ("if", "ifdef", "ifndef"):
        return Item("open", line, words=words_of(line))
    if kind in ("else", "elif"):
        return Item("else", line, words=words_of(line))
    if kind == "endif":
        return Item("close", line)
    if kind == "include":
        return Item("include", line)
    if kind in ("define", "undef"):
        name = WORD.search(found[2])
        assert name is not None, line
        rest = found[2][name.end() :]
        patterns = _patterns(rest)
        return Item(kind, line, frozenset({name[0]}), words_of(rest), patterns)
    return Item("other", line)


LOCAL = re.compile(r"(?:static|SC_INLINE|SC_(?:PHASE|HOT|WARM|L1) static|#)")


def used(
    files: Mapping[str, Sequence[Item]],
    roots: Iterable[str],
    always: Collection[str],
    units: Mapping[str, frozenset[str]],
) -> set[Item]:
    """The items that ``roots`` (identifiers), the files ``always`` or other used items refer to.

    ``units``: see :func:`sources_of`.  Only a source's functions and variables that are not static are known in every
    other source.  Everything else is known where C sees it: in the source that has it, or that includes the header
    that has it.
    """
    by_name: dict[str, list[Item]] = {}
    file_of: dict[Item, str] = {}
    external: set[Item] = set()
    kept: set[Item] = set()
    waiting: list[Item] = []
    for file, items in files.items():
        for item in items:
            file_of[item] = file
            if file.endswith(".c") and not LOCAL.match(item.text):
                external.add(item)
            for name in item.names:
                by_name.setdefault(name, []).append(item)
            if file in always or (not item.names and item.kind != "code"):
                waiting.append(item)
    everywhere = {file for file in files if units[file] == units[""]}
    for name in roots:
        waiting += [i for i in by_name.get(name, ()) if i in external or file_of[i] in everywhere]
    unnamed = {
        file: [i for i in items if i.kind == "code" and not i.names]
        for file, items in files.items()
    }
    while waiting:
        item = waiting.pop()
        if item in kept:
            continue
        if item.kind == "code":
            waiting += unnamed.pop(file_of[item], ())
        kept.add(item)
        found = [i for name in item.words for i in by_name.get(name, ())]
        for pattern in item.patterns:
            for name, others in by_name.items():
                if pattern.fullmatch(name):
                    found += others
        here = file_of[item]
        waiting += [
            i
            for i in found
            if i in external or file_of[i] == here or units[file_of[i]] & units[here]
        ]
    return kept


def sources_of(
    files: Mapping[str, Sequence[Item]], outside: Collection[str] = ()
) -> dict[str, frozenset[str]]:
    """By file the sources that it is part of; "": all sources.

    ``outside``: headers that other sources include.  They count as part of every source.
    """
    sources = frozenset(file for file in files if file.endswith(".c"))
    includes = {
        file: {i.text.split('"')[1] for i in items if i.kind == "include" and '"' in i.text}
        for file, items in files.items()
    }

    def reached(waiting: set[str]) -> set[str]:
        found: set[str] = set()
        while waiting:
            file = waiting.pop()
            if file in files and file not in found:
                found.add(file)
                waiting |= includes[file]
        return found

    of: dict[str, set[str]] = {file: set() for file in files}
    for source in sources:
        for file in reached({source}):
            of[file].add(source)
    for file in reached({*outside} - sources):
        of[file] |= sources
    return {"": sources, **{file: frozenset(found) for file, found in of.items()}}


def has_content(items: Sequence[Item], kept: Collection[Item]) -> bool:
    """Whether something is defined in it, apart from the include guard."""
    guard = guard_of(items)
    return any(
        i in kept and i.kind in ("code", "define") and not (guard and i.names == {guard})
        for i in items
    )


def guard_of(items: Sequence[Item]) -> str:
    """The macro of an include guard, or ""."""
    directives = [i for i in items if i.kind not in ("blank", "comment")]
    if len(directives) > 1 and directives[0].text.startswith("#ifndef"):
        name = directives[0].text.split()[1]
        if directives[1].kind == "define" and directives[1].names == {name}:
            return name
    return ""


def written(items: Sequence[Item], kept: Collection[Item]) -> str:
    """The text of what is kept: without conditionals around nothing, and without comments on what is gone."""
    live = _without_empty_conditionals([i for i in items if i in kept])
    out: list[Item] = []
    for at, item in enumerate(items):
        if item.kind == "comment":
            if _concerns_something(items, at, live):
                out.append(item)
        elif item.kind == "blank":
            if out and out[-1].kind != "blank":
                out.append(item)
        elif item in live:
            out.append(item)
    while out and out[-1].kind == "blank":
        out.pop()
    return "".join(i.text for i in out)


def _concerns_something(items: Sequence[Item], at: int, live: Collection[Item]) -> bool:
    """A comment at the head of a file, or one with a kept item in the lines that it is about.

    A comment is about the items up to the next comment or empty line. One before an empty line is a heading: it is
    about everything up to the next heading.
    """
    if at == 0:
        return True
    heading = at + 1 < len(items) and items[at + 1].kind == "blank"
    for i, item in enumerate(items[at + 1 :], at + 1):
        if (
            heading
            and item.kind == "comment"
            and i + 1 < len(items)
            and items[i + 1].kind == "blank"
        ):
            return False
        if not heading and item.kind in ("comment", "blank"):
            return False
        if item.kind not in ("blank", "comment", "close") and item in live:
            return True
    return False


def _without_empty_conditionals(items: list[Item]) -> set[Item]:
    """The rest of ``items`` without conditionals that have nothing in any branch."""
    while True:
        drop: set[int] = set()
        for at, item in enumerate(items):
            if item.kind != "open":
                continue
            inside = at + 1
            while inside < len(items) and items[inside].kind in ("blank", "comment", "else"):
                inside += 1
            if inside < len(items) and items[inside].kind == "close":
                drop |= set(range(at, inside + 1))
        if not drop:
            return set(items)
        items = [item for at, item in enumerate(items) if at not in drop]
