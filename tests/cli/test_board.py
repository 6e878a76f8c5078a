"""Boards on the command line: sizes as options, refusals that help, and a directory that knows what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import shrinkc
from shrinkc.core.artifact import read_manifest
from shrinkc.driver.estimating import target_of
from shrinkc.targets import PULP_OPEN, SIRACUSA

from .conftest import Cli

Needs = Callable[..., None]
LARGE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 512,
    "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""A model of 20 MB at 8 bits."""
BOARD = ("--target", "rv32", "--ram", "64KiB", "--flash", "1MiB")


def test_plan_says_how_much_of_both_memories_is_used(cli: Cli, model: Path) -> None:
    result = cli("plan", model, *BOARD, "-v")
    assert result.code == 0
    assert "RAM " in result.out and " of 64 KiB" in result.out
    assert "flash " in result.out and " KiB of 1 MiB" in result.out
    assert (
        "read in place in flash" in result.out and "L1" not in result.out and "L2" not in result.out
    )
    found = cli("plan", model, *BOARD, "--json").json
    assert set(found["memory"]) == {"l1", "wmem"}
    assert found["memory"]["l1"]["available"] == 64 << 10
    assert (found["options"]["ram"], found["options"]["flash"]) == (64 << 10, 1 << 20)
    assert found["options"]["l1"] is None and " --ram 65536 --flash 1048576 " in found["command"]


def test_without_sizes_nothing_is_different(cli: Cli, model: Path) -> None:
    found = cli("plan", model, "--target", "rv32", "--json").json
    assert set(found["memory"]) == {"l1", "wmem", "l2"}
    assert "ram" not in found["options"] and "--ram" not in found["command"]


def test_what_does_not_fit_is_refused_with_what_would(cli: Cli, model: Path) -> None:
    result = cli("plan", model, "--target", "rv32", "--ram", "8KiB", "--flash", "40KiB")
    assert result.code == 30
    assert "RAM: need " in result.words and " bytes at least, have 8192, excess " in result.words
    assert "Flash: need " in result.words and ", have 40960, excess " in result.words
    assert "Hint: no shorter context or narrower weights make it fit" in result.words
    assert "give more --ram or --flash" in result.words
    short = shrinkc.plan(model, target="rv32", ram=10_000, flash=1 << 20)
    assert not short.fits and short.alternatives
    (first, *_) = short.alternatives
    option, value = first.split()
    assert option == "--context"
    assert shrinkc.plan(model, target="rv32", ram=10_000, flash=1 << 20, context=int(value)).fits


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ram", "64KiB", "--flash", "1MiB"), "not possible with --target siracusa"),
        (("--target", "rv32", "--ram", "64KiB"), "--ram needs --flash"),
        ((*BOARD, "--l1", "32KiB"), "a smaller --ram says the same"),
        ((*BOARD, "--code", "l2"), "rv32 cannot keep code in that memory"),
        ((*BOARD, "--engines", "neureka_1x1"), "rv32 has no engine 'neureka_1x1'"),
    ],
)  # fmt: skip
def test_options_that_are_not_possible(
    cli: Cli, model: Path, options: tuple[str, ...], said: str
) -> None:
    result = cli("plan", model, *options)
    assert result.code == 2 and said in result.words


def test_sizes_of_off_chip_memories(cli: Cli, model: Path, tmp_path: Path) -> None:
    options = ("--flash", "64MiB", "--hyperram", "8MiB")
    found = cli("plan", model, *options, "--json").json
    assert (found["options"]["flash"], found["options"]["hyperram"]) == (64 << 20, 8 << 20)
    assert found["command"].endswith(f"--flash {64 << 20} --hyperram {8 << 20} --code wmem --engines "
                                     "cores,neureka_1x1,neureka_3x3,neureka_both")  # fmt: skip
    out = tmp_path / "out"
    assert cli("compile", model, "-o", out, *options).code == 0
    target = target_of(out, read_manifest(out))
    assert (target.room("flash"), target.room("hyperram")) == (64 << 20, 8 << 20)


def test_the_help_says_the_sizes_that_targets_have(cli: Cli) -> None:
    said = " ".join(cli("plan", "--help").out.split())
    for target in (SIRACUSA, PULP_OPEN):
        flash, hyperram = (target.room(name) >> 20 for name in ("flash", "hyperram"))
        assert f"[default: {flash}MiB off-chip]" in said and f"[default: {hyperram}MiB]" in said


def test_a_model_that_is_too_large_for_the_flash_is_offered_a_larger_one(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LARGE))
    short = shrinkc.plan(file, flash=1 << 20)
    assert not short.fits
    assert [a for a in short.alternatives if a.startswith("--flash")] == ["--flash 16MiB"]
    assert shrinkc.plan(file, flash=16 << 20).fits


def test_a_sweep_of_sizes(cli: Cli, model: Path) -> None:
    result = cli("plan", model, "--target", "rv32", "--flash", "1MiB", "--sweep", "ram=8KiB,64KiB")
    lines = result.out.splitlines()
    assert result.code == 0 and lines[1].split()[:4] == ["ram", "fits", "RAM", "flash"]
    assert "RAM short of" in lines[2] and lines[3].split()[:3] == ["64", "KiB", "yes"]


def test_a_compiled_directory_knows_its_board(cli: Cli, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("compile", model, *BOARD, "-o", out).code == 0
    assert read_manifest(out).options["ram"] == 64 << 10
    assert {f.name for f in (out / "blobs").iterdir()} == {"tokenizer.bin", "wmem.bin"}
    memory = {row["memory"]: row for row in cli("inspect", out, "--json").json["memory"]}
    assert set(memory) == {"RAM", "flash"} and memory["RAM"]["available"] == 64 << 10
    parts = cli("inspect", out, "--json").json["where_bytes_go"]
    assert {"stack, variables, tokens", "arena of a pass"} <= {row["part"] for row in parts}
    for name in memory:
        assert sum(r["bytes"] for r in parts if r["memory"] == name) <= memory[name]["used"]
    assert "RAM: " in (out / "memory.svg").read_text()
    result = cli("run", out, "--on", "gvsoc", "--prompt", "hello")
    assert result.code == 2 and "allowed: --on host or qemu" in result.words
    result = cli("run", out, "--on", "host", "--prompt", "hello", "--make", "CORES=2")
    assert result.code == 2 and "compiled for a board with 1 core" in result.words


@pytest.mark.slow
@pytest.mark.qemu
def test_a_run_counts_instructions(cli: Cli, model: Path, tmp_path: Path, needs: Needs) -> None:
    needs("cc", "make", "riscv64-unknown-elf-gcc", "qemu-system-riscv32")
    out = tmp_path / "a, b"
    assert cli("compile", model, *BOARD, "-o", out).code == 0
    asked = ("run", out, "--on", "qemu", "--prompt", "hello", "--tokens", "4", "--ignore-eos")
    first, second = (cli(*asked, "--json").json for _ in range(2))
    assert first["verdict"]["mismatched"] == 0 and first["cycles"] is None
    assert first["instructions"] == second["instructions"]
    assert first["instructions"]["prefill"] > 1000 and len(first["instructions"]["decode"]) == 3
    assert "instructions per token (QEMU)" in cli(*asked).err
    host = cli("run", out, "--prompt", "hello", "--tokens", "4", "--ignore-eos", "--json").json
    assert host["new_tokens"] == first["new_tokens"] and host["instructions"] is None
