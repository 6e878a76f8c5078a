from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.layer import PARTS
from helpers.tiny_llama import round_to, write_safetensors, write_tiny_llama, write_weights
from shrinkc.core.errors import (
    BadTokenizer,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
)
from shrinkc.importer import FloatModel, load_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors_of(model: FloatModel) -> dict[str, np.ndarray]:
    """The model's arrays under their names in a checkpoint."""
    tensors = {EMBEDDING: model.embedding, "model.norm.weight": model.final_norm}
    if model.head is not None:
        tensors[HEAD] = model.head
    for index, layer in enumerate(model.layers):
        for part in PARTS:
            tensors[f"model.layers.{index}.{part.name}.weight"] = getattr(layer, part.field)
    return tensors


def assert_same(model: FloatModel, written: dict[str, np.ndarray]) -> None:
    loaded = tensors_of(model)
    assert loaded.keys() == written.keys()
    for name, values in written.items():
        assert loaded[name].dtype == np.float32, name
        np.testing.assert_array_equal(loaded[name], values, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_weight_arrives(tmp_path: Path, dtype: str, shards: int, tied: bool) -> None:
    written = write_tiny_llama(tmp_path / "m", dtype=dtype, shards=shards, tied=tied)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert (model.head is None) == tied == model.config.tie_embeddings
    assert model.source == "m"


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 13, "heads": 3, "kv_heads": 3, "head_dim": 4, "intermediate": 7},
        {"hidden": 24, "heads": 6, "kv_heads": 2, "head_dim": 4},
        {"hidden": 16, "heads": 2, "kv_heads": 1, "head_dim": 128, "layers": 1},
        {"hidden": 10, "heads": 5, "kv_heads": 1, "head_dim": None, "vocab": 33, "tied": False},
        {"vocab": 99 + 256 + 8, "tokenizer": "bytelevel"},
    ],
)
def test_unusual_sizes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    written = write_tiny_llama(tmp_path / "m", **sizes)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    logits = forward(model, model.tokenizer.encode("ab"))
    assert logits.shape[1] == model.config.vocab_size
    assert np.isfinite(logits).all()


def test_arrays_are_independent_of_the_file(tmp_path: Path) -> None:
    written = write_tiny_llama(tmp_path / "m")
    model = load_model(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    model.layers[0].wq[:] *= 1  # writable
    assert_same(model, written)


def test_progress_counts_bytes_up_to_the_total(tmp_path: Path) -> None:
    written = write_tiny_llama(tmp_path / "m", dtype="bfloat16")
    calls: list[tuple[int, int]] = []
    load_model(tmp_path / "m", progress=lambda done, total: calls.append((done, total)))
    total = 2 * sum(values.size for values in written.values())
    assert {call[1] for call in calls} == {total}
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1][0] == total


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", v) for v in (1.5, -0.0, 65504.0, 6.1e-5, 5.9e-8)]
    + [("bfloat16", v) for v in (1.5, -0.0, 3.3e38, 2.0**-133)],
)
def test_extreme_values_survive(tmp_path: Path, dtype: str, value: float) -> None:
    values = np.full(16, value, np.float32)
    write_tiny_llama(tmp_path / "m", dtype=dtype, overrides={"model.norm.weight": values})
    got = load_model(tmp_path / "m").final_norm
    np.testing.assert_array_equal(got.view(np.uint32), round_to(dtype, values).view(np.uint32))


# --- where the files are ---------------------------------------------------------------


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("m.bin", "llama2.c"), ("m.json", "config.json alone"), ("m.safetensors", ".gguf file")],
)
def test_file_instead_of_directory(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelNotFound, match=hint):
        load_model(tmp_path / name)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json does not exist"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("present", "hint"),
    [(None, "safetensors"), ("pytorch_model.bin", "save_pretrained"), ("m.gguf", "GGUF")],
)
def test_missing_weights(tmp_path: Path, present: str | None, hint: str) -> None:
    write_tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if present:
        (tmp_path / present).write_bytes(b"")
    with pytest.raises(ModelNotFound, match=hint):
        load_model(tmp_path)


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, shards=3)
    first, second = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    (tmp_path / first).unlink()
    (tmp_path / second).unlink()
    with pytest.raises(ModelNotFound, match="2 of 3") as caught:
        load_model(tmp_path)
    assert first in str(caught.value) and second in str(caught.value)


def test_index_may_not_leave_the_directory(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", shards=2)
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "../other.safetensors"}}))
    with pytest.raises(BadWeights, match=r"\.\./other"):
        load_model(tmp_path / "m")


def test_names_that_no_file_has(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "m", shards=2)
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {EMBEDDING: "x" * 300}}))
    with pytest.raises(BadWeights, match="not plain file names"):
        load_model(tmp_path / "m")


