"""The runtime of one compiled directory: the files, functions and constants of ``runtime_c`` that its model uses."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from shrinkc.codegen.conditionals import Constants, resolved, value_of
from shrinkc.codegen.fields import with_read_fields
from shrinkc.codegen.fold import Known, folded, known_functions
from shrinkc.codegen.unused import (
    Item,
    guard_of,
    has_content,
    items_of,
    sources_of,
    used,
    words_of,
    written,
)

DEFINE = re.compile(r"(?m)^[ \t]*#\s*define\s+(\w+)(\(?)((?:[^\n]*\\\n)*[^\n]*)")
STATIC = re.compile(r"static inline|SC_INLINE|SC_\w+ static|static")
INCLUDE = re.compile(r'(?m)^#include "([^"]+)".*\n')
PUBLIC = frozenset({"llm.h"})  # copied as it is
# files with a subject of their own: no header is written into the first; the others are not written into another file
WITHOUT_HEADERS = frozenset({"forward.c", "model.c", "model.h", "sc_platform.h"})
APART = WITHOUT_HEADERS | {"sc_attend.h", "sc_xpulp.h"}
SHORT = 30  # lines; a longer header of a platform stays a file


def specialised(
    runtime: Mapping[str, str],
    generated: Mapping[str, str],
    others: Collection[str],
    options: Collection[str],
    memories: Mapping[str, bool],
) -> dict[str, str]:
    """The text of each file, without what the model does not use.

    ``runtime``: sources of the library by file name; ``generated``: model.h, formats.h, forward.c, model.c;
    ``others``: sources of the platforms and of the program; ``options``: macros that the Makefile defines for some
    program; ``memories``: whether it defines such a macro for all programs, or for none.
    The C compiler gets the same definitions in the same order as from the whole runtime.
    """
    texts, constants = _resolved({**generated, **runtime}, others, options, memories)
    texts = every = _with_layer_fields(texts)
    outside = {header for text in others for header in INCLUDE.findall(text)}
    roots = {"SC_MODEL", *options}
    for text in [*others, *(runtime[name] for name in PUBLIC)]:
        roots |= words_of(text)
    while True:  # what is left out may have been the only use of something else
        printed = _used(_folded(texts, constants), every, roots, outside)
        printed = with_read_fields(printed, others)
        if printed == texts:
            break
        texts = printed
    printed = _with_headers_inside(printed, outside)
    tidy = {name: _tidy(text) for name, text in printed.items()}
    return {**tidy, **{name: runtime[name] for name in PUBLIC}}


def _used(
    texts: Mapping[str, str],
    every: Mapping[str, str],
    roots: Collection[str],
    outside: Collection[str],
) -> dict[str, str]:
    """What ``roots`` need of each file.

    ``every``: the files with what they include; ``outside``: headers that other sources include.
    """
    files = {name: items_of(text) for name, text in texts.items() if name not in PUBLIC}
    every = {name: text for name, text in every.items() if name not in PUBLIC}
    units = sources_of(files, outside)
    # A header that no file includes any more may have been the only one that referred to another item.
    while True:
        kept = used(files, roots, {"forward.c"}, units)
        printed = {
            name: written(items, kept) for name, items in files.items() if has_content(items, kept)
        }
        printed = _included(_without_missing_headers(printed, every), outside)
        if printed.keys() == files.keys():
            return printed
        files = {name: files[name] for name in printed}


@lru_cache(maxsize=1024)
def _definitions(text: str) -> dict[str, list[tuple[str, bool]]]:
    """Macros: each definition's value, and whether it is outside of conditionals and functions."""
    found: dict[str, list[tuple[str, bool]]] = {}
    items = items_of(text)
    depth = -1 if guard_of(items) else 0
    for item in items:
        depth += {"open": 1, "close": -1}.get(item.kind, 0)
        made = DEFINE.findall(item.text) if item.kind in ("define", "code") else ()
        for name, arguments, value in made:
            plain = re.sub(r"/\*.*?\*/|\\\n", " ", value, flags=re.DOTALL).strip()
            alone = depth == 0 and item.kind == "define"
            found.setdefault(name, []).append(("" if arguments else plain, alone))
    return found


