"""Models of other families through the command line: compiled and run, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_families import write_family, write_family_gguf
from shrinkc.importer import load_model
from shrinkc.importer.model import dense
from shrinkc.model import FAMILIES, family_of

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


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_compression_takes_every_family(cli: Cli, tmp_path: Path, family: str, form: str) -> None:
    """The remaining layer computes what it computed, and the configuration stays."""
    config: dict[str, Any] = (
        {"sliding_window": 5} if family in ("mistral", "gemma3_text") and form == "hf" else {}
    )
    model = write_family(tmp_path / "m", family, **config)
    path = tmp_path / "m"
    if form == "gguf":
        path = tmp_path / "m.gguf"
        write_family_gguf(path, family, model)
    before = load_model(path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[depth]\nlayers = [0]\n")
    result = cli("compress", path, "-o", tmp_path / "out", "--recipe", recipe)
    assert result.code == 0, result.err
    after = load_model(tmp_path / "out" / "01-depth")
    assert after.config == replace(before.config, num_layers=1)
    found, wanted = after.layers[0], before.layers[1]
    for part in (*family_of(before.config).norms, *family_of(before.config).modules):
        values = dense(getattr(wanted, part.field))
        np.testing.assert_allclose(dense(getattr(found, part.field)), values, rtol=1e-5, atol=1e-6)
    assert found.biases.keys() == wanted.biases.keys()
    for name, bias in wanted.biases.items():
        np.testing.assert_allclose(found.biases[name], bias, rtol=1e-6)


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
