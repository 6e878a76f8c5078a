"""A new stage takes two files: its own (``clip.py``) and an entry in stages/kinds.py.  Recipes, preflight, runs and
records then support it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from helpers.tiny_gptq import tiny_gptq
from shrinkc.compression.recipe import parse_recipe
from shrinkc.compression.run import compress
from shrinkc.compression.stages.kinds import KINDS
from shrinkc.compression.steps import read_step
from shrinkc.core.errors import BadRecipe, UnsupportedModel
from shrinkc.core.progress import Silent

from .clip import CLIP

pytest.importorskip("torch")

pytestmark = pytest.mark.slow
LAYER = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the stage as an entry in stages/kinds.py does."""
    assert "clip" not in KINDS
    monkeypatch.setitem(KINDS, "clip", CLIP)


def test_a_recipe_runs_it(stories: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"clip": {"limit": 2.0}, "clip-2": {"layers": 2}, "depth": {"layers": [4]}}
    )
    dry = compress(str(stories), tmp_path / "o", recipe, reporter=Silent(), dry_run=True)
    assert dry.estimate.startswith("estimate: about")
    result = compress(str(stories), tmp_path / "o", recipe, reporter=Silent())
    assert [row.name for row in result.rows] == ["00-source", "01-clip", "02-clip-2", "03-depth"]
    record = read_step(tmp_path / "o" / "01-clip")
    assert record.stage == "clip" and record.settings == {"limit": 2.0, "layers": 1}
    before, after = (
        load_file(d / "model.safetensors") for d in (stories, tmp_path / "o" / "01-clip")
    )
    limit = 2.0 * before[LAYER.format(0)].std()
    assert abs(before[LAYER.format(0)]).max() > 1.1 * limit > abs(after[LAYER.format(0)]).max()
    assert (before[LAYER.format(1)] == after[LAYER.format(1)]).all()
    assert record.parameters["beyond"] > 100


def test_it_is_refused_as_others_are(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"\[clip\] limit = 0.5; 1 and more is allowed"):
        parse_recipe({"clip": {"limit": 0.5}})
    with pytest.raises(BadRecipe, match=r"no table of a recipe \(did you mean 'clip'\?\)"):
        parse_recipe({"clp": {}})
    out = tmp_path / "o"
    with pytest.raises(BadRecipe, match=r"\[clip\] layers = 9 of 5"):
        compress(str(stories), out, parse_recipe({"clip": {"layers": 9}}), reporter=Silent())
    tiny_gptq(tmp_path / "q", bits=4, group=32)
    with pytest.raises(UnsupportedModel, match=r"\[clip\] works on float models"):
        compress(str(tmp_path / "q"), out, parse_recipe({"clip": {}}), reporter=Silent())
