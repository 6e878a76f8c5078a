"""Models of other families through the command line: compiled and run, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tiny_families import write_family, write_family_gguf
from shrinkc.model import FAMILIES

from .conftest import Cli

Needs = Callable[..., None]


def test_a_qwen_runs(cli: Cli, tmp_path: Path, needs: Needs) -> None:
    """Python makes ids of the prompt; the program itself says what it does not know."""
    needs("cc", "make")
    write_family(tmp_path / "qwen", "qwen2")
    out = tmp_path / "out"
    assert cli("compile", tmp_path / "qwen", "-o", out, "--context", 24).code == 0
    result = cli("run", out, "--prompt", "a the", "--tokens", 8)
    assert result.code == 0, result.err
    assert "\nverified bit for bit: " in result.err


def test_a_window_that_holds_the_context(cli: Cli, tmp_path: Path) -> None:
    write_family(tmp_path / "m", "mistral", sliding_window=48)
    result = cli("plan", tmp_path / "m", "--context", 48, "--json")
    assert result.code == 0, result.err
    note = "the sliding window of 48 positions holds all 48 of the program, so it is left out"
    assert note in result.json["notes"]


def test_a_window_that_does_not(cli: Cli, tmp_path: Path, needs: Needs) -> None:
    needs("cc", "make")
    write_family(tmp_path / "m", "mistral", sliding_window=9)
    out = tmp_path / "out"
    assert cli("compile", tmp_path / "m", "-o", out, "--context", 49).code == 0
    result = cli("run", out, "--prompt", "a the hour of all", "--tokens", 20)
    assert result.code == 0, result.err
    assert "\nverified bit for bit: " in result.err


# llama.cpp calls Mistral llama as well, and without a window it is one
@pytest.mark.parametrize(
    ("family", "form"),
    [
        (family, form)
        for family in FAMILIES
        for form in ("hf", "gguf")
        if family != "llama" and (family, form) != ("mistral", "gguf")
    ],
)
def test_compression_is_for_llamas(cli: Cli, tmp_path: Path, family: str, form: str) -> None:
    model = write_family(tmp_path / "m", family)
    path = tmp_path / "m"
    if form == "gguf":
        path = tmp_path / "m.gguf"
        write_family_gguf(path, family, model)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[depth]\nlayers = [0]\n")
    result = cli("compress", path, "-o", tmp_path / "out", "--recipe", recipe)
    assert result.code == 11, result.err
    assert f"model_type = '{family}'; llama can be loaded here" in result.words
    assert not (tmp_path / "out").exists()


def test_compression_knows_no_biases(cli: Cli, tmp_path: Path) -> None:
    write_family(tmp_path / "m", "llama", attention_bias=True)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[depth]\nlayers = [0]\n")
    result = cli("compress", tmp_path / "m", "-o", tmp_path / "out", "--recipe", recipe)
    assert result.code == 11, result.err
    assert "work on LLaMA models without biases, and this is one with biases" in result.words


def test_a_mixture_of_experts(cli: Cli, tmp_path: Path) -> None:
    write_family(tmp_path / "m", "qwen2")
    file = tmp_path / "m" / "config.json"
    changed = {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed, "num_experts": 4}))
    result = cli("plan", tmp_path / "m")
    assert result.code == 11
    assert "not supported: architectures = ['Qwen2MoeForCausalLM'], model_type" in result.words
    assert "Hint: supported: llama (LlamaForCausalLM), mistral" in result.words
    assert "num_experts" not in result.words, "judged by the rules of another architecture"
