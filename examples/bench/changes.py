"""What a benchmark measured against what its page said before: by ``shrinkc diff``'s comparison of objects."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from shrinkc.core.output import write_file
from shrinkc.driver.differing import diff_objects

# what rows are called whose figures are no numbers of cycles
FASTER_WHERE_MORE = ("per cycle", "hyperbus bound", "times as fast", "accepted")
_NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")


def figures(page: str) -> dict[str, dict[str, float]]:
    """Every row of a page's tables that has numbers in bold, or else behind its names: row -> column -> number.

    A row that is called "same, ..." is of the one above it; columns that state no measurement are left out.
    """
    out: dict[str, dict[str, float]] = {}
    header: list[str] = []
    above = ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif not set(line) <= set("|-: "):
            bold = [i for i, cell in enumerate(cells) if re.fullmatch(r"\*\*.*\*\*", cell)]
            numbers = bold or [i for i, cell in enumerate(cells) if _NUMBER.fullmatch(cell)]
            names = [cell for i, cell in enumerate(cells[: numbers[0]] if numbers else [])]
            name = ", ".join(n for n in names if not _NUMBER.fullmatch(n))
            if name.startswith("same"):
                name = f"{above}: {name}"
            else:
                above = name
            found = {header[i]: float(cells[i].strip("*").replace(",", "")) for i in numbers}
            out[name] = {c: v for c, v in found.items() if c not in ("context", "values compared")}
    return {name: row for name, row in out.items() if row}


def changes(before: str, after: str) -> list[str]:
    """Of two pages a line for each figure that differs, those that got slower first."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = Path(scratch) / "before.json", Path(scratch) / "after.json"
        for path, page in zip(paths, (before, after), strict=True):
            path.write_text(json.dumps({"figures": figures(page)}), encoding="utf-8")
        rows = diff_objects(*paths).tables.get("values", [])
    slower, other = [], []
    for row in rows:
        what, a, b = str(row["what"]).removeprefix("figures."), row["a"], row["b"]
        if not isinstance(a, float) or not isinstance(b, float):
            other.append(f"{'new' if a is None else 'gone'}: {what}")
            continue
        worse = (b < a) if any(words in what.lower() for words in FASTER_WHERE_MORE) else (b > a)
        line = f"{'slower' if worse else 'faster'}: {what}: {a:,g} -> {b:,g} ({row['change']})"
        (slower if worse else other).append(line)
    return [*slower, *other]


def write_page(path: Path, text: str) -> None:
    """Writes a benchmark's page, and says on standard error what differs from the one that was there."""
    said: Iterable[str] = ["no page to compare with"]
    if path.exists():
        said = changes(path.read_text(encoding="utf-8"), text) or ["the same figures as before"]
    write_file(path, text)
    print(f"{path.name} against the last results:", *said, sep="\n  ", file=sys.stderr)
