"""Writes the generated tables of docs/reference from the code: recipe keys and exit codes.

    python docs/generate.py            rewrites the tables
    python docs/generate.py --check    exit code 1 if a table is not current

A table stands between ``<!-- generated: exit-codes -->`` or ``<!-- generated: recipe TABLE -->`` and
``<!-- end of generated -->``.  The meaning of a recipe key is the docstring below its field.  The first
paragraph of an error's docstring is its meaning, the last one says what to do.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from shrinkc import errors
from shrinkc.cli.main import DefectError
from shrinkc.compression.recipe import Recipe
from shrinkc.compression.stages.kinds import KINDS

PAGES = Path(__file__).parent / "reference"
_PART = re.compile(r"(<!-- generated: ([a-z_ -]+) -->\n)(?:.*\n)*?(<!-- end of generated -->)")
_TYPES = {int: "integer", float: "number", str: "text", bool: "true or false"}
# exit codes that are no exception
_OTHER = [
    (0, "success", "Done.  `run` also verified the run, unless `--no-verify` was given.", "–"),
    (143, "terminated", "Stopped by SIGTERM; nothing was left half-written.", "Give the same command again."),
]  # fmt: skip


def tables() -> dict[str, str]:
    """Name of a generated table -> its Markdown."""
    hints = typing.get_type_hints(Recipe)
    found = {
        name: _parts(hint)[0] for name, hint in hints.items() if name not in ("stages", "name")
    }
    found |= {name: kind.settings for name, kind in KINDS.items()}
    recipe = {f"recipe {name}": _keys(cls) for name, cls in found.items()}
    return {"exit-codes": _exit_codes(), **recipe}


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _markdown(text: str) -> str:
    """A docstring's text in a cell."""
    return " ".join(text.replace("``", "`").replace("|", r"\|").split())


def _exit_codes() -> str:
    classes = [
        c
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.ShrinkcError)
    ]
    rows = [*_OTHER]
    for cls in (*classes, DefectError):
        meaning, *_, action = inspect.cleandoc(cls.__dict__["__doc__"]).split("\n\n") * 2
        rows.append((cls.exit_code, f"{cls.title}<br>`{cls.__name__}`", meaning, action))
    cells = ((str(code), *map(_markdown, texts)) for code, *texts in sorted(rows))
    return _table(("Code", "Title", "Meaning", "What to do"), cells)


def _keys(cls: type) -> str:
    """The keys of a table of a recipe."""
    hints = typing.get_type_hints(cls, include_extras=True)
    meanings = _meanings(cls)
    rows = (
        (
            f"`{field.name}`", _type(hints[field.name]), _default(field),
            _markdown("; ".join(dict.fromkeys(_allowed(hints[field.name])))), _markdown(meanings[field.name]),
        )
        for field in dataclasses.fields(cls)
    )  # fmt: skip
    return _table(("Key", "Type", "Default", "Allowed", "Meaning"), rows)


def _meanings(cls: type) -> dict[str, str]:
    """Field -> the docstring below it, those of base classes too."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, text in itertools.pairwise(body.body):  # type: ignore[attr-defined]
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = ast.literal_eval(text.value)
    return found


def _parts(hint: Any) -> list[Any]:
    """The alternatives of a type without None."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [part for part in get_args(hint) if part is not type(None)]
    return [hint]


def _type(hint: Any) -> str:
    names = []
    for part in _parts(hint):
        if get_origin(part) is Annotated:
            names.append(_type(part))
        elif get_origin(part) is tuple:
            names.append(f"list of {_type(get_args(part)[0])}s")
        elif get_origin(part) is Mapping or typing.is_typeddict(part):
            names.append("table")
        else:
            names.append(_TYPES[part])
    return " or ".join(names)


def _allowed(hint: Any) -> Iterator[str]:
    """What the checks in an annotation say, those of list items too."""
    if get_origin(hint) is Annotated:
        yield from map(str, get_args(hint)[1:])
    for part in get_args(hint):
        yield from _allowed(part)


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is None or value == () or value is dataclasses.MISSING:
        return "–"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(_toml, value))}]`"
    return f"`{_toml(value)}`"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def current(text: str) -> str:
    """A page with its tables as the code has them now."""
    known = tables()
    return _PART.sub(lambda part: f"{part[1]}\n{known[part[2]]}\n{part[3]}", text)


def outdated() -> list[Path]:
    """The pages with a table that is not current."""
    return [
        page
        for page in PAGES.glob("*.md")
        if current(page.read_text("utf-8")) != page.read_text("utf-8")
    ]


def missing() -> set[str]:
    """The tables that no page has."""
    return {*tables()} - {
        part[2] for page in PAGES.glob("*.md") for part in _PART.finditer(page.read_text("utf-8"))
    }


def main() -> int:
    """Returns the exit code."""
    pages = outdated()
    if "--check" in sys.argv[1:]:
        for page in pages:
            print(f"{page} is not current: python docs/generate.py")
        return int(bool(pages))
    for page in pages:
        page.write_text(current(page.read_text("utf-8")), "utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
