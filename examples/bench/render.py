"""Renders the tables of README.md and docs/**/*.md, and the pictures in docs/pictures, from docs/results/data/*.json.

    python examples/bench/render.py            write them into the pages
    python examples/bench/render.py --check    write nothing; end with 1 where a page or picture is out of date

A table stands between two lines of a page:

    <!-- table: speed.json columns=what,measured rows=decode_64,prefill -->
    <!-- end of table -->

``columns`` and ``rows`` choose what is shown, and in which order; without them all is.  A line below the table says
when, how and where its figures were measured; ``provenance=no`` leaves it out.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import figures
from figures import DATA, ROOT

BEGIN = re.compile(r"<!-- table: (\S+?)((?: \w+=\S+)*) -->")
END = "<!-- end of table -->"
MISSING = "–"
PICTURES = ROOT / "docs" / "pictures"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown(value: Any, form: str | int | None) -> str:
    """A value as a cell; ``form`` is for numbers: a format, or a number of significant digits."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(v, form)}" for key, v in value.items())
    if not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    if isinstance(form, int):
        rounded = float(f"{value:.{form - 1}e}")
        digits = form - 1 - math.floor(math.log10(abs(rounded))) if rounded else 0
        return f"{rounded:,.{max(0, digits)}f}"
    return (form or "{:,}").format(value).replace(" ", "\u00a0")  # "25 %" stays on one line


def chosen(data: dict[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    by_id = {row["id"]: row for row in data["rows"]}
    return list(by_id.values()) if names is None else [by_id[name] for name in names]


def table(
    data: dict[str, Any], columns: Sequence[str] | None = None, rows: Sequence[str] | None = None
) -> list[str]:
    """The lines of a Markdown table; columns of numbers are aligned to the right."""
    keys = list(columns or data["columns"])
    found = chosen(data, rows)
    head = [data["columns"][key] for key in keys]
    values = [[row.get(key) for row in found] for key in keys]
    numbers = [all(v is None or type(v) in (int, float) for v in column) for column in values]
    lines = [head, ["---:" if number else "---" for number in numbers]]
    for row in found:
        forms = {**data.get("formats", {}), **row.get("formats", {})}
        lines.append([shown(row.get(key), forms.get(key)) for key in keys])
    return [f"| {' | '.join(line)} |" for line in lines]


def measured(data: dict[str, Any], rows: Sequence[str] | None = None) -> str:
    """The line below a table: where its figures come from.  Rows that differ in that are named."""
    groups: dict[tuple[str, ...], list[str]] = {}
    first = next(iter(data["columns"]))
    for row in chosen(data, rows):
        p = {**data["provenance"], **row.get("provenance", {})}
        again = "" if p.get("remeasured", True) else "not measured again since"
        said: tuple[str, ...] = (
            f"commit {p['commit']}",
            p["date"],
            f"`{p['command']}`",
            p["machine"],
            again,
        )
        groups.setdefault(said, []).append(shown(row.get(first), None))
    usual: tuple[str, ...] = max(groups, key=lambda said: len(groups[said]))
    lines = [f"Measured: {', '.join(part for part in usual if part)}."]
    for said, names in groups.items():
        if other := [part for part in said if part and part not in usual]:
            lines.append(f"*{'*, *'.join(dict.fromkeys(names))}*: {', '.join(other)}.")
    return f"<small>{' '.join(lines)}</small>"


def rendered(text: str, folder: Path = DATA) -> str:
    """``text`` of a page with its tables as the data has them.  ValueError where that cannot be."""
    return "\n".join(_lines(text.split("\n"), folder))


def _lines(lines: list[str], folder: Path) -> Iterator[str]:
    fenced, at = False, 0
    while at < len(lines):
        line = lines[at]
        at += 1
        yield line
        fenced ^= line.lstrip().startswith("```")
        marker = BEGIN.fullmatch(line.strip())
        if fenced or marker is None:
            continue
        if END not in lines[at:]:
            raise ValueError(f"no '{END}' after '{line}'")
        at = lines.index(END, at)
        data = figures.read(marker[1], folder)
        given = dict(word.split("=", 1) for word in marker[2].split())
        columns, rows = (given[k].split(",") if k in given else None for k in ("columns", "rows"))
        try:
            yield from table(data, columns, rows)
        except KeyError as error:
            raise ValueError(f"{marker[1]} has no row or column {error}: '{line}'") from None
        if given.get("provenance") != "no":
            yield from ["", measured(data, rows), ""]


def outdated(write: bool) -> list[Path]:
    """Pages and pictures that differ from what the data gives; writes them with ``write``."""
    wanted: dict[Path, str] = {}
    for page in pages():
        try:
            wanted[page] = rendered(page.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{page.relative_to(ROOT)}: {error}") from error
    if find_spec("matplotlib") is not None:
        import draw

        wanted |= {PICTURES / name: picture() for name, picture in draw.PICTURES.items()}
    found = [p for p, text in wanted.items() if not p.is_file() or p.read_text("utf-8") != text]
    for path in found if write else []:
        path.write_text(wanted[path], encoding="utf-8")
    return found


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, end with 1 where a page differs"
    )
    check = parser.parse_args().check
    found = outdated(write=not check)
    for path in found:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}", file=sys.stderr)
    return int(check and bool(found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"render.py: {error}")
