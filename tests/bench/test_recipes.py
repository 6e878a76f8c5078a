"""The recipes of the compression results can be read."""

from __future__ import annotations

from pathlib import Path

import compression
import pytest
from figures import ROOT

from shrinkc.compression.recipe import parse_recipe, read_tables

RECIPES = {path.stem: path.read_text() for path in (ROOT / "examples/bench/recipes").glob("*.toml")}
COMMON = compression.COMMON.format(data="DATA", samples=16)
RECIPES |= {name: COMMON + stages for name, stages in compression.CONFIGURATIONS.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPES[name], encoding="utf-8")
    tables, base, _ = read_tables(str(file))
    assert len(parse_recipe(tables, base=base).stages) >= 2


def test_rows_are_of_stages_that_run() -> None:
    for _, configuration, stage, *_ in compression.ROWS:
        assert stage == "source" or f"[{stage}]" in compression.CONFIGURATIONS[configuration]
