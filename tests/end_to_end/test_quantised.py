"""Programs of quantised checkpoints give the interpreter's integers on every machine, and the host
program gives the logits of whole texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.quantised import Format, quantised_model
from helpers.tiers import in_tiers
from helpers.tiny_llama import write_tiny_llama
from shrinkc.abi import InputWord, Trace
from shrinkc.build.layout import PROGRAM
from shrinkc.core.artifact import Manifest, write_manifest
from shrinkc.core.errors import BadArtifact, RunFailed, UsageError
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.interpreter import Interpreter
from shrinkc.quantize import QuantOptions, lower
from shrinkc.simulate import host_logits, run_program
from shrinkc.targets import SIRACUSA

from .programs import (
    ENV,
    WARM,
    Program,
    add_adapters,
    compile_graph,
    l2_without_weights,
    need,
    prove_on_host_and_qemu,
    random_request,
    shape_of,
    smallest_l1,
)

SIZES: dict[str, Any] = {
    "hidden": 64, "intermediate": 96, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16,
}  # fmt: skip


def mixed(layer: int, module: str) -> Format | None:
    """Widths, groups and orders per module and layer; gate and up of the first layer are float."""
    if layer < 0:
        return Format(8, 32) if module == "embedding" else Format(4, 16, "integer", act_order=True)
    if module in ("gate_proj", "up_proj"):
        return None if layer == 0 else Format(4, None)
    if module == "o_proj":
        return Format(8, 32, "float", act_order=layer == 0)
    if module == "down_proj":
        return Format(2, 16, "integer", act_order=True)
    return Format(3 if module == "k_proj" else 4, 32, "integer", act_order=layer == 1)


CASES: dict[str, tuple[dict[str, Any], Any, dict[str, int], str]] = {
    # model, formats, ranks of adapters, where
    "mixed": ({"tied": False}, mixed, {"q_proj": 3, "o_proj": 2, "down_proj": 9}, ""),
    "q4_1": ({}, lambda i, m: Format(4, 32, "float") if i >= 0 else Format(8, 32), {}, "small L1"),
    "odd-groups": (
        {"hidden": 42, "intermediate": 77, "heads": 3, "kv_heads": 1, "head_dim": 14},
        lambda i, m: Format(4, {42: 21, 77: 11}[42 if m != "down_proj" else 77], "integer",
                            act_order=m != "embedding" and m != "head"),
        {"v_proj": 1, "up_proj": 5, "down_proj": 2}, "flash",
    ),
}  # fmt: skip


def make(folder: Path, name: str) -> tuple[FloatModel, Program]:
    shape, format_of, ranks, place = CASES[name]
    write_tiny_llama(folder / "model", **{**SIZES, **shape})
    model = quantised_model(load_model(folder / "model"), format_of)
    add_adapters(model, ranks)
    graph, target, l1 = lower(model, QuantOptions(), 24), SIRACUSA, None
    sizes = shape_of(graph, model)
    if place == "flash":
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(sizes))
    elif place == "small L1":
        l1 = smallest_l1(sizes)
    return model, compile_graph(graph, model, folder / "out", target, l1)


@pytest.mark.parametrize(("name", "sanitizers"), in_tiers(CASES, "mixed"))
def test_host_and_qemu(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    """0 mismatches: sanitizers, threads whose transfers come late, and the 32-bit program."""
    need("host")
    _, program = make(tmp_path, name)
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    prove_on_host_and_qemu(program, request, sanitizers)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CASES)
def test_gvsoc(tmp_path: Path, name: str) -> None:
    """0 mismatches where the SoC's own instructions, DMA and flash do the work."""
    need("gvsoc")
    _, program = make(tmp_path, name)
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    program.build("gvsoc").prove("gvsoc", request, timeout_s=120)


# --- logits of whole texts ---------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Program:
    need("host")
    model, program = make(tmp_path_factory.mktemp("scored"), "mixed")
    write_manifest(
        program.out,
        Manifest("m", "siracusa", 24, model.config.vocab_size, None, "shrinkc compile", "0", {}),
    )
    return program


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"SAN": "1"}, marks=pytest.mark.slow), {"CORES": "3", "LAZY": "1"}],
)
def test_host_logits_are_the_interpreters(scored: Program, options: dict[str, str]) -> None:
    """Every position of sequences of 1 to all of the context's tokens, one after the other."""
    scored.build("host", **options)
    rng = np.random.default_rng(3)
    graph = scored.graph
    sequences = [rng.integers(0, graph.vocab, n).tolist() for n in (24, 1, 7, 8, 9, 24)]
    compared = 0
    for ids, got in zip(sequences, host_logits(scored.out, sequences, ENV), strict=True):
        want = Interpreter(graph).forward(ids, all_logits=True)
        np.testing.assert_array_equal(got, want)
        compared += want.size
    assert compared == sum(map(len, sequences)) * graph.vocab


def test_host_logits_refuse(scored: Program, tmp_path: Path) -> None:
    scored.build("host")
    for ids in ([], [1] * 25):
        with pytest.raises(UsageError, match=f"sequence of {len(ids)} tokens") as refused:
            next(host_logits(scored.out, [[1], ids], ENV))
        assert "1 to 24" in str(refused.value)
    with pytest.raises(RunFailed, match="prompt token outside the vocabulary"):
        list(host_logits(scored.out, [[1], [10_000]], ENV))
    with pytest.raises(BadArtifact):
        next(host_logits(tmp_path, [[1]], ENV))


def test_host_logits_of_a_program_that_ends_early(tmp_path: Path) -> None:
    """It is said how it ended, and none of the bytes that it gave."""
    write_manifest(tmp_path, Manifest("m", "siracusa", 8, 32, None, "shrinkc compile", "0", {}))
    program = tmp_path / PROGRAM["host"]
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nhead -c 100 /dev/zero\nkill -9 $$\n")
    program.chmod(0o755)
    with pytest.raises(RunFailed) as failed:
        list(host_logits(tmp_path, [[1]], ENV))
    assert failed.value.message.endswith("all logits: ended by SIGKILL.")


def test_host_logits_may_be_left_early(scored: Program) -> None:
    """The program is gone when the caller has seen enough."""
    scored.build("host")
    first = next(host_logits(scored.out, [[1, 2]] * 500, ENV))
    assert first.shape == (2, scored.graph.vocab)


def test_raw_logits_are_for_hosts(scored: Program) -> None:
    """The 32-bit program refuses; the host refuses new tokens and other traces beside them."""
    need("qemu")
    request = random_request(scored.graph, np.random.default_rng(1), 4, 0)
    words = request.words(24, Trace.LOGITS)
    for on, changed in (
        ("qemu", {}),
        ("host", {InputWord.NEW: 1}),
        ("host", {InputWord.TRACE: Trace.LOGITS | Trace.PROOF}),
    ):
        scored.build(on)
        block = list(words)
        for at, value in changed.items():
            block[at] = value
        done = run_words(scored, on, block)
        assert "raw logits are for prompts alone, on a host" in done


def run_words(program: Program, on: str, words: list[int]) -> str:
    done = run_program(program.out, on, words, env=ENV, timeout_s=60)
    assert done.exit_code != 0
    return "\n".join(done.lines)
