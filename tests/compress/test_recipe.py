"""Recipes: reading, and refusal of wrong ones."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shrinkc.compression.recipe import load_recipe, parse_recipe, parse_toml, shipped
from shrinkc.core.errors import BadRecipe

DEPTH = {"depth": {"remove": 2}}


def refusal(text: str, *assignments: str) -> str:
    with pytest.raises(BadRecipe) as caught:
        parse_recipe(tomllib.loads(text), assignments)
    assert caught.value.exit_code == 16
    return str(caught.value)


def test_stages_come_in_the_order_of_the_file() -> None:
    text = "[lora]\nrank = 4\n[depth]\nremove = 1\n[lora-2]\nrank = 8\n[run]\nseed = 7\n"
    recipe = parse_recipe(tomllib.loads(text))
    assert [(s.name, s.kind) for s in recipe.stages] == [
        ("lora", "lora"),
        ("depth", "depth"),
        ("lora-2", "lora"),
    ]
    assert recipe.stages[2].settings.rank == 8 and recipe.run.seed == 7


SHIPPED = ("chip", "flash", "half", "quarter", "reference")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_whole(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.stages
    assert tuple(shipped()) == SHIPPED


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "reference"])
def test_shipped_recipes_fit_any_model(name: str) -> None:
    """A budget chooses everything that depends on the model; the text is self-generated and English."""
    recipe = load_recipe(name)
    assert recipe.budget is not None and recipe.budget.target_bytes is None
    gptq = [stage.settings for stage in recipe.stages if stage.kind == "gptq"]
    assert all(not settings.modules and settings.group_size == (64, 32, 16) for settings in gptq)
    generated, english = recipe.calibration.text
    assert generated.startswith("self:") and english.startswith("nltk:brown,")


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "reference"])
def test_fast_trains_less(name: str) -> None:
    whole, fast = load_recipe(name), load_recipe(name, fast=True)
    assert fast.self_generated_tokens() < whole.self_generated_tokens()
    for before, after in zip(whole.stages, fast.stages, strict=True):
        if hasattr(before.settings, "samples") and before.kind != "vocabulary":
            assert after.settings.samples < before.settings.samples
    assert load_recipe(name, ["run.seed=3"], fast=True).run.seed == 3


def test_fast_changes_only_what_the_recipe_has(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"no table \[fast\], so --fast would change nothing"):
        load_recipe("reference", fast=True)
    with pytest.raises(BadRecipe, match=r"\[fast\] qat = .*keys of tables that the recipe has"):
        load_recipe({"gptq": {}, "fast": {"qat": {"samples": 3}}}, fast=True)
    with pytest.raises(BadRecipe, match=r"\[gptq\] bitz = 3: there is no such key"):
        load_recipe({"gptq": {}, "fast": {"gptq": {"bitz": 3}}}, fast=True)
    assert load_recipe({"gptq": {}, "fast": {"gptq": {"bits": 3}}}).stages[0].settings.bits == 4


def test_text_takes_the_place_of_all_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "gptq": {}, "lora": {"text": "a.txt"}, "qat": {}, "calibration": {"samples": 3},
        "evaluate": {"text": "test.txt"},
    }  # fmt: skip
    recipe = load_recipe(given, text=["self:20k", "own.txt"])
    wanted = ("self:20k", str(tmp_path / "own.txt"))
    assert recipe.calibration.text == wanted and recipe.calibration.samples == 3
    lora, qat = (next(s.settings for s in recipe.stages if s.kind == k) for k in ("lora", "qat"))
    assert (lora.text, qat.text) == (wanted, ())
    assert recipe.evaluate is not None and recipe.evaluate.text == str(tmp_path / "test.txt")
    assert load_recipe("quarter", text=["own.txt"]).calibration.text == (wanted[1],)


def test_the_reference_recipe_has_the_settings_of_the_work() -> None:
    depth, lora, gptq, eora = (stage.settings for stage in load_recipe("reference").stages)
    assert (depth.method, depth.remove, depth.protect_first, depth.protect_last) == (
        "perplexity", 2, 4, 2,
    )  # fmt: skip
    assert (lora.rank, lora.dropout, lora.samples, lora.batch) == (8, 0.1, 8192, 8)
    assert lora.modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (gptq.bits, gptq.group_size, gptq.sym, eora.rank) == (4, 128, True, 32)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_effective_recipe_reads_back_as_itself(name: str) -> None:
    recipe = load_recipe(name)
    assert parse_toml(recipe.to_toml(), name=name) == recipe


@pytest.fixture
def piped() -> Iterator[Callable[[str], str]]:
    """Return a function: piped(text) gives the name of a pipe with the text, as a shell does for ``<(command)``."""
    ends: list[int] = []

    def make(text: str) -> str:
        read, write = os.pipe()
        ends.append(read)
        os.write(write, text.encode())
        os.close(write)
        return f"/dev/fd/{read}"

    yield make
    for end in ends:
        os.close(end)


def test_a_recipe_through_a_pipe(
    piped: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(piped("[depth]\nremove = 2\n[evaluate]\ntext = 'a.txt'\n"))
    assert recipe.stages[0].settings.remove == 2
    # a pipe has no folder, so paths are relative to the working directory
    assert recipe.evaluate is not None and recipe.evaluate.text == str(tmp_path / "a.txt")
    with pytest.raises(BadRecipe, match="not a readable TOML"):
        load_recipe(piped("depth ="))
    with pytest.raises(BadRecipe, match="there is no recipe"):
        load_recipe(str(tmp_path))


def test_a_text_through_a_pipe_is_refused(piped: Callable[[str], str]) -> None:
    pipe = piped("Once upon a time.")
    with pytest.raises(BadRecipe, match=f"{pipe} is a pipe, which can be read only once"):
        load_recipe("quarter", [f"calibration.text={pipe}"])


@pytest.mark.parametrize("name", ["a\0b", "~nobody-of-this-name/a"])
def test_a_text_of_an_impossible_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="is no name of a file"):
        parse_recipe({**DEPTH, "evaluate": {"text": name}}, base=tmp_path)


def test_tables_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(BadRecipe, match="not a readable TOML"):
        load_recipe(str(tmp_path / "r.toml"))


def test_texts_with_quotes_and_backslashes_survive(tmp_path: Path) -> None:
    text = 'a "quoted" \\ path\twith é'
    recipe = parse_recipe({**DEPTH, "evaluate": {"samples": [text]}})
    assert parse_toml(recipe.to_toml()).evaluate == recipe.evaluate


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[depth]\nremov = 1\n", "[depth] remov = 1: there is no such key (did you mean 'remove'?)"),
        ("[deph]\nremove = 1\n", "[deph] is no table of a recipe (did you mean 'depth'?)"),
        ("[depth]\nremove = 'x'\n", "[depth] remove = 'x'; a whole number is allowed"),
        ("[depth]\nremove = true\n", "[depth] remove = True; a whole number is allowed"),
        ("[depth]\nremove = 0\n", "[depth] remove = 0; 1 and more is allowed"),
        ("[depth]\nremove = 1\nkeep = 2\n", "exactly one of remove, keep, layers is needed; remove and"),
        ("[depth]\n", "exactly one of remove, keep, layers is needed; none of them is given"),
        ("[depth]\nlayers = [1, 1]\n", "each layer once"),
        ("[depth]\nremove = 1\nmethod = 'best'\n", "method = 'best'; perplexity, taylor, magnitude"),
        ("[lora]\nrank = 8\ntargets = ['q']\n", "targets = 'q'; q_proj, k_proj"),
        ("[lora]\ndropout = 1.5\n", "[lora] dropout = 1.5; 0 to 0.9 is allowed"),
        ("[lora]\nbatch = 8\nmicro_batch = 3\n", "a divisor of batch = 8"),
        ("[lora]\nsamples = 1\nepochs = 1.0\n", "one of samples and epochs"),
        ("[width]\n", "one of ffn, ffn_keep and kv_groups is needed"),
        ("[width]\nffn = 0.5\nffn_keep = 3\n", "one of ffn and ffn_keep"),
        ("[width]\nmethod = 'n:m'\nn = 4\nm = 4\n", "[width] n = 4; 1 to 3 is allowed"),
        ("[width]\nmethod = 'n:m'\n", "needs n and m"),
        ("[width]\nffn = 0.5\nn = 1\n", "n and m belong to method = 'n:m'"),
        ("[depth]\nremove = 1\n[run]\nthreads = 0\n", "[run] threads = 0; 1 to 1024 is allowed"),
        ("[depth]\nremove = 1\n[budget]\nfit = 'siracusa'\ntarget_bytes = 1\n", "exactly one of"),
        ("[budget]\ntarget_bytes = '64 MB'\n", "'64 MB' is no size"),
        ("seed = 1\n[depth]\nremove = 1\n", "seed = 1 lies outside of any table"),
        ("[run]\nseed = 1\n", "the recipe has no stage"),
    ],
)  # fmt: skip
def test_refusals_name_the_problem(text: str, words: str) -> None:
    assert words in refusal(text)


def test_numbers_that_are_whole_may_be_given_for_fractions() -> None:
    assert parse_recipe({"lora": {"alpha": 16}}).stages[0].settings.alpha == 16.0


def test_set() -> None:
    recipe = parse_recipe(
        {"depth": {"remove": 1}},
        ["depth.remove=3", "depth.method=taylor", "run.seed=5", "evaluate.samples=['a']"],
    )
    assert recipe.stages[0].settings.remove == 3
    assert recipe.stages[0].settings.method == "taylor"
    assert recipe.run.seed == 5
    assert recipe.evaluate is not None and recipe.evaluate.samples == ("a",)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("depth.remov=1", "did you mean 'remove'?"),
        ("dept.remove=1", "the recipe has no table [dept] (did you mean 'depth'?)"),
        ("lora.rank=4", "the recipe has no table [lora]"),
        ("depth.remove", "is no assignment"),
        ("remove=1", "is no assignment"),
        ("depth.remove=two", "remove = 'two'; a whole number"),
    ],
)
def test_set_refuses_as_the_file_does(assignment: str, words: str) -> None:
    assert words in refusal("[depth]\nremove = 1\n", assignment)


def test_all_problems_come_in_one_refusal() -> None:
    text = "seed = 1\n[deph]\n[lora]\nrank = 0\nalpha = 'x'\nbatch = -2\n"
    said = refusal(text, "lora.dropout=1.5", "lora.ran=4", "finetune_scales.samples=9", "lora")
    found = [
        "seed = 1 lies outside of any table",
        "--set finetune_scales.samples=9: the recipe has no table [finetune_scales]",
        "--set lora is no assignment",
        "[deph] is no table of a recipe (did you mean 'depth'?)",
        "[lora] alpha = 'x'; a number is allowed",
        "[lora] ran = 4: there is no such key (did you mean 'rank'?)",
        "[lora] batch = -2; 1 and more is allowed",
        "[lora] rank = 0; 1 to 4096 is allowed",
        "[lora] dropout = 1.5; 0 to 0.9 is allowed",
    ]
    assert said.startswith(f"{len(found)} problems: ")
    assert [text for text in found if text not in said] == []


def test_a_value_is_not_compared_with_the_default_of_a_wrong_one() -> None:
    said = refusal("[lora]\nbatch = -2\nmicro_batch = 16\n")
    assert "batch = -2" in said and "divisor" not in said


def test_a_budget_in_bytes() -> None:
    recipe = parse_recipe({"budget": {"target_bytes": "1.5MiB"}})
    assert recipe.budget is not None and recipe.budget.bytes == 3 << 19


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here").mkdir()
    file = tmp_path / "recipes" / "mine.toml"
    file.write_text("[depth]\nremove = 1\n[calibration]\ntext = ['a.txt', 'hub:x/y']\n")
    monkeypatch.chdir(tmp_path / "here")
    assert load_recipe(str(file)).calibration.text == (
        str(tmp_path / "recipes" / "a.txt"),
        "hub:x/y",
    )
    changed = load_recipe(str(file), ["calibration.text=b.txt"])
    assert changed.calibration.text == (str(tmp_path / "here" / "b.txt"),)


def test_no_such_recipe_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe, match="no recipe 'refrence'.*chip, flash, half, quarter, reference"
    ):
        load_recipe("refrence")
    (tmp_path / "x.toml").write_text("[depth\n")
    with pytest.raises(BadRecipe, match="not a readable TOML file"):
        load_recipe(str(tmp_path / "x.toml"))


def test_a_recipe_from_python(tmp_path: Path) -> None:
    """A dictionary with Python values means the same as the file, and so does its recipe."""
    given = {"calibration": {"text": (tmp_path / "a.txt",)}, "gptq": {"bits": 4}}
    file = tmp_path / "r.toml"
    file.write_text('[calibration]\ntext = ["a.txt"]\n[gptq]\nbits = 4\n')
    made, read = load_recipe(given), load_recipe(file)
    assert made.to_toml() == read.to_toml()
    assert made == replace(read, name="recipe") == load_recipe(made)
    changed = load_recipe(made, ["gptq.bits=3"])
    assert changed.to_toml() == load_recipe(file, ["gptq.bits=3"]).to_toml() != made.to_toml()
    assert given["gptq"] == {"bits": 4}
    with pytest.raises(BadRecipe, match="lies outside of any table"):
        load_recipe({"bits": 4})  # type: ignore[dict-item]
    with pytest.raises(BadRecipe, match="no table of a recipe"):
        load_recipe({"gtpq": {"bits": 4}})
