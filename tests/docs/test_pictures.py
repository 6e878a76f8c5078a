"""docs/pictures holds what docs/draw.py draws."""

from __future__ import annotations

import runpy

import pytest

from docs.blocks import ROOT

DRAW = runpy.run_path(str(ROOT / "docs/draw.py"))


@pytest.mark.parametrize("name", DRAW["PICTURES"])
def test_picture(name: str) -> None:
    assert (DRAW["FOLDER"] / f"{name}.svg").read_text("utf-8") == DRAW["PICTURES"][name]()
