"""The generated tables of the reference pages are those of the code."""

from __future__ import annotations

import runpy

from docs.blocks import ROOT

GENERATE = runpy.run_path(str(ROOT / "docs/generate.py"))


def test_tables_are_current_and_complete() -> None:
    assert GENERATE["outdated"]() == [], "python docs/generate.py"
    assert GENERATE["missing"]() == set()
