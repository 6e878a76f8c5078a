"""GPTQ checkpoints written by a packer of the tests' own; test_gptq_real.py has GPTQModel's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.layer import MODULES, PARTS
from helpers.tiny_gptq import tiny_gptq, write_eora
from shrinkc.core.errors import (
    BadConfig,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
    ShrinkcError,
    UnsupportedModel,
)
from shrinkc.importer import (
    FloatModel,
    QuantizedWeight,
    dense,
    load_config,
    load_model,
    open_checkpoint,
)
from shrinkc.importer.gptq import read_gptq
from shrinkc.importer.model import Zero

UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"


def matrices(model: FloatModel) -> dict[str, Any]:
    found = {"model.embed_tokens": model.embedding, "model.norm": model.final_norm}
    if model.head is not None:
        found["lm_head"] = model.head
    for index, layer in enumerate(model.layers):
        for part in PARTS:
            found[f"model.layers.{index}.{part.name}"] = getattr(layer, part.field)
    return found


def assert_same(model: FloatModel, written: dict[str, np.ndarray]) -> None:
    loaded = matrices(model)
    assert loaded.keys() == written.keys()
    for name, values in written.items():
        np.testing.assert_array_equal(dense(loaded[name]), values, err_msg=name)


def refusal(error: type[ShrinkcError], path: Path) -> str:
    with pytest.raises(error) as caught:
        load_model(path)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group", [32, -1, 40])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_layout(
    tmp_path: Path, bits: int, group: int, sym: bool, desc_act: bool, layout: str
) -> None:
    written = tiny_gptq(
        tmp_path / "m", bits=bits, group=group, sym=sym, desc_act=desc_act, layout=layout
    )
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    for layer in model.layers:
        weight = layer.w_down
        assert isinstance(weight, QuantizedWeight)
        assert (weight.bits, weight.group) == (bits, 96 if group == -1 else group)
        assert (weight.order is not None) == (desc_act and group != -1)
        assert (weight.scale > 0).all()
        assert weight.q.max() < 1 << bits


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("lm_head", [True, False])
def test_files(tmp_path: Path, dtype: str, shards: int, lm_head: bool) -> None:
    written = tiny_gptq(tmp_path / "m", dtype=dtype, shards=shards, lm_head=lm_head, sym=False)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert isinstance(model.head, QuantizedWeight) == lm_head
    assert model.config.tie_embeddings == (not lm_head)
    assert load_config(tmp_path / "m") == model.config


def test_scales_of_32_bits_are_read_as_they_are(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", dtype="float32", sym=False)
    up = load_model(tmp_path / "m").layers[0].w_up
    # two roundings instead of one
    np.testing.assert_allclose(dense(up), written[UP], atol=1e-6)


def test_a_head_of_its_own_that_is_not_quantised(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", tied=False)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert isinstance(model.head, np.ndarray)


def test_rules_for_modules(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", skip=(UP,), module_bits={DOWN: 8}, sym=False)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert isinstance(model.layers[0].w_up, np.ndarray)
    found = open_checkpoint(tmp_path / "m").formats
    assert found is not None
    assert found.pop(DOWN) == (8, 32, Zero.POINT)
    assert UP not in found
    assert set(found.values()) == {(4, 32, Zero.POINT)}
    assert len(found) == 12


def test_what_is_float_without_a_rule_is_float(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", skip=(UP,), quantization={"dynamic": {}})
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert UP not in (open_checkpoint(tmp_path / "m").formats or {})


def test_integers_without_the_tokenizer(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", embedding_bits=8)
    (tmp_path / "m" / "tokenizer.json").unlink()
    found = read_gptq(tmp_path / "m")
    assert len(found) == 15
    for name, weight in found.items():
        np.testing.assert_array_equal(weight.dequantized(), written[name], err_msg=name)


def test_zero_points_of_zero_survive_the_format_that_subtracts_one(tmp_path: Path) -> None:
    # the subtraction borrows from the neighbours in the word
    values = np.abs(np.random.default_rng(3).standard_normal((96, 64))).astype(np.float32)
    values[::3] *= -1
    from helpers.tiny_gptq import packed_tensors, quantize

    packed = quantize(values, 4, 32, False, False, "float16", np.random.default_rng(0))
    assert (packed.zero == 0).mean() > 0.5
    assert (packed.zero == 15).any()
    tiny_gptq(tmp_path / "m", sym=False, overrides=packed_tensors(UP, packed))
    np.testing.assert_array_equal(read_gptq(tmp_path / "m")[UP].dequantized(), packed.dense())


def test_scales_of_zero_make_weights_of_zero(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "a")
    scales = np.ascontiguousarray(read_gptq(tmp_path / "a")[UP].scale.T)
    scales[1, 5] = 0
    tiny_gptq(tmp_path / "m", overrides={f"{UP}.scales": scales})
    weight = read_gptq(tmp_path / "m")[UP]
    expected = written[UP].copy()
    expected[5, 32:64] = 0
    np.testing.assert_array_equal(weight.dequantized(), expected)
    assert (weight.scale > 0).all()
    assert (weight.offset == -8 * weight.scale).all()


def test_biases_of_zero_are_no_biases(tmp_path: Path) -> None:
    bias = np.zeros(96, dtype=np.float32)
    tiny_gptq(tmp_path / "m", overrides={f"{UP}.bias": bias})
    load_model(tmp_path / "m")
    tiny_gptq(tmp_path / "n", overrides={f"{UP}.bias": bias + 1, f"{DOWN}.bias": bias[:64] + 1})
    text = refusal(UnsupportedModel, tmp_path / "n")
    assert f"{UP}.bias; {DOWN}.bias" in text


def test_only_quantize_config(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert_same(load_model(tmp_path / "m"), written)
    (tmp_path / "m" / "quantize_config.json").unlink()
    assert f"missing {UP}.weight" in refusal(ShapeMismatch, tmp_path / "m")


def test_progress(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", desc_act=True)
    seen: list[tuple[int, int]] = []
    load_model(tmp_path / "m", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_float_directories_go_the_old_way(tmp_path: Path) -> None:
    from helpers.tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path / "m")
    assert open_checkpoint(tmp_path / "m").formats is None
    model = load_model(tmp_path / "m")
    assert isinstance(model.layers[0].wq, np.ndarray)
    assert load_config(tmp_path / "m") == model.config
    with pytest.raises(ModelNotFound):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelNotFound):
        load_config(tmp_path / "nothing")


# --- adapters ----------------------------------------------------------------------------


def test_eora_is_added_without_a_factor(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", eora_rank=3, skip=(UP,))
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert set(model.layers[0].adapters) == set(MODULES) - {"up_proj"}
    assert set(model.layers[1].adapters) == set(MODULES)
    tensors = write_eora(tmp_path / "again", written, 3, skip=(UP,))
    side = model.layers[1].adapters["down_proj"]
    key = f"base_model.model.{DOWN}.lora_"
    np.testing.assert_array_equal(side.a, tensors[f"{key}A.weight"])
    np.testing.assert_array_equal(side.b, tensors[f"{key}B.weight"])
    with_it = forward(model, [1, 5, 9])
    for layer in model.layers:
        layer.adapters.clear()
    assert np.abs(with_it - forward(model, [1, 5, 9])).max() > 1e-3


def test_another_adapter_takes_its_place(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m", eora_rank=3)
    write_eora(tmp_path / "other", written, 5)
    side = load_model(tmp_path / "m", tmp_path / "other").layers[0].adapters["q_proj"]
    assert side.a.shape == (5, 64)


def test_an_adapter_next_to_the_weights(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m")
    write_eora(tmp_path / "m", written, 2)
    assert load_model(tmp_path / "m").layers[0].adapters["q_proj"].a.shape == (2, 64)
    write_eora(tmp_path / "m" / "eora", written, 3)
    assert "two adapters" in refusal(BadConfig, tmp_path / "m")


def test_an_adapter_that_lacks_a_quantised_module(tmp_path: Path) -> None:
    written = tiny_gptq(tmp_path / "m")
    write_eora(tmp_path / "m" / "eora", written, 2, skip=(UP,))
    assert f"missing base_model.model.{UP}.lora_A" in refusal(ShapeMismatch, tmp_path / "m")


# --- the sidecar -------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 16), (4, -1), (3, 32), (2, 16)])
def test_sidecar(tmp_path: Path, bits: int, group: int, tied: bool) -> None:
    written = tiny_gptq(tmp_path / "m", embedding_bits=bits, group=group, tied=tied)
    model = load_model(tmp_path / "m")
    assert_same(model, written)
    assert isinstance(model.embedding, QuantizedWeight)
    assert (model.head is None) == tied
    found = open_checkpoint(tmp_path / "m").formats
    assert found is not None
    zero = Zero.POINT if bits <= 4 else Zero.ANY
    assert found["model.embed_tokens"] == (bits, 64 if group == -1 else group, zero)


def test_sidecar_of_another_embedding(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", embedding_bits=8)
    tiny_gptq(tmp_path / "n", embedding_bits=8, seed=1)
    source = tmp_path / "n" / "embedding.safetensors"
    source.replace(tmp_path / "m" / "embedding.safetensors")
    text = refusal(ShapeMismatch, tmp_path / "m")
    assert "differ in" in text
    assert "values" in text


# --- refusals ----------------------------------------------------------------------------


def test_all_shapes_that_are_wrong_at_once(tmp_path: Path) -> None:
    overrides = {
        f"{UP}.qweight": np.zeros((7, 96), dtype=np.int32),
        f"{DOWN}.g_idx": None,
        f"{DOWN}.scales": np.zeros((3, 63), dtype=np.float32),
        "model.layers.0.mlp.extra": np.zeros(1, dtype=np.float32),
        "model.norm.weight": None,
    }
    tiny_gptq(tmp_path / "m", overrides=overrides)
    text = refusal(ShapeMismatch, tmp_path / "m")
    assert f"{UP}.qweight is [7, 96], the config says [8, 96]" in text
    assert f"missing {DOWN}.g_idx [96]" in text
    assert f"{DOWN}.scales is [3, 63], the config says [3, 64]" in text
    assert "unexpected model.layers.0.mlp.extra" in text
    assert "missing model.norm.weight" in text
    with pytest.raises(ShapeMismatch):
        open_checkpoint(tmp_path / "m")


def test_other_widths_than_the_configuration_says(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", bits=8, quantization={"bits": 4})
    assert "qweight is [16, 64], the config says [8, 64]" in refusal(ShapeMismatch, tmp_path / "m")


def test_integers_where_a_rule_says_floats(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", quantization={"dynamic": {r"-:.*up_proj": {}}})
    text = refusal(ShapeMismatch, tmp_path / "m")
    assert UP in text
    assert "dynamic" in text


def test_dtypes(tmp_path: Path) -> None:
    overrides = {
        f"{UP}.qweight": np.zeros((8, 96), dtype=np.int64),
        f"{DOWN}.scales": np.zeros((3, 64), dtype=np.int32),
    }
    tiny_gptq(tmp_path / "m", overrides=overrides)
    text = refusal(BadWeights, tmp_path / "m")
    assert f"{UP}.qweight is I64, not I32" in text
    assert f"{DOWN}.scales is I32, not F32 or F16 or BF16" in text


def test_values(tmp_path: Path) -> None:
    nan, negative = np.ones((2, 96), dtype=np.float32), np.ones((3, 64), dtype=np.float32)
    nan[0, 3] = np.nan
    negative[1, 2:4] = -1
    uneven = (np.arange(64) // 33).astype(np.int32)
    overrides = {
        f"{UP}.scales": nan,
        f"{DOWN}.scales": negative,
        "model.layers.0.self_attn.q_proj.g_idx": uneven,
        "model.layers.0.self_attn.k_proj.g_idx": (uneven - 1).astype(np.int32),
        "model.layers.0.self_attn.v_proj.qzeros": np.zeros((2, 4), dtype=np.int32),
        "model.norm.weight": np.full(64, np.inf, dtype=np.float32),
    }
    tiny_gptq(tmp_path / "m", overrides=overrides)
    text = refusal(BadWeights, tmp_path / "m")
    assert f"{UP}.scales holds 1 NaN" in text
    assert f"{DOWN}.scales holds 2 negative values" in text
    assert "q_proj.g_idx gives 31 inputs to group 1, 32 are needed" in text
    assert "k_proj.g_idx gives 31 inputs to group 0, 32 are needed" in text
    assert "v_proj.qzeros holds 64 zero points other than 8, but sym is true" in text
    assert "model.norm.weight holds 64 NaN or infinite" in text


def test_truncated(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert "truncated" in refusal(BadWeights, tmp_path / "m")


def test_other_methods(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m", quantization={"quant_method": "awq", "method": "awq"})
    for read in (load_model, load_config, open_checkpoint, read_gptq):
        with pytest.raises(UnsupportedModel, match="quant_method = 'awq'"):
            read(tmp_path / "m")


def test_disagreeing_configurations(tmp_path: Path) -> None:
    tiny_gptq(tmp_path / "m")
    file = tmp_path / "m" / "quantize_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sym": False}))
    assert "disagree" in refusal(BadConfig, tmp_path / "m")
