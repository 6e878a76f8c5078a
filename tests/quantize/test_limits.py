"""Weights of absurd size are refused by name, in every tensor and every kind of checkpoint."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_gptq import tiny_gptq, write_eora
from helpers.tiny_llama import write_safetensors, write_tiny_llama
from shrinkc.core.errors import BadConfig, BadWeights
from shrinkc.importer import load_model
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.ir.interpreter import Interpreter
from shrinkc.quantize import QuantOptions, lower

LAYER = "model.layers.1."
TENSORS = [
    "model.embed_tokens.weight",
    *(f"{LAYER}self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"{LAYER}mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    f"{LAYER}input_layernorm.weight",
    f"{LAYER}post_attention_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]
FAULT = re.compile(r"(\S+)(?: \(times alpha / r\))? holds values up to (\S+), at most (\S+) fits")


def refused(path: Path, adapter: Path | None = None, **options: int) -> dict[str, list[float]]:
    """Return tensor -> [largest value, allowed value] from the refusal of a model."""
    with pytest.raises(BadWeights) as caught:
        lower(load_model(path, adapter), QuantOptions(**options), 8)
    found = FAULT.findall(caught.value.message)
    assert caught.value.message.count(" holds ") == len(found) > 0
    assert f"{path.name}: results could leave" in caught.value.message
    return {name: [float(has), float(most)] for name, has, most in found}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("one", [True, False])
def test_every_tensor(tmp_path: Path, name: str, bits: int, one: bool) -> None:
    """One huge value, or all of them: refused, and accepted after scaling down to the allowed value."""
    path = tmp_path / "m"
    values = write_tiny_llama(path, tied=False)[name]
    if one:
        values = values.copy()
        values.reshape(-1)[3] = -1e30
    else:
        values = values * np.float32(1e30 / np.abs(values).max())
    write_tiny_llama(path, tied=False, overrides={name: values})
    found = refused(path, bits=bits, embedding_bits=bits)
    assert list(found) == [name]
    has, most = found[name]
    assert has == 1e30 and 100 < most < 1e10
    fits = values * np.float32(2.0 ** np.floor(np.log2(most / 1e30)))
    write_tiny_llama(path, tied=False, overrides={name: fits})
    graph = lower(load_model(path), QuantOptions(bits=bits, embedding_bits=bits), 8)
    assert Interpreter(graph).forward([1, 2, 3]).shape == (1, 107)


def test_all_at_once(tmp_path: Path) -> None:
    names = [
        "model.layers.0.mlp.up_proj.weight", f"{LAYER}self_attn.k_proj.weight",
        f"{LAYER}self_attn.o_proj.weight", f"{LAYER}post_attention_layernorm.weight",
        f"{LAYER}mlp.gate_proj.weight", "model.norm.weight",
    ]  # fmt: skip
    plain = write_tiny_llama(tmp_path / "m")
    changed = {name: plain[name] * np.float32(1e20) for name in names}
    write_tiny_llama(tmp_path / "m", overrides=changed)
    assert set(refused(tmp_path / "m")) == set(names)


def test_the_largest_floats(tmp_path: Path) -> None:
    """No computation overflows before the refusal."""
    plain = write_tiny_llama(tmp_path / "m", tied=False)
    most = np.finfo(np.float32).max
    write_tiny_llama(
        tmp_path / "m", tied=False, overrides={n: np.full_like(v, most) for n, v in plain.items()}
    )
    for options in ({"bits": 8}, {"bits": 4, "group_size": 8}):
        with pytest.raises(BadWeights, match="21 tensors are too large, e.g. model.embed_tokens"):
            lower(load_model(tmp_path / "m"), QuantOptions(**options), 8)


@pytest.mark.parametrize("size", [1e10, 1e30])
def test_scales_of_a_gptq_checkpoint(tmp_path: Path, size: float) -> None:
    scales = np.full((2, 96), size, np.float32)
    overrides = {f"{LAYER}mlp.gate_proj.scales": scales}
    tiny_gptq(tmp_path / "m", dtype="float32", overrides=overrides)
    found = refused(tmp_path / "m")
    assert list(found) == [f"{LAYER}mlp.gate_proj"]
    assert found[f"{LAYER}mlp.gate_proj"][0] == pytest.approx(8 * size, rel=0.01)


def test_scales_that_make_weights_infinite(tmp_path: Path) -> None:
    overrides = {f"{LAYER}mlp.up_proj.scales": np.full((2, 96), 1e38, np.float32)}
    tiny_gptq(tmp_path / "m", dtype="float32", overrides=overrides)
    with pytest.raises(BadWeights, match=r"up_proj.scales holds values up to 1e\+38; at most"):
        load_model(tmp_path / "m")


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    kinds = {f"{LAYER}mlp.up_proj": "F32"}
    overrides = {
        f"{LAYER}mlp.up_proj": np.full((96, 64), 1e30, np.float32),
        f"{LAYER}mlp.gate_proj": np.ones((96, 64), np.float32),
        "model.norm": np.full(64, 1e30, np.float32),
    }
    tiny_gguf(path, kind="F32", kinds=kinds, overrides=overrides)
    assert set(refused(path)) == {f"{LAYER}mlp.up_proj.weight", "model.norm.weight"}
    # the largest fp16 scale is within the limit
    tiny_gguf(path, kind="Q8_0")
    begin = GgufFile(path).tensors["blk.1.ffn_up.weight"].begin
    data = bytearray(path.read_bytes())
    data[begin : begin + 2] = struct.pack("<e", 65504)
    path.write_bytes(data)
    graph = lower(load_model(path), QuantOptions(), 8)
    assert Interpreter(graph).forward([1, 2, 3]).shape == (1, 288)


@pytest.mark.parametrize("module", ["q_proj", "o_proj", "gate_proj", "down_proj"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_adapters(tmp_path: Path, module: str, side: str) -> None:
    weights = write_tiny_llama(tmp_path / "m", hidden=32, intermediate=32)
    modules = {name.removesuffix(".weight"): values for name, values in weights.items()}
    tensors = write_eora(tmp_path / "a", modules, 2)
    name = next(
        n for n in tensors if ".layers.1." in n and n.endswith(f"{module}.lora_{side}.weight")
    )
    changed = {**tensors, name: tensors[name] * np.float32(1e25)}
    write_safetensors(tmp_path / "a" / "adapter_model.safetensors", changed)
    found = refused(tmp_path / "m", tmp_path / "a")
    assert len(found) == 1 and f"{module}.lora_{side}.weight" in next(iter(found))


def test_adapter_factors(tmp_path: Path) -> None:
    weights = write_tiny_llama(tmp_path / "m", hidden=32, intermediate=32)
    modules = {name.removesuffix(".weight"): values for name, values in weights.items()}
    write_eora(tmp_path / "a", modules, 2)
    file = tmp_path / "a" / "adapter_config.json"
    fields = json.loads(file.read_text())
    for changed in ({"lora_alpha": 1e308}, {"lora_alpha": 10**400}, {"r": 10**400}):
        file.write_text(json.dumps({**fields, **changed}))
        with pytest.raises(BadConfig, match=next(iter(changed))):
            load_model(tmp_path / "m", tmp_path / "a")