def _resolved(
    texts: dict[str, str],
    others: Collection[str],
    options: Collection[str],
    memories: Mapping[str, bool],
) -> tuple[dict[str, str], Constants]:
    """Resolves conditionals until no more is known: macros of the runtime may depend on others."""
    elsewhere = {*options, *(name for text in others for name, *_ in DEFINE.findall(text))}
    while True:
        values = {name: "1" for name, defined in memories.items() if defined}
        undecided = elsewhere - set(memories)
        for text in texts.values():
            for name, made in _definitions(text).items():
                if name in values or len(made) > 1 or not made[0][1]:
                    undecided.add(name)
                else:
                    values[name] = made[0][0]
        guards = {name for name in values if name.endswith("_H")}
        undecided |= guards
        known = Constants(
            {name: value for name, value in values.items() if name not in undecided},
            frozenset(undecided),
        )
        new = {name: resolved(text, known) for name, text in texts.items()}
        if new == texts:
            return texts, known
        texts = new


def _with_layer_fields(texts: dict[str, str]) -> dict[str, str]:
    """The fields of a layer's struct, which model.h lists in a macro."""
    found = re.search(r"(?m)^#define SC_LAYER_NUMBERS (.*)\n", texts.get("model.h", ""))
    if found is None:
        return texts
    fields = found[1].replace("; ", ";\n    ")
    return {name: text.replace("SC_LAYER_NUMBERS;", f"{fields};") for name, text in texts.items()}


def _folded(texts: dict[str, str], constants: Constants) -> dict[str, str]:
    """Functions without what the model decides in C."""
    texts, known = dict(texts), Known(constants)
    sources = {name: items_of(text) for name, text in texts.items() if name not in PUBLIC}
    # by name: the definitions of each function and macro
    made: dict[str, list[Item]] = {}
    for items in sources.values():
        for item in items:
            for name in (
                item.names if item.kind == "define" or item.text.rstrip().endswith("}") else ()
            ):
                made.setdefault(name, []).append(item)
    macros, functions = {}, {}
    for name, (item, *more) in made.items():
        if more:
            continue
        if item.kind == "define":
            found = DEFINE.match(item.text)
            value = value_of(found[3].split(")", 1)[1], constants) if found and found[2] else None
            if value is not None:
                macros[name] = str(value)
        elif STATIC.match(item.text):
            functions[name] = item.text
    known = Known(constants, macros)
    while (more_known := known_functions(functions, known)) != known:
        known = more_known
    return {
        name: "".join(
            folded(item.text, known) if item.kind == "code" else item.text for item in sources[name]
        )
        if name in sources
        else text
        for name, text in texts.items()
    }


def _without_missing_headers(texts: dict[str, str], every: Mapping[str, str]) -> dict[str, str]:
    """Without includes of files that are not in ``texts``; who included one includes what it included."""

    def replaced(line: re.Match[str]) -> str:
        if line[1] in texts or line[1] not in every:
            return line[0]
        return "".join(replaced(inner) for inner in INCLUDE.finditer(every[line[1]]))

    return {name: _once(INCLUDE.sub(replaced, text)) for name, text in texts.items()}


def _included(texts: dict[str, str], outside: Collection[str]) -> dict[str, str]:
    """Without headers that no source includes; ``outside``: those that other sources include."""
    wanted = {name for name in texts if name.endswith(".c")}
    wanted |= set(outside)
    waiting = [name for name in wanted if name in texts]
    while waiting:
        for header in INCLUDE.findall(texts[waiting.pop()]):
            if header in texts and header not in wanted:
                wanted.add(header)
                waiting.append(header)
    return {name: text for name, text in texts.items() if name in wanted}


def _once(text: str) -> str:
    """Without the repetition of an include."""
    seen: set[str] = set()

    def first(line: re.Match[str]) -> str:
        new = line[1] not in seen
        seen.add(line[1])
        return line[0] if new else ""

    return INCLUDE.sub(first, text)


