"""What a page is made of: sections of cards, pictures, tables and texts.  All of it is plain text, which
the template escapes; only ``svg`` is markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shrinkc.core.words import show_size

Data = Mapping[str, Any]

NONE = "–"


@dataclass(frozen=True)
class Card:
    """A figure that stands out.  ``share``: of a bar below it, 0 to 1."""

    title: str
    value: str
    note: str = ""
    share: float | None = None
    good: bool | None = None


@dataclass(frozen=True)
class Figure:
    """A picture; ``svg`` is markup that escaped its own words."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Table:
    """Columns that begin with ``#`` hold numbers.  ``folded``: opened by the reader."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """A text by a model, under the name of who wrote it."""

    name: str
    text: str


@dataclass(frozen=True)
class Samples:
    """What several went on with after the same prompt."""

    prompt: str
    texts: Sequence[Text]


@dataclass(frozen=True)
class Section:
    """``said``: a paragraph before pictures and tables.  ``source``: a text as a file has it, ``source_said``
    what it is."""

    id: str
    title: str
    said: str = ""
    source_said: str = ""
    source: str = ""
    cards: Sequence[Card] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Samples] = ()
    notes: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        parts = (self.cards, self.figures, self.tables, self.samples, self.notes)
        return not any(map(len, parts)) and not self.source


def number(value: float | None, digits: int = 0) -> str:
    """With separators for thousands; a dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}"


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Of a fraction."""
    return NONE if value is None else f"{100 * value:{'+' if sign else ''}.{digits}f} %"


def size(value: float | None) -> str:
    return NONE if value is None else show_size(round(value))


def layer_name(layer: int | None) -> str:
    return "in no layer" if layer is None else f"layer {layer}"


def pairs(title: str, found: Iterable[tuple[str, object]], folded: bool = False) -> Table:
    """A table of names and values."""
    said = {None: NONE, True: "yes", False: "no"}
    rows = [(name, said[v] if v is None or isinstance(v, bool) else str(v)) for name, v in found]
    return Table(title, ("", ""), rows, folded)
