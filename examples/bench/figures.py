"""Measured figures: JSON files in docs/results/data, with their provenance.

A file has ``title``, ``provenance`` (commit, date, command, machine), ``columns`` (key to heading, in the order of
the table), ``formats`` (key to a format of ``str.format``, or to a number of significant digits) and ``rows``.  A row
has an ``id`` and a value per column; it may have ``formats`` and ``provenance`` of its own, which override the file's,
and keys that no column shows.  ``"remeasured": false`` marks figures that a later commit took over.

Figures that a command printed become a row by hand (a row of that id is replaced, its texts stay):

    python examples/bench/figures.py fidelity smollm2_8bit perplexity=36.18 ratio=1.0029 --command 'shrinkc eval …'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "results" / "data"
GVSOC = "GVSoC, target siracusa (gvsoc edfcd83, core ac27d00, pulp 9968c4e)"
PROVENANCE = ("commit", "date", "command", "machine")
Row = dict[str, Any]


def read(name: str, folder: Path = DATA) -> dict[str, Any]:
    """The file ``name`` (".json" may be left out).  ValueError where it lacks something."""
    path = (folder / name).with_suffix(".json")
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {folder}")
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if lacking := [key for key in ("title", "provenance", "columns", "rows") if key not in data]:
        raise ValueError(f"{path.name} lacks {', '.join(lacking)}")
    ids = [row.get("id") for row in data["rows"]]
    if None in ids or len(set(ids)) < len(ids):
        raise ValueError(f"{path.name}: every row needs an id of its own")
    for row in data["rows"]:
        found = {**data["provenance"], **row.get("provenance", {})}
        if lacking := [key for key in PROVENANCE if not found.get(key)]:
            raise ValueError(f"{path.name}, row {row['id']}: no {', '.join(lacking)}")
    return data


def write(
    name: str,
    *,
    title: str,
    command: str,
    columns: Mapping[str, str],
    rows: Sequence[Row],
    formats: Mapping[str, str | int] | None = None,
    machine: str | None = None,
    folder: Path = DATA,
) -> None:
    """Writes the file ``name`` and prints on standard error which figures changed.  ``machine``: default: this one."""
    path = (folder / name).with_suffix(".json")
    before = read(name, folder)["rows"] if path.is_file() else []
    data = {
        "title": title, "provenance": _here(command, machine), "columns": dict(columns),
        "formats": dict(formats or {}), "rows": list(rows),
    }  # fmt: skip
    _write(name, data, before, folder)


def put(
    name: str, row: Row, *, command: str, machine: str | None = None, folder: Path = DATA
) -> None:
    """Writes one row of the file ``name``, with its own provenance; the texts of a row of that id stay."""
    data = read(name, folder)
    before = data["rows"]
    old: Row = next((r for r in before if r["id"] == row["id"]), {})
    texts = {key: value for key, value in old.items() if not isinstance(value, int | float)}
    provenance = {**_here(command, machine), "remeasured": True}
    new = {**texts, **row, "provenance": provenance}
    data["rows"] = [new if r is old else r for r in before] + ([] if old else [new])
    _write(name, data, before, folder)


def changes(before: Sequence[Row], after: Sequence[Row]) -> Iterator[str]:
    """A line for each figure that differs, and for each row that is new or gone."""
    old, new = ({row["id"]: row for row in rows} for rows in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield f"{name}: {'gone' if name in old else 'new'}"
            continue
        for key, value in new[name].items():
            was = old[name].get(key)
            if isinstance(value, int | float) and isinstance(was, int | float) and value != was:
                share = f" ({100 * (value / was - 1):+.1f} %)" if was else ""
                yield f"{name}, {key}: {was:,} -> {value:,}{share}"


def _here(command: str, machine: str | None) -> dict[str, str]:
    return {
        "commit": _commit(), "date": date.today().isoformat(), "command": command,
        "machine": machine or this_machine(),
    }  # fmt: skip


def _write(name: str, data: dict[str, Any], before: Sequence[Row], folder: Path) -> None:
    path = (folder / name).with_suffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    changed = list(changes(before, data["rows"])) or ["all figures as before"]
    print(f"{path.name} written:", *changed, sep="\n  ", file=sys.stderr)


def this_machine() -> str:
    return f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}"


def _commit() -> str:
    """Of the checkout; "unknown" where there is no git or no repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=7"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="FILE", help="a file of docs/results/data")
    parser.add_argument("id", metavar="ROW")
    parser.add_argument("values", metavar="KEY=NUMBER", nargs="+")
    parser.add_argument("--command", required=True, help="the command that printed them")
    parser.add_argument("--machine", help="default: this one")
    args = parser.parse_args()
    numbers = {key: float(value) for key, _, value in (v.partition("=") for v in args.values)}
    put(args.name, {"id": args.id, **numbers}, command=args.command, machine=args.machine)


if __name__ == "__main__":
    main()
