"""What is said when a model does not fit, and that the alternatives really fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
    options = ["--l1", "24KiB", "--context", "1024", "--engines", "cores"]
    changes = offered(cli("plan", wide, *options))
    assert {c[0] for c in changes} >= {"--context", "--l1"}
    for change in changes:
        assert cli("plan", wide, *options, *change).code == 0, change


def test_the_context_offered_is_the_longest(cli: Cli, wide: Path) -> None:
    base = ["plan", wide, "--l1", "24KiB", "--engines", "cores"]
    context = next(int(c[1]) for c in offered(cli(*base, "--context", 1024)) if c[0] == "--context")
    assert context % 8 == 0
    assert cli(*base, "--context", context).code == 0
    assert cli(*base, "--context", context + 8).code == 30


@pytest.mark.slow
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
    assert ["--fit"] in offered(result) and ["--bits", "4"] in offered(result)


def test_fit_is_offered_in_place_of_widths_that_are_too_large(cli: Cli, tmp_path: Path) -> None:
    model = sizes(tmp_path, LARGE)
    given = ["--context", "64", "--bits", "8", "--embedding-bits", "8"]
    assert "--fit without --bits and --embedding-bits; --bits 3" in cli("plan", model, *given).words
    assert cli("plan", model, "--context", "64", "--fit").code == 0


@pytest.mark.slow
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
    for memory in ("L1", "L2", "HyperRAM", "Weights"):
        assert f"{memory}: need" in result.words


# --- combinations ---------------------------------------------------------------------------

SMOL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192,
}  # fmt: skip
LARGE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 20,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "max_position_embeddings": 4096,
}  # fmt: skip
VAST = {
    **LARGE, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 8,
    "vocab_size": 80_000,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 4096,
}  # fmt: skip


def sizes(folder: Path, fields: dict[str, Any]) -> Path:
    """A configuration alone, which is enough to plan."""
    file = folder / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **fields}))
    return file


def without(options: list[str], change: list[str]) -> list[str]:
    """The command line's options that ``change`` leaves."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for name, value in pairs if name not in change for word in (name, value)]


LONG = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8,
    "head_dim": 64, "vocab_size": 600, "max_position_embeddings": 4096,
}  # fmt: skip

ALL = "--context --bits --embedding-bits --l1"


