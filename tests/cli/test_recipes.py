"""``shrinkc recipes``: what is shipped can be seen, copied, and the copy used."""

from __future__ import annotations

from pathlib import Path

import pytest

from shrinkc.compression.recipe import load_recipe, shipped

from .conftest import Cli


def test_the_list(cli: Cli) -> None:
    result = cli("recipes")
    assert result.code == 0
    found = cli("recipes", "--json").json["recipes"]
    assert [recipe["name"] for recipe in found] == list(shipped()) != []
    for recipe in found:
        assert recipe["about"] in result.out
        assert 20 < len(recipe["about"]) < 160 and "#" not in recipe["about"]
        stages = [stage.name for stage in load_recipe(recipe["name"]).stages]
        assert recipe["stages"] == stages
        assert f"stages: {', '.join(stages)}" in result.out
        assert recipe["budget"] == (recipe["name"] != "reference")
    assert result.out.count("by its budget") == 4


def test_one_is_printed_and_copied(cli: Cli, tmp_path: Path) -> None:
    for name, file in shipped().items():
        text = file.read_text(encoding="utf-8")
        assert cli("recipes", name).out == text
        assert cli("recipes", name, "--json").json["text"] == text
        copy = tmp_path / f"{name}.toml"
        result = cli("recipes", name, "-o", copy)
        assert (result.code, result.out) == (0, "") and str(copy) in result.words
        assert load_recipe(str(copy)).stages == load_recipe(name).stages


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tiny"], 16, "shrinkc has no recipe 'tiny'. Hint: allowed:"),
        (["-o", "new.toml"], 2, "-o copies one recipe"),
        (["half", "-o", "mine.toml"], 40, "mine.toml exists already"),
        (["half", "-o", "folder"], 40, "folder exists already"),
        (["half", "-o", "nowhere/new.toml"], 40, "nowhere does not exist"),
    ],
)
def test_refused(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("# mine")
    (tmp_path / "folder").mkdir()
    result = cli("recipes", *arguments)
    assert (result.code, result.out) == (code, "") and said in result.words
    assert (tmp_path / "mine.toml").read_text() == "# mine" and not (tmp_path / "new.toml").exists()