def _with_headers_inside(texts: dict[str, str], outside: Collection[str]) -> dict[str, str]:
    """Writes a header that only one file includes into that file."""
    texts = dict(texts)
    for name in sorted(
        APART & texts.keys()
    ):  # what its only includer has before it need not be a file
        by = [owner for owner, text in texts.items() if name in INCLUDE.findall(text)]
        if len(by) == 1:
            for header in INCLUDE.findall(texts[by[0]].split(f'#include "{name}"')[0]):
                texts[name] = texts[name].replace(f'#include "{header}"\n', "")
    while True:
        includers: dict[str, list[str]] = {}
        for name, text in texts.items():
            for header in set(INCLUDE.findall(text)):
                includers.setdefault(header, []).append(name)
        single = sorted(
            header
            for header, by in includers.items()
            if header in texts
            and len(by) == 1
            and by[0] not in WITHOUT_HEADERS
            and header not in {*PUBLIC, *APART, *outside}
        )
        if not single:
            return texts
        # the outermost first: what it includes comes before what it says of itself
        header = next(name for name in single if includers[name][0] not in single)
        owner = includers[header][0]
        texts[owner] = _once(_written_into(texts[owner], header, _body(texts.pop(header))))


def with_short_headers_inside(texts: Mapping[str, str]) -> dict[str, str]:
    """Writes a header of a few lines that only one file includes into that file.

    ``texts``: path -> text of the sources of the platforms and of the program. If several folders have a header of
    the same name, such as sc_target.h, these headers stay files.
    """
    texts = dict(texts)
    for path in sorted(texts):
        name = path.rsplit("/", 1)[-1]
        if not name.endswith(".h") or texts[path].count("\n") > SHORT:
            continue
        includers = [other for other, text in texts.items() if name in INCLUDE.findall(text)]
        namesakes = [other for other in texts if other.rsplit("/", 1)[-1] == name]
        if len(includers) == len(namesakes) == 1:
            owner = includers[0]
            texts[owner] = _once(_written_into(texts[owner], name, _body(texts.pop(path))))
    return texts


def _written_into(text: str, header: str, body: str) -> str:
    """``text`` with ``body`` for the include of ``header``."""
    return INCLUDE.sub(lambda line: body if line[1] == header else line[0], text)


def _body(text: str) -> str:
    """A header without guard and licence, with what it includes before what it says of itself."""
    items = items_of(text)
    guard = guard_of(items)
    if guard:
        opened = next(i for i, item in enumerate(items) if item.kind == "open")
        closed = max(i for i, item in enumerate(items) if item.kind == "close")
        items = items[:opened] + items[opened + 2 : closed] + items[closed + 1 :]
    body = "".join(i.text for i in items)
    about = re.match(r"/\* SPDX-License-Identifier: [\w.-]+\n \* ((?:.|\n)*?\*/\n)\s*", body)
    if about is None:
        return body.strip("\n") + "\n"
    rest = body[about.end() :]
    includes = re.match(r"(?:#include [^\n]*\n|\s*\n)*", rest)
    assert includes is not None
    rest = rest[includes.end() :].strip("\n")
    return f"{includes[0].strip()}\n\n/* {about[1]}\n{rest}\n".lstrip("\n")


def _tidy(text: str) -> str:
    """Without repeated empty lines and marks for clang-format, and indented as if no #if had been there."""
    text = re.sub(r"(?m)^[ \t]*/\* clang-format (?:on|off) \*/\n", "", text)
    text = re.sub(
        r"(?m)^(static(?: inline)?)\n +(__attribute__\(\(\w+\)\))\n +void\n +",
        r"\1 \2\nvoid ",
        text,
    )
    # a variable whose first value no #if decides any more
    text = re.sub(r"(?m)^( *)(u?int\d+_t (\w+));\n\1 *\3 = ", r"\1\2 = ", text)
    lines: list[str] = []
    least = extra = 0  # indentation of the last statement; spaces too many of the lines after it
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        if extra and indent <= least:
            extra = 0
        elif (
            not extra and lines and lines[-1].endswith(";") and indent == least + 4 and line.strip()
        ):
            extra = 4
        lines.append(line[extra:] if line.strip() else line)
        if not extra:
            least = indent
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
