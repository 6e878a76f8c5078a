"""What is said when a model does not fit, and that the alternatives really fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama

from .conftest import Cli, Result


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context decides whether it fits a small L1."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    write_tiny_llama(
        folder, hidden=64, intermediate=256, layers=2, heads=4, kv_heads=2, max_position=2048
    )
    return folder


def offered(result: Result) -> list[list[str]]:
    match = re.search(r"checked to fit: (.*)\.$", result.words)
    assert match is not None, result.err
    return [change.split() for change in match[1].split("; ")]


def test_need_have_excess_and_largest(cli: Cli, wide: Path, tmp_path: Path) -> None:
    result = cli("compile", wide, "-o", tmp_path / "out", "--l1", "24KiB", "--context", 1024)
    assert result.code == 30
    match = re.search(r"L1: need (\d+) bytes at least, have (\d+), excess (\d+)", result.words)
    assert match is not None
    need, have, excess = map(int, match.groups())
    assert need - have == excess > 0
    assert "Largest: head_scratch" in result.words
    assert list(tmp_path.iterdir()) == []


def test_every_alternative_fits(cli: Cli, wide: Path) -> None:
    options = ["--l1", "24KiB", "--context", "1024"]
    changes = offered(cli("plan", wide, *options))
    assert {c[0] for c in changes} >= {"--context", "--l1"}
    for change in changes:
        assert cli("plan", wide, *options, *change).code == 0, change


def test_the_context_offered_is_the_longest(cli: Cli, wide: Path) -> None:
    base = ["plan", wide, "--l1", "24KiB"]
    context = next(int(c[1]) for c in offered(cli(*base, "--context", 1024)) if c[0] == "--context")
    assert context % 8 == 0
    assert cli(*base, "--context", context).code == 0
    assert cli(*base, "--context", context + 8).code == 30


def test_too_many_weights(cli: Cli, tmp_path: Path) -> None:
    """Sizes alone decide: the weights are not even there."""
    write_tiny_llama(
        tmp_path / "big", vocab=600,
        config={
            "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20,
            "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64,
            "max_position_embeddings": 4096,
        },
    )  # fmt: skip
    (tmp_path / "big/model.safetensors").unlink()
    result = cli("plan", tmp_path / "big", "--context", 64)
    assert result.code == 30
    assert re.search(r"Weights: need \d+ bytes, have \d+ .*excess \d+", result.words)
    for change in offered(result):
        assert cli("plan", tmp_path / "big", "--context", 64, *change).code == 0
    assert ["--bits", "4"] in offered(result)


def test_all_levels_that_lack_are_named(cli: Cli, tmp_path: Path) -> None:
    write_tiny_llama(
        tmp_path / "big", vocab=600,
        config={
            "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 4096,
        },
    )  # fmt: skip
    (tmp_path / "big/model.safetensors").unlink()
    result = cli("plan", tmp_path / "big", "--context", 4000)
    assert result.code == 30
    assert "L1: need" in result.words and "L2: need" in result.words
    assert "Weights: need" in result.words
