"""``plan`` of what is not whole: sizes alone, and headers that ``compile`` would refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq, write_eora
from helpers.tiny_llama import write_tiny_llama
from shrinkc.driver.planning import BYTES_PER_PIECE

from .conftest import Cli

VOCAB = 107


def numbers(planned: Any) -> dict[str, Any]:
    """A plan without what a decode table and the notes change."""
    memory = {**planned["memory"], "l2": None}
    pieces = {**planned["tables"]["pieces"], "bytes": None}
    tables = {**planned["tables"], "pieces": pieces}
    return {**planned, "memory": memory, "tables": tables, "notes": None}


def only_config(model: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(model / "config.json", folder)
    return folder


def test_a_configuration_alone(cli: Cli, model: Path, tmp_path: Path) -> None:
    whole = cli("plan", model, "--json").json
    assert whole["notes"] == []
    folder = only_config(model, tmp_path / "tiny")
    for what, path in (("only", folder / "config.json"), ("holds no weights", folder)):
        planned = cli("plan", path, "--json").json
        assert numbers(planned) == numbers(whole)
        weights, tokenizer = planned["notes"]
        assert str(path) in weights and what in weights
        assert f"taken as {BYTES_PER_PIECE} bytes per token (856 B)" in tokenizer
        notes = [line for line in cli("plan", path).out.splitlines() if "  note  " in line]
        assert [line.split("note")[1].strip() for line in notes] == planned["notes"]
        # the assumption is in the plan: what the real table has is less
        more = planned["memory"]["l2"]["used"] - whole["memory"]["l2"]["used"]
        assert 0 < more <= BYTES_PER_PIECE * VOCAB


def test_a_file_of_another_name(cli: Cli, model: Path, tmp_path: Path) -> None:
    shutil.copy(model / "config.json", tmp_path / "llama.json")
    planned = cli("plan", tmp_path / "llama.json", "--json").json
    assert planned["model"] == "llama" and planned["fits"]


def test_a_tokenizer_that_is_there_is_read(cli: Cli, model: Path, tmp_path: Path) -> None:
    folder = only_config(model, tmp_path / "tiny")
    shutil.copy(model / "tokenizer.json", folder)
    planned = cli("plan", folder, "--json").json
    assert planned["memory"] == cli("plan", model, "--json").json["memory"]
    assert len(planned["notes"]) == 1
    (folder / "tokenizer.json").write_text("{")
    assert cli("plan", folder).code == 15


def test_a_configuration_that_is_wrong(cli: Cli, model: Path, tmp_path: Path) -> None:
    fields = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "hidden_act": "gelu"}))
    assert cli("plan", tmp_path / "config.json").code == 11
    (tmp_path / "config.json").write_text("{")
    assert cli("plan", tmp_path / "config.json").code == 12


def test_what_is_assumed_is_said_where_it_does_not_fit(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    folder = only_config(model, tmp_path / "tiny")
    refused = cli("plan", folder, "--l1", 12000)
    assert refused.code == 30 and "Note: " in refused.words
    assert f"{BYTES_PER_PIECE} bytes per token" in refused.words


def test_compile_needs_all_of_it(cli: Cli, model: Path, tmp_path: Path) -> None:
    folder = only_config(model, tmp_path / "tiny")
    refused = cli("compile", folder / "config.json", "-o", tmp_path / "out")
    assert refused.code == 10
    assert "is a file, not a model directory" in refused.words
    assert "'shrinkc plan' takes a config.json alone" in refused.words
    assert cli("compile", folder, "-o", tmp_path / "out").code == 15
    shutil.copy(model / "tokenizer.json", folder)
    refused = cli("compile", folder, "-o", tmp_path / "out")
    assert refused.code == 10 and "holds neither model.safetensors" in refused.words
    assert not (tmp_path / "out").exists()


def test_gptq_without_weights(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=16, module_bits={"model.layers.1.mlp.down_proj": 8})
    whole = cli("plan", tmp_path / "q", "--json").json
    (tmp_path / "q/model.safetensors").unlink()
    for path in (tmp_path / "q", tmp_path / "q/config.json"):
        planned = cli("plan", path, "--json").json
        assert numbers(planned) == numbers(whole)
        assert any("taken as quantised" in note for note in planned["notes"])
    fields = json.loads((tmp_path / "q/config.json").read_text())
    fields["quantization_config"]["quant_method"] = "awq"
    (tmp_path / "q/config.json").write_text(json.dumps(fields))
    assert cli("plan", tmp_path / "q/config.json").code == 11
    fields["quantization_config"] = "gptq"
    (tmp_path / "q/config.json").write_text(json.dumps(fields))
    assert cli("plan", tmp_path / "q/config.json").code == 12


def test_a_name_that_no_file_has(cli: Cli, tmp_path: Path) -> None:
    """The file system itself refuses it: a model that cannot be read, not an output."""
    for command in (("plan",), ("compile", "-o", tmp_path / "out")):
        refused = cli(*command, tmp_path / ("x" * 300))
        assert refused.code == 10 and "cannot be read: File name too long" in refused.words


# --- headers --------------------------------------------------------------------------------


def same_refusal(cli: Cli, path: Path, code: int, said: str, *options: object) -> None:
    """plan and compile say the same."""
    planned = cli("plan", path, *options)
    assert (planned.code, planned.out) == (code, "")
    assert said in planned.words
    out = path.parent / "out"
    compiled = cli("compile", path, "-o", out, *options)
    assert (compiled.code, compiled.err) == (code, planned.err)
    assert not out.exists()


def test_sizes_that_the_weights_contradict(cli: Cli, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", intermediate=24, config={"intermediate_size": 22})
    same_refusal(
        cli, tmp_path / "m", 14, "model.layers.0.mlp.gate_proj.weight is [24, 16], the config says"
    )


def test_types_without_a_reader(cli: Cli, tmp_path: Path) -> None:
    norm = np.ones(16, np.float64)
    write_tiny_llama(tmp_path / "m", overrides={"model.norm.weight": norm})
    same_refusal(cli, tmp_path / "m", 13, "model.norm.weight is F64")


def test_missing_shards(cli: Cli, tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", shards=3)
    (tmp_path / "m/model-00002-of-00003.safetensors").unlink()
    same_refusal(cli, tmp_path / "m", 10, "lacks 1 of 3 weight files")


@pytest.mark.parametrize("cut", [1, 1000])
def test_truncated_files(cli: Cli, tmp_path: Path, cut: int) -> None:
    write_tiny_llama(tmp_path / "m")
    tiny_gptq(tmp_path / "q", group=16)
    for name in ("m", "q"):
        truncate(tmp_path / name / "model.safetensors", cut)
        same_refusal(cli, tmp_path / name, 13, "is damaged or cut short")


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_gguf_file(cli: Cli, tmp_path: Path, cut: int) -> None:
    tiny_gguf(tmp_path / "g.gguf")
    truncate(tmp_path / "g.gguf", cut)
    same_refusal(cli, tmp_path / "g.gguf", 13, "is truncated")


def truncate(file: Path, cut: int) -> None:
    file.write_bytes(file.read_bytes()[:-cut])


def test_other_sizes_than_a_gptq_checkpoint_has(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", group=16)
    fields = json.loads((tmp_path / "q/config.json").read_text())
    (tmp_path / "q/config.json").write_text(json.dumps({**fields, "intermediate_size": 64}))
    same_refusal(cli, tmp_path / "q", 14, "the config says")


def test_other_sizes_than_a_gguf_file_has(cli: Cli, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "g.gguf", metadata={"llama.feed_forward_length": 64})
    same_refusal(cli, tmp_path / "g.gguf", 14, "blk.0.ffn_gate.weight is [96, 64]")


def test_a_table_of_another_model(cli: Cli, tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "q", embedding_bits=8)
    tiny_gptq(tmp_path / "r", embedding_bits=8, vocab=120)
    shutil.copy(tmp_path / "r/embedding.safetensors", tmp_path / "q")
    same_refusal(cli, tmp_path / "q", 14, "holds [120, 64], the table of the model is [107, 64]")


def test_an_adapter_of_another_model(cli: Cli, tmp_path: Path) -> None:
    weights = write_tiny_llama(tmp_path / "m")
    modules = {name.removesuffix(".weight"): values for name, values in weights.items()}
    write_eora(tmp_path / "a", modules, 2)
    assert cli("plan", tmp_path / "m", "--adapter", tmp_path / "a").code == 0
    other = {name: np.ones((8, 8), np.float32) for name in modules}
    write_eora(tmp_path / "b", other, 2)
    same_refusal(cli, tmp_path / "m", 14, "the config says [2, 16]", "--adapter", tmp_path / "b")