def test_shards_say_themselves_what_they_hold(tmp_path: Path) -> None:
    written = write_tiny_llama(tmp_path, shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost"] = index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    np.testing.assert_array_equal(load_model(tmp_path).final_norm, written["model.norm.weight"])


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', "[", "[1]"])
def test_unusable_index(tmp_path: Path, text: str) -> None:
    write_tiny_llama(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadWeights, match=r"index\.json"):
        load_model(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    written = write_tiny_llama(tmp_path, shards=2)
    # present in the shard but assigned to the other one by the index
    name = "model-00002-of-00002.safetensors"
    part = {k: v for i, (k, v) in enumerate(written.items()) if i % 2 or k == EMBEDDING}
    write_safetensors(tmp_path / name, part)
    with pytest.raises(BadWeights, match=EMBEDDING):
        load_model(tmp_path)


# --- weights against config ------------------------------------------------------------


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    write_tiny_llama(
        tmp_path,
        overrides={
            "model.norm.weight": None,
            "model.layers.0.self_attn.q_proj.weight": np.zeros((16, 8), np.float32),
            "model.layers.1.mlp.up_proj.weight": np.zeros(24, np.float32),
            "model.layers.0.self_attn.q_proj.bias": np.zeros(16, np.float32),
        },
    )
    with pytest.raises(ShapeMismatch) as caught:
        load_model(tmp_path)
    text = str(caught.value)
    assert "missing model.norm.weight [16]" in text
    assert "model.layers.0.self_attn.q_proj.weight is [16, 8], the config says [16, 16]" in text
    assert "model.layers.1.mlp.up_proj.weight is [24], the config says [24, 16]" in text
    assert "unexpected model.layers.0.self_attn.q_proj.bias [16]" in text


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("num_hidden_layers", 3, "missing model.layers.2.mlp.up_proj.weight"),
        ("num_hidden_layers", 1, "unexpected model.layers.1.mlp.up_proj.weight"),
        ("hidden_size", 32, "model.embed_tokens.weight is [107, 16], the config says [107, 32]"),
        ("intermediate_size", 25, "model.layers.0.mlp.down_proj.weight is [16, 24]"),
        ("num_key_value_heads", 2, "model.layers.0.self_attn.k_proj.weight is [8, 16]"),
        ("head_dim", 4, "model.layers.1.self_attn.o_proj.weight is [16, 16]"),
        ("vocab_size", 120, "the config says [120, 16]"),
        ("tie_word_embeddings", False, "missing lm_head.weight [107, 16]"),
    ],
)
def test_config_and_weights_disagree(tmp_path: Path, field: str, value: int, named: str) -> None:
    write_tiny_llama(tmp_path, config={field: value})
    with pytest.raises(ShapeMismatch) as caught:
        load_model(tmp_path)
    assert named in str(caught.value)


def test_missing_head_hints_at_tying(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, config={"tie_word_embeddings": False})
    with pytest.raises(ShapeMismatch, match="set tie_word_embeddings to true"):
        load_model(tmp_path)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, layers=6)
    odd = {f"model.layers.0.odd{i}": np.ones(1, np.float32) for i in range(20)}
    write_weights(tmp_path, {"model.norm.weight": np.ones(17, np.float32), **odd})
    with pytest.raises(ShapeMismatch) as caught:
        load_model(tmp_path)
    text = caught.value.message
    assert "55 tensors are missing, e.g. model.embed_tokens.weight [107, 16]; " in text
    assert (
        "model.norm.weight is [17], the config says [16]; 20 tensors are unexpected, e.g. " in text
    )
    assert len(text) < 700


def test_saved_rope_buffers_are_ignored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_tiny_llama(tmp_path, overrides={name: np.ones(4, np.float32)})
    load_model(tmp_path)


def test_tied_head_may_be_stored_if_identical(tmp_path: Path) -> None:
    written = write_tiny_llama(tmp_path / "plain")
    write_tiny_llama(tmp_path / "m", overrides={HEAD: written[EMBEDDING]})
    assert load_model(tmp_path / "m").head is None


def test_tied_head_that_differs(tmp_path: Path) -> None:
    head = write_tiny_llama(tmp_path / "plain")[EMBEDDING].copy()
    head[3, 4] += 1
    write_tiny_llama(tmp_path / "m", overrides={HEAD: head})
    with pytest.raises(ShapeMismatch) as caught:
        load_model(tmp_path / "m")
    text = str(caught.value)
    assert HEAD in text and EMBEDDING in text and "1 of 1712 values" in text


# --- bad values ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_located(tmp_path: Path, dtype: str, value: float) -> None:
    up = np.ones((24, 16), np.float32)
    up[2, 5] = up[20, 0] = value
    norm = np.ones(16, np.float32)
    norm[15] = value
    write_tiny_llama(
        tmp_path,
        dtype=dtype,
        overrides={"model.layers.1.mlp.up_proj.weight": up, "model.norm.weight": norm},
    )
    with pytest.raises(BadWeights) as caught:
        load_model(tmp_path)
    text = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight holds 2 NaN or infinite values of 384" in text
    assert "the first at [2, 5]" in text
    assert "model.norm.weight holds 1 NaN or infinite value of 16, the first at [15]" in text


@pytest.mark.parametrize(("dtype", "name"), [("int8", "I8"), ("float64", "F64"), ("int64", "I64")])
def test_types_that_are_not_supported(tmp_path: Path, dtype: str, name: str) -> None:
    overrides = {"model.norm.weight": np.ones(16, dtype), EMBEDDING: np.ones((107, 16), dtype)}
    write_tiny_llama(tmp_path, overrides=overrides)
    with pytest.raises(BadWeights) as caught:
        load_model(tmp_path)
    assert f"model.norm.weight is {name}" in str(caught.value)
    assert f"{EMBEDDING} is {name}" in str(caught.value)


def test_truncated_weights(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(BadWeights, match=rf"\({len(data) - 100} bytes\) is damaged or cut short"):
        load_model(tmp_path)


# --- tokenizer beside the weights ------------------------------------------------------


def test_missing_tokenizer(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, tokenizer="none")
    with pytest.raises(BadTokenizer, match=r"tokenizer\.json does not exist"):
        load_model(tmp_path)


def test_sentencepiece_file_only(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, tokenizer="none")
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(BadTokenizer, match="convert tokenizer.model with transformers"):
        load_model(tmp_path)
