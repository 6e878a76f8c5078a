"""Damaged models, impossible options and outputs that cannot be written: each its own refusal."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import UsageError

from .conftest import Cli

Break = Callable[[Path], None]


def truncate(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def nan(model: Path) -> None:
    bad = np.ones((16, 16), np.float32)
    bad[3, 4] = np.nan
    write_tiny_llama(model, overrides={"model.layers.1.self_attn.q_proj.weight": bad})


def absurd_weights(model: Path) -> None:
    bad = np.full((24, 16), 1e30, np.float32)
    write_tiny_llama(model, overrides={"model.layers.1.mlp.gate_proj.weight": bad})


def wrong_shape(model: Path) -> None:
    write_tiny_llama(model, overrides={"model.norm.weight": np.ones(17, np.float32)})


def missing_tensor(model: Path) -> None:
    write_tiny_llama(model, overrides={"model.layers.0.mlp.up_proj.weight": None})


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def bad_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def config_disagrees(model: Path) -> None:
    write_tiny_llama(model, config={"num_hidden_layers": 3})


def config_contradicts_itself(model: Path) -> None:
    write_tiny_llama(model, config={"num_key_value_heads": 3})


def absurd_epsilon(model: Path) -> None:
    write_tiny_llama(model, eps=1e308)


def too_wide(model: Path) -> None:
    write_tiny_llama(model, intermediate=65536, layers=1, dtype="float16")


def other_architecture(model: Path) -> None:
    write_tiny_llama(model, config={"hidden_act": "gelu", "sliding_window": 4096})


def gone(model: Path) -> None:
    for file in model.iterdir():
        file.unlink()
    model.rmdir()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (truncate, 13, "model.safetensors"),
        (nan, 13, "model.layers.1.self_attn.q_proj.weight holds 1 NaN"),
        (
            absurd_weights,
            13,
            "model.layers.1.mlp.gate_proj.weight holds values up to 1e+30, at most",
        ),
        (wrong_shape, 14, "model.norm.weight is [17], the config says [16]"),
        (missing_tensor, 14, "missing model.layers.0.mlp.up_proj.weight"),
        (no_tokenizer, 15, "tokenizer.json does not exist"),
        (bad_tokenizer, 15, "tokenizer.json is not valid JSON"),
        (no_config, 10, "config.json does not exist"),
        (no_weights, 10, "model.safetensors"),
        (config_disagrees, 14, "missing model.layers.2"),
        (config_contradicts_itself, 12, "not a multiple of num_key_value_heads = 3"),
        (absurd_epsilon, 12, "rms_norm_eps = 1e+308; 1.17549435e-38 to 0.0078125 is allowed"),
        (too_wide, 20, "intermediate_size = 65536; at most 65535 is allowed"),
        (other_architecture, 11, "2 problems"),
        (gone, 10, "does not exist"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models(cli: Cli, tmp_path: Path, change: Break, code: int, said: str) -> None:
    model, place = tmp_path / "model", tmp_path / "place"
    write_tiny_llama(model)
    place.mkdir()
    change(model)
    result = cli("compile", model, "-o", place / "out")
    assert (result.code, result.out) == (code, "")
    assert said in result.words
    assert result.err.count("\n\n") == 0, "one paragraph"
    assert "Traceback" not in result.err
    assert list(place.iterdir()) == []
    planned = cli("plan", model)
    if change in (nan, absurd_weights):  # values, which only reading shows
        assert planned.code == 0
    elif change is no_weights:
        assert planned.code == 0 and "holds no weights" in planned.out
    else:
        assert (planned.code, planned.err) == (code, result.err)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--bits", 7], 2, "'7' is not one of '8', '6', '5', '4', '3', '2'"),
        (["--group-size", 7], 20, "group sizes that divide all"),
        (["--group-size", 0], 20, "--group-size 0 is not usable"),
        (["--context", 65], 2, "allowed: 2 to 64"),
        (["--context", 1], 2, "allowed: 2 to 64"),
        (["--l1", "lots"], 2, "'lots' is not a size"),
        (["--l1", "1GiB"], 2, "more than the L1 memory of siracusa, 262144 bytes"),
        (["--target", "esp32"], 2, "'siracusa', 'rv32', 'host'"),
        (["--adapter", "nowhere"], 10, "nowhere"),
        (["--engines", "cores,gpu"], 2, "--engines cores,gpu: siracusa has no engine 'gpu'."),
        (
            ["--engines", ""],
            2,
            "allowed: cores, neureka_1x1, neureka_3x3, neureka_both, separated by commas",
        ),
        (["--engines", "neureka_1x1", "--target", "host"], 2, "host has no engine 'neureka_1x1'"),
        (
            ["--code", "l1"],
            2,
            "--code l1: siracusa cannot keep code in that memory. Hint: allowed: wmem, l2.",
        ),
        (
            ["--code", "l2", "--target", "host"],
            2,
            "host cannot keep code in that memory. Hint: leave --code out",
        ),
        (["--nonsense"], 2, "No such option"),
    ],
    ids=str,
)
def test_options(
    cli: Cli, model: Path, tmp_path: Path, options: list[object], code: int, said: str
) -> None:
    for command in (["compile", model, "-o", tmp_path / "out"], ["plan", model]):
        result = cli(*command, *options)
        assert (result.code, result.out) == (code, "")
        assert said in result.words and "Hint:" in result.words
    assert list(tmp_path.iterdir()) == []


# --- outputs that cannot be written ---------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_rights(cli: Cli, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    result = cli("compile", model, "-o", place / "out")
    assert result.code == 40
    assert "Permission denied" in result.words


def test_a_file_system_that_is_read_only(cli: Cli, model: Path) -> None:
    result = cli("compile", model, "-o", "/proc/shrinkc/out")
    assert result.code == 40
    assert "/proc/shrinkc/out cannot be written" in result.words and "Hint:" in result.words


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "that you may write to"),
        (errno.EROFS, "that you may write to"),
        (errno.EIO, "check the path and the file system"),
    ],
)
@pytest.mark.parametrize("name", ["ir.txt", "manifest.json", "model.c"])
def test_writing_fails_half_way(
    cli: Cli,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    said: str,
    name: str,
) -> None:
    write = Path.write_text

    def fail(self: Path, *arguments: object, **options: object) -> int:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return write(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", fail)
    result = cli("compile", model, "-o", tmp_path / "deep" / "out")
    assert result.code == 40
    assert os.strerror(number) in result.words and said in result.words
    assert str(tmp_path / "deep" / "out") in result.words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk(cli: Cli, model: Path, small_disk: Callable[[int], Path]) -> None:
    """Full at any moment: while copying sources, in the blobs, in the IR, in the last file."""
    sizes = range(64, 2000, 64)
    full = 0
    for kib in sizes:
        place = small_disk(kib)
        result = cli("compile", model, "-o", place / "out")
        if result.code == 0:
            break
        full += 1
        assert result.code == 40
        assert "No space left on device" in result.words and "free some space" in result.words
        assert list(place.iterdir()) == []
    assert 1 < full < len(sizes) - 1


# --- the frame around all errors ------------------------------------------------------------


def test_defects_are_called_defects(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*arguments: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("shrinkc.driver.compiling.dump", defect)
    result = cli("compile", model, "-o", tmp_path / "out")
    assert result.code == 70
    assert "this is a defect" in result.err and "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []
    result = cli("--debug", "compile", model, "-o", tmp_path / "out")
    assert (
        result.code == 70 and "ZeroDivisionError: oops" in result.err and "Traceback" in result.err
    )


def test_messages_are_wrapped(cli: Cli, tmp_path: Path) -> None:
    result = cli(
        "compile", tmp_path / ("word " * 60).strip().replace(" ", "-"), "-o", tmp_path / "o"
    )
    lines = result.err.splitlines()
    assert len(lines) > 1 and all(len(x) <= 100 for x in lines if " " in x)


def test_the_hint_belongs_to_the_message() -> None:
    assert str(UsageError("No.", "yes.")) == "No. Hint: yes."
