"""A report as one file of HTML that needs nothing else: no library, no request, no script to be read."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from shrinkc.core.artifact import REPORT
from shrinkc.core.resources import resource
from shrinkc.report import compiled, compressed
from shrinkc.report.parts import Data
from shrinkc.report.svg import ON_DARK

_SECTIONS = {"compiled directory": compiled.sections, "compression run": compressed.sections}


def page(data: Data) -> str:
    """The page of a report's ``data``.  The same data give the same bytes."""
    folder = resource("templates")
    style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    found = [section for section in _SECTIONS[data["kind"]](data) if not section.empty]
    text: str = _template().render(
        data=data, sections=found, style=Markup(style), script=Markup(script),
        script_hash=_hash(script), on_dark=ON_DARK, format=REPORT,
    )  # fmt: skip
    return text


def _hash(script: str) -> str:
    """What the page's policy calls the one script that may run."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


@cache
def _template() -> Any:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resource("templates"))),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return env.get_template("report.html.j2")
