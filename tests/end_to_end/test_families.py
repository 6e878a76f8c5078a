"""Programs of every family give the interpreter's integers on every machine, from every form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiers import in_tiers
from helpers.tiny_families import (
    logits_of,
    write_family,
    write_family_gguf,
    write_family_gptq,
)
from shrinkc.importer import FloatModel, load_config, load_model
from shrinkc.ir.dump import dump
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import Linear
from shrinkc.ir.serialize import load as load_graph
from shrinkc.ir.serialize import save
from shrinkc.model import family_of
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import shapes_of_config
from shrinkc.targets import SIRACUSA

from .programs import (
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

# family, what its config has beyond the usual, form, ranks of adapters, where
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# a window smaller than the context
GEMMA = {
    "head_dim": 32,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "num_hidden_layers": 3,
    "layer_types": MIXED,
}
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, int], str]] = {
    "llama-biases": ("llama", {"attention_bias": True}, "hf", {"q_proj": 3, "o_proj": 2}, ""),
    "mistral": ("mistral", {"sliding_window": 24}, "gguf", {}, ""),
    "mistral-gptq": ("mistral", {"sliding_window": None, "head_dim": 32}, "gptq", {}, ""),
    "gemma3": ("gemma3_text", {**GEMMA, "tie_word_embeddings": True}, "hf", {}, "small L1"),
    "gemma3-gptq": ("gemma3_text", GEMMA, "gptq", {}, "flash"),
    # in GGUF files every sixth layer is global
    "gemma3-gguf": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16, "num_hidden_layers": 7,
         "num_key_value_heads": 1},
        "gguf", {}, "",
    ),
    "gemma3-odd": (
        "gemma3_text",
        {**GEMMA, "hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14,
         "sliding_window": 64},
        "hf", {}, "",
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, "hf", {}, "small L1"),
    "qwen2-gptq": ("qwen2", {}, "gptq", {"v_proj": 2}, "flash"),
    "qwen2-gguf": ("qwen2", {"num_key_value_heads": 1}, "gguf", {}, ""),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}, "hf", {}, "small L1"),
    "qwen3-gptq": ("qwen3", {"head_dim": 16}, "gptq", {"k_proj": 2}, "flash"),
    "qwen3-gguf": ("qwen3", {"head_dim": 16, "num_key_value_heads": 4}, "gguf", {}, ""),
    "qwen3-odd": (
        "qwen3",
        {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14,
         "attention_bias": True},
        "hf", {}, "",
    ),
    # rows that are no multiple of 8
    "qwen2-odd": (
        "qwen2",
        {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14},
        "hf", {}, "",
    ),
}  # fmt: skip
CONTEXT = 24


def load(folder: Path, name: str) -> tuple[FloatModel, Any]:
    """The model, and transformers' of what its checkpoint stands for."""
    family, config, form, ranks, _ = CASES[name]
    theirs, path = write_family(folder / "hf", family, **config), folder / "hf"
    if form == "gptq":
        path = folder / "gptq"
        write_family_gptq(path, folder / "hf", theirs)
    elif form == "gguf":
        path = folder / "m.gguf"
        write_family_gguf(path, family, theirs)
    model = load_model(path)
    add_adapters(model, ranks)
    return model, theirs


def make(folder: Path, name: str) -> Program:
    model, _ = load(folder, name)
    graph, target, l1 = lower(model, QuantOptions(), CONTEXT), SIRACUSA, None
    sizes, place = shape_of(graph, model), CASES[name][4]
    if place == "flash":
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(sizes))
    elif place == "small L1":
        l1 = smallest_l1(sizes)
    return compile_graph(graph, model, folder / "out", target, l1)


@pytest.mark.parametrize(
    ("name", "sanitizers"), in_tiers(CASES, "qwen3-odd", "qwen2-gptq", "mistral")
)
def test_host_and_qemu(tmp_path: Path, name: str, sanitizers: dict[str, str]) -> None:
    """0 mismatches: sanitizers, threads whose transfers come late, and the 32-bit program."""
    need("host")
    program = make(tmp_path, name)
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    prove_on_host_and_qemu(program, request, sanitizers)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CASES)
def test_gvsoc(tmp_path: Path, name: str) -> None:
    need("gvsoc")
    program = make(tmp_path, name)
    request = random_request(program.graph, np.random.default_rng(1), 13, 11, WARM)
    program.build("gvsoc").prove("gvsoc", request, timeout_s=120)


@pytest.mark.parametrize("name", CASES)
def test_the_files_tell_everything(tmp_path: Path, name: str) -> None:
    """A graph that was saved is the same; its text shows what the family adds."""
    model, _ = load(tmp_path, name)
    graph = lower(model, QuantOptions(), CONTEXT)
    save(graph, tmp_path / "ir")
    again = load_graph(tmp_path / "ir")
    assert dump(again) == dump(graph)
    assert ("bias = int32[" in dump(graph)) == bool(model.config.biased)
    assert ("q_gain = int16[" in dump(graph)) == bool(family_of(model.config).head_norms)
    ids = [1, 5, 9, 2]
    np.testing.assert_array_equal(Interpreter(graph).forward(ids), Interpreter(again).forward(ids))


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case[3]])
def test_the_integer_model_is_close_to_transformers(tmp_path: Path, name: str) -> None:
    model, theirs = load(tmp_path, name)
    ids = np.random.default_rng(2).integers(3, 280, CONTEXT).tolist()
    graph = lower(model, QuantOptions(), CONTEXT)
    last = next(op for op in graph.ops if isinstance(op, Linear) and op.layer < 0)
    got = Interpreter(graph).forward(ids, all_logits=True) * 2.0 ** -graph.types[last.out].frac
    want = logits_of(theirs, ids)
    error = float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))
    assert error < 0.04


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[2] == "hf"])
def test_sizes_are_known_before_the_weights(tmp_path: Path, name: str) -> None:
    """The plan of a configuration has room for what the family adds; of floats the headers tell
    everything."""
    family, config, *_ = CASES[name]
    write_family(tmp_path / "hf", family, **config)
    model = load_model(tmp_path / "hf")
    options = QuantOptions()
    known = shapes_of_config(load_config(tmp_path / "hf"), options, CONTEXT, 100, {})
    found = shape_of(lower(model, options, CONTEXT), model)
    assert known == replace(found, piece_bytes=100)
