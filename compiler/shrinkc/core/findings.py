"""Facts and tables about a subject, as text and as JSON."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shrinkc.core.words import show_size

Row = Mapping[str, object]
Key = tuple[tuple[str, object], ...]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|(?<=layer)\d+(?=\.)")


@dataclass
class Findings:
    """Facts and tables about ``name``, which is a ``kind``.  Keys of facts, tables and columns are JSON keys.

    A column ``bytes`` is shown with units in text."""

    kind: str
    name: str
    facts: dict[str, object] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return lines of text."""
        out = [f"{self.name}: {self.kind}"]
        width = max((len(key) for key in self.facts), default=0)
        out += [f"  {_label(key):<{width}}  {_shown(key, v)}" for key, v in self.facts.items()]
        for title, rows in self.tables.items():
            out += ["", _label(title), *_table(rows)]
        return out + [f"  note: {note}" for note in self.notes]

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return {
            "kind": self.kind, "name": self.name, **self.facts, **self.tables, "notes": self.notes,
        }  # fmt: skip


def starred(name: str) -> str:
    """Replace the layer's number by a star: ``blk.3.ffn_up.weight`` becomes ``blk.*.ffn_up.weight``."""
    return _NUMBER.sub("*", name)


def alike(rows: Iterable[Row]) -> list[Row]:
    """Merge rows that differ only in ``bytes``; return rows with ``count``, summed bytes and ``share`` of all, in the
    order of first occurrence."""
    sizes: dict[Key, list[int]] = {}
    for row in rows:
        key = tuple((k, None if k == "bytes" else v) for k, v in row.items())
        assert isinstance(row["bytes"], int)
        sizes.setdefault(key, []).append(row["bytes"])
    whole = max(sum(map(sum, sizes.values())), 1)
    return [
        {**dict(key), "bytes": sum(each), "count": len(each), "share": round(sum(each) / whole, 4)}
        for key, each in sizes.items()
    ]


def _label(key: str) -> str:
    return key.replace("_", " ")


def _table(rows: Sequence[Row]) -> list[str]:
    heads = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    cells = [[_shown(head, row.get(head, "")) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(map(_label, heads), *cells, strict=True)]
    right = [
        all(isinstance(row.get(head, 0), (int, float)) and not isinstance(row.get(head), bool) for row in rows)
        for head in heads
    ]  # fmt: skip
    return [
        "  " + "  ".join(
            f"{text:>{w}}" if r else f"{text:<{w}}"
            for text, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [[_label(head) for head in heads], *cells]
    ]  # fmt: skip


def _shown(key: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and key == "share":
        return f"{100 * value:.1f} %"
    if isinstance(value, int):
        return show_size(value) if key in ("bytes", "used", "available") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