@pytest.mark.parametrize(
    ("fields", "options", "changes"),
    [
        pytest.param(
            SMOL,
            "--context 1000 --l1 72KiB --engines cores",
            ["--context", "--l1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(SMOL, "--context 4096 --l1 64KiB", ["--l1"], marks=pytest.mark.slow),
        pytest.param(
            SMOL,
            "--l1 51KiB --bits 4 --embedding-bits 4 --group-size 32",
            ["--context", "--l1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SMOL,
            "--l1 55KiB --bits 4 --embedding-bits 4 --group-size 32",
            ["--context", "--bits", "--l1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            LARGE,
            "--context 4000 --bits 3 --hyperram 32MiB",
            ["--context", "--kv-bits", "--hyperram"],
            marks=pytest.mark.slow,
        ),
        pytest.param(LARGE, "--context 2", ["--fit", "--bits", "--flash"], marks=pytest.mark.slow),
        pytest.param(
            LARGE,
            "--context 4000 --hyperram 32MiB",
            ["--context --bits"],
            marks=pytest.mark.slow,
        ),
        pytest.param(LARGE, "--context 64 --l1 64KiB", ["--bits --l1"], marks=pytest.mark.slow),
        pytest.param(
            LARGE,
            "--context 4000 --l1 64KiB --hyperram 32MiB",
            ["--context --bits --l1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(VAST, "--context 2", ["--bits --embedding-bits"], marks=pytest.mark.slow),
        pytest.param(
            VAST, "--context 4000 --l1 64KiB --hyperram 8MiB", [ALL], marks=pytest.mark.slow
        ),
        (TINY, "--l1 32KiB --engines cores", ["--context", "--bits", "--l1"]),
        (TINY, "--l1 30KiB", ["--context", "--l1"]),
        (TINY, "--l1 13000 --context 3", ["--l1"]),
        (LONG, "--context 1000 --hyperram 8MiB", ["--context", "--kv-bits", "--hyperram"]),
        (TINY, "--l1 1KiB --context 4000", ["--l1"]),
    ],
)
def test_every_hint_can_be_followed(
    cli: Cli, tmp_path: Path, fields: dict[str, Any], options: str, changes: list[str]
) -> None:
    """As it is written, beside the other options."""
    model, given = sizes(tmp_path, fields), options.split()
    found = offered(cli("plan", model, *given))
    assert [" ".join(change[::2]) for change in found] == changes
    for change in found:
        assert cli("plan", model, *without(given, change), *change).code == 0, change


@pytest.mark.slow
def test_no_more_is_offered_than_is_needed(cli: Cli, tmp_path: Path) -> None:
    model = sizes(tmp_path, LARGE)
    memories = ["--hyperram", "32MiB", "--l1"]
    (found,) = offered(cli("plan", model, "--context", 4000, *memories, "64KiB"))
    assert found == ["--context", "3176", "--bits", "3", "--l1", "124KiB"]
    for one_too_little in (3184, 3, "256KiB"), (3176, 4, "124KiB"), (3176, 3, "120KiB"):
        context, bits, l1 = one_too_little
        assert cli("plan", model, "--context", context, "--bits", bits, *memories, l1).code == 30


@pytest.mark.slow
def test_nothing_makes_it_fit_where_nothing_does(cli: Cli, tmp_path: Path) -> None:
    model = sizes(tmp_path, {**LARGE, "vocab_size": 500_000})
    result = cli("plan", model, "--l1", "48KiB", "--context", 1000)
    assert result.code == 30
    assert "no shorter context, narrower weights or larger L1 makes it fit" in result.words
    extreme = ["--context", 2, "--bits", 2, "--embedding-bits", 2]
    assert cli("plan", model, *extreme).code == 30


@pytest.mark.parametrize("l1", [9000, 14000, 20000, 24 * 1024, 64 * 1024])
@pytest.mark.parametrize("context", [2, 9, 256, 4000])
def test_nothing_is_said_only_where_the_extreme_does_not_fit(
    cli: Cli, tmp_path: Path, l1: int, context: int
) -> None:
    model = sizes(tmp_path, TINY)
    result = cli("plan", model, "--l1", l1, "--context", context)
    assert result.code == 0 or offered(result)


def test_groups_of_the_head_are_checked_before_they_are_offered(cli: Cli, tmp_path: Path) -> None:
    """4 bit for a float table takes groups that its inputs may not have."""
    from helpers.tiny_gptq import tiny_gptq

    down = "model.layers.0.mlp.down_proj"
    tiny_gptq(tmp_path / "q", group=32, skip=(down, down.replace("0", "1")), max_position=4096)
    options = ["--group-size", "48", "--l1", "12KiB", "--context", "500"]
    result = cli("plan", tmp_path / "q", *options)
    for change in offered(result):
        assert "--embedding-bits" not in change
        assert cli("plan", tmp_path / "q", *without(options, change), *change).code == 0


# --- groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "ffn", "options", "groups"),
    [
        (100, 260, "--bits 4 --group-size 32", []),
        (96, 264, "--bits 4 --group-size 32", [24, 12, 8]),
        (96, 264, "--bits 4 --group-size 32 --asymmetric", [24, 12, 8]),
        (96, 264, "--bits 4 --embedding-bits 4 --group-size 5", [24, 12, 8]),
        (96, 264, "--group-size 5", [24, 12, 8]),
    ],
)
def test_groups_that_are_offered_take_fewer_bytes_than_8_bit(
    cli: Cli, tmp_path: Path, hidden: int, ffn: int, options: str, groups: list[int]
) -> None:
    fields = {**TINY, "hidden_size": hidden, "intermediate_size": ffn, "head_dim": 24}
    model, given = sizes(tmp_path, fields), options.split()
    eight = cli("plan", model, "--json").json["weight_bytes"]
    refused = cli("plan", model, *given)
    assert refused.code == 20
    match = re.search(r"that divide all[^:]*: ([^;]*);", refused.words)
    assert match is not None
    assert match[1] == (", ".join(map(str, groups)) or "none of the usual ones")
    shorter = ["--short-last-group"] if "--short-last-group" in refused.words else []
    at = given.index("--group-size")
    for group in groups:
        planned = cli(
            "plan", model, *given[:at], *given[at + 2 :], "--group-size", group, "--json"
        ).json
        assert planned["weight_bytes"] < eight or "--bits" not in given
    if shorter and "--bits" in given:
        assert cli("plan", model, *given, *shorter, "--json").json["weight_bytes"] < eight
