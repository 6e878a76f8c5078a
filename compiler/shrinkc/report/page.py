"""Elements of a report page, and output as JSON and as one self-contained HTML file.

The page needs no library, request or script to be read.  All text is plain and escaped by the template; only
pictures are markup, and they escape their own text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import shrinkc
from shrinkc.core.artifact import REPORT, REPORTS
from shrinkc.core.errors import UsageError
from shrinkc.core.output import check_file, write_file
from shrinkc.core.progress import Reporter
from shrinkc.core.resources import resource
from shrinkc.core.words import show_size
from shrinkc.pictures.svg import ON_DARK

VERSION = 2
NONE = "–"

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Card:
    """Key figure.  ``shown``: text on the page.  ``value`` and ``also``: JSON.  ``share``: length of a bar below it,
    0 to 1."""

    key: str
    title: str
    shown: str
    value: Value
    note: str = ""
    share: float | None = None
    good: bool | None = None
    also: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """Column of a table.  ``key``: name in JSON, and title (with spaces) if ``title`` is empty.  ``form``: formats a
    number, aligned right (None: text, aligned left).  ``none``: text for a missing value."""

    key: str
    form: Callable[[Any], str] | None = None
    title: str = ""
    none: str = NONE

    @property
    def name(self) -> str:
        return self.title or self.key.replace("_", " ")

    def shown(self, value: Value) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return self.none if value is None else (self.form or str)(value)


@dataclass(frozen=True)
class Table:
    """Table of a page.  ``folded``: collapsed until the reader opens it."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    folded: bool = False

    @property
    def shown(self) -> list[int]:
        """Return the indices of columns with at least one value."""
        every = range(len(self.columns))
        return [i for i in every if any(row[i] is not None for row in self.rows)]


@dataclass(frozen=True)
class Figure:
    svg: str
    caption: str


@dataclass(frozen=True)
class Source:
    """Verbatim text of a file.  ``said``: its description."""

    key: str
    said: str
    text: str


@dataclass(frozen=True)
class Samples:
    """Continuations of a prompt by several models, by name."""

    prompt: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """Section of a page.  ``said``: a paragraph before pictures and tables."""

    key: str
    title: str
    said: str = ""
    source: Source | None = None
    cards: Sequence[Card] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Samples] = ()
    notes: Sequence[str] = ()

    def __bool__(self) -> bool:
        parts = (self.source, self.cards, self.figures, self.tables, self.samples, self.notes)
        return any(map(bool, parts))

    def to_json(self) -> dict[str, object]:
        """Return the contents of cards, tables and texts by key."""
        out: dict[str, object] = {}
        for card in self.cards:
            out |= {key: _plain(v) for key, v in ({card.key: card.value} | {**card.also}).items()}
        for table in self.tables:
            keys = [column.key for column in table.columns]
            out[table.key] = [dict(zip(keys, map(_plain, row), strict=True)) for row in table.rows]
        if self.source is not None:
            out[self.source.key] = self.source.text
        if self.samples:
            out["samples"] = [
                {"prompt": s.prompt, "texts": [{"name": n, "text": t} for n, t in s.texts]}
                for s in self.samples
            ]
        return out


def _plain(value: Value) -> Value:
    """Round a float to nine significant digits."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Page:
    """Page about ``name`` in ``directory``.  The first section is the verdict."""

    kind: str
    name: str
    directory: str
    sections: Sequence[Section]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        """Return the facts as a JSON object."""
        return {
            "format": REPORT, "version": VERSION, "shrinkc": shrinkc.__version__, "kind": self.kind,
            "name": self.name, "directory": self.directory, "notes": list(self.notes),
            **{section.key: section.to_json() for section in self.sections if section},
        }  # fmt: skip

    def to_html(self) -> str:
        """Return the HTML.  Equal pages give equal bytes."""
        folder = resource("templates")
        style, script = (
            (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
        )
        text: str = _template().render(
            page=self, sections=[section for section in self.sections if section], style=Markup(style),
            script=Markup(script), script_hash=_hash(script), on_dark=ON_DARK, format=REPORT,
            version=shrinkc.__version__,
        )  # fmt: skip
        return text


@dataclass(frozen=True)
class Reported:
    """A written report.

    Attributes:
        html: The page.
        json: The same facts as JSON.
        bytes: Size of the page in bytes.
        page: Contents of both files.
    """

    html: Path
    json: Path
    bytes: int
    page: Page

    def __repr__(self) -> str:
        return (
            f"<Reported {self.html}: {self.page.name}, {self.page.kind}, {show_size(self.bytes)}>"
        )

    def lines(self) -> list[str]:
        """Return a summary."""
        return [
            *(f"note: {note}" for note in self.page.notes),
            f"{self.html}: {self.page.name}, {self.page.kind}, {show_size(self.bytes)}; "
            f"the same as JSON: {self.json}",
        ]

    def to_json(self) -> dict[str, object]:
        """Return the facts as a JSON object."""
        return {
            "html": str(self.html), "json": str(self.json), "bytes": self.bytes, "kind": self.page.kind,
            "name": self.page.name, "verdict": self.page.sections[0].to_json(), "notes": list(self.page.notes),
        }  # fmt: skip


def write_page(page: Page, directory: Path, html: Path | None, reporter: Reporter) -> Reported:
    """Write ``page`` to ``html`` (None: report.html in ``directory``) and its JSON next to it, each completely or not
    at all.  Raises OutputError."""
    html = directory / REPORTS[0] if html is None else html
    beside = html.with_suffix(".json")
    if beside == html:
        raise UsageError(f"-o {html} is the name of the page's JSON.", "give a name in .html.")
    check_file(html)
    check_file(beside)
    with reporter.stage("drawing the report"):
        text = _text(page.to_html())
    data = json.dumps(page.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    write_file(beside, _text(data) + "\n")
    write_file(html, text)
    return Reported(html, beside, len(text.encode("utf-8")), page)


def _text(text: str) -> str:
    """Replace unpaired surrogates, which UTF-8 cannot represent, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _hash(script: str) -> str:
    """Return the hash of ``script`` for the page's content security policy."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


@cache
def _template() -> jinja2.Template:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resource("templates"))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return env.get_template("report.html.j2")


# ---- formats of values ----


def number(value: float, digits: int = 0) -> str:
    """Format a number with thousands separators."""
    return f"{value:,.{digits}f}"


def digits(count: int) -> Callable[[float], str]:
    """Return a format with ``count`` digits after the point."""
    return lambda value: number(value, count)


def percent(value: float, digits: int = 1) -> str:
    """Format a fraction in percent."""
    return f"{100 * value:.{digits}f} %"


def change(value: float) -> str:
    """Format a fraction in percent, with its sign."""
    return f"{100 * value:+.1f} %"


def size(value: float) -> str:
    return show_size(round(value))
