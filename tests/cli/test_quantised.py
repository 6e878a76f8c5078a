"""Quantised checkpoints on the command line: GPTQModel directories and GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq
from shrinkc.core import artifact
from shrinkc.ir.ops import Linear
from shrinkc.ir.serialize import load

from .conftest import Cli

GPTQ: dict[str, dict[str, Any]] = {
    "4 bit": {"group": 16},
    "2 bit asymmetric": {"bits": 2, "group": 16, "sym": False, "embedding_bits": 2},
    "8 bit per row": {"bits": 8, "group": -1},
    "overrides": {
        "group": 16, "skip": ("model.layers.0.self_attn.o_proj",), "embedding_bits": 8,
        "module_bits": {"model.layers.1.mlp.up_proj": 8},
    },
    "3 bit table": {"group": 32, "embedding_bits": 3, "tied": False},
    "eora": {"group": 16, "eora_rank": 3, "embedding_bits": 4},
}  # fmt: skip
BITS = {"2 bit asymmetric": 2, "8 bit per row": 8, "overrides": 8}  # of gate and up; else 4


@pytest.mark.parametrize("name", GPTQ)
def test_gptq_directory(cli: Cli, needs: Any, tmp_path: Path, name: str) -> None:
    """plan and compile say the same, and the program gives the interpreter's integers."""
    needs("cc", "make")
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_gptq(model, **GPTQ[name])
    planned = cli("plan", model, "--context", 24, "--json")
    assert planned.code == 0, planned.err
    compiled = cli("compile", model, "--context", 24, "-o", out, "--json")
    assert compiled.code == 0, compiled.err
    also = {"speed": planned.json["speed"]}
    assert also["speed"] is not None
    told = {k: v for k, v in compiled.json.items() if k not in ("output", "files")}
    assert told | also == planned.json
    ran = cli("run", out, "--prompt", "a b", "--tokens", 8, "--ignore-eos", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["verdict"]["mismatched"] == 0 < ran.json["verdict"]["compared"]
    weights = {
        op.weight.name: op.weight for op in load(out / artifact.IR).ops if isinstance(op, Linear)
    }
    assert (weights["layer0.qkv"].low_rank is not None) == (name == "eora")
    assert weights["layer1.gate_up"].bits == BITS.get(name, 4)


WIDTHS = {
    # Q4_0 and Q5_0 have negative scales; made positive, the zero points of those groups are another
    "Q4_0": ["4 bit asymmetric group size 32"],
    "Q5_0": ["5 bit asymmetric group size 32"],
    "Q8_0": ["8 bit group size 32"],
    "mixed": [f"{bits} asymmetric group size" for bits in ("4 bit", "5 bit", "6 bit")],
}
# in one layer, and in one matrix of the device
MIXED = {
    "model.layers.0.self_attn.v_proj": "Q6_K", "model.layers.0.mlp.up_proj": "Q8_0",
    "model.layers.0.mlp.down_proj": "Q5_K",
}  # fmt: skip


@pytest.mark.parametrize("kind", WIDTHS)
def test_gguf_file(cli: Cli, needs: Any, tmp_path: Path, kind: str) -> None:
    needs("cc", "make")
    model, out = tmp_path / "model.gguf", tmp_path / "out"
    if kind == "mixed":
        tiny_gguf(
            model, kind="Q4_K", embedding_kind="Q6_K", kinds=MIXED, hidden=256, intermediate=256
        )
    else:
        tiny_gguf(model, kind=kind)
    planned = cli("plan", model, "--context", 24)
    assert planned.code == 0, planned.err
    assert all(width in planned.out for width in WIDTHS[kind])
    assert "of the checkpoint)" in planned.out
    assert cli("compile", model, "--context", 24, "-o", out).code == 0
    ran = cli("run", out, "--prompt", "a b", "--tokens", 8, "--ignore-eos", "--json")
    assert ran.json["verdict"]["mismatched"] == 0 < ran.json["verdict"]["compared"]
    command = artifact.read_manifest(out).command
    assert (
        "--bits" not in command
        and "--group-size" not in command
        and "--embedding-bits" not in command
    )


@pytest.mark.parametrize("option", [("--bits", 8), ("--group-size", 16), ("--asymmetric",)])
def test_options_of_float_layers_are_refused(cli: Cli, tmp_path: Path, option: Any) -> None:
    tiny_gptq(tmp_path / "model", group=16)
    for command in (("plan",), ("compile", "-o", tmp_path / "out")):
        refused = cli(*command, tmp_path / "model", *option)
        assert refused.code == 20
        assert f"is quantised already: {option[0]} cannot change" in refused.words
    assert not (tmp_path / "out").exists()


def test_embedding_bits_are_for_a_float_embedding(cli: Cli, tmp_path: Path) -> None:
    """Allowed where embedding and head are float, with groups of their own; else refused."""
    tiny_gptq(tmp_path / "model", group=16)
    four = cli("plan", tmp_path / "model", "--embedding-bits", 4, "--group-size", 16)
    assert four.code == 0, four.err
    assert "embedding and LM head 4 bit" in four.out
    tiny_gptq(tmp_path / "own", group=16, embedding_bits=4)
    refused = cli("plan", tmp_path / "own", "--embedding-bits", 4)
    assert refused.code == 20 and "--embedding-bits cannot change" in refused.words


def test_options_are_for_the_matrices_that_are_float(cli: Cli, tmp_path: Path) -> None:
    """One module that the checkpoint left float: --bits 4 is about it."""
    tiny_gptq(tmp_path / "model", group=16, skip=("model.layers.0.mlp.down_proj",))
    planned = cli("plan", tmp_path / "model", "--bits", 4, "--group-size", 8)
    assert planned.code == 0, planned.err
    assert "4 bit group size 8, 4 bit group size 16 (13 matrices" in planned.out


def test_columns_in_unlike_orders_are_refused(cli: Cli, tmp_path: Path) -> None:
    """GPTQModel orders q, k and v by the same inputs; this checkpoint does not."""
    tiny_gptq(tmp_path / "model", group=16, desc_act=True)
    refused = cli("compile", tmp_path / "model", "-o", tmp_path / "out")
    assert refused.code == 20 and "layer 0 q_proj and layer 0 k_proj" in refused.words
    assert "act-order" in refused.words and not (tmp_path / "out").exists()


def test_a_fused_matrix_of_two_kinds_is_refused_by_plan(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "model", group=16, skip=("model.layers.1.self_attn.v_proj",))
    refused = cli("plan", tmp_path / "model")
    assert refused.code == 20
    assert "layer 1: q_proj, k_proj are quantised and v_proj float" in refused.words


def test_what_fits_offers_no_width_of_the_checkpoint(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "model", group=16)
    refused = cli("plan", tmp_path / "model", "--l1", 16000, "--context", 64)
    assert refused.code == 30
    assert "--bits" not in refused.words.split("Hint:")[1]
