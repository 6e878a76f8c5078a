from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.layer import MODULES
from helpers.tiny_llama import write_safetensors, write_tiny_llama
from shrinkc.core.errors import (
    BadConfig,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
    UnsupportedModel,
)
from shrinkc.importer import FloatModel, load_model

# module -> (out, in) for hidden 16, intermediate 24, 2 heads, 1 KV head
SIZES = {"hidden": 16, "ffn": 24, "q": 16, "kv": 8}
SHAPES = {module: (SIZES[part.rows], SIZES[part.inputs]) for module, part in MODULES.items()}


def key(layer: int, module: str, side: str) -> str:
    name = MODULES[module].name
    return f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight"


def write_adapter(
    path: Path,
    modules: list[str],
    *,
    rank: int = 3,
    layers: tuple[int, ...] = (0, 1),
    dtype: str = "float32",
    overrides: dict[str, np.ndarray | None] | None = None,
    **config: Any,
) -> Path:
    path.mkdir(exist_ok=True)
    fields: dict[str, Any] = {
        "alpha_pattern": {},
        "base_model_name_or_path": "base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 12,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    fields.update(config)
    (path / "adapter_config.json").write_text(json.dumps(fields))
    rng = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        for module in modules:
            if module in SHAPES:
                rows, columns = SHAPES[module]
                a = rng.standard_normal((rank, columns)).astype(np.float32)
                b = rng.standard_normal((rows, rank)).astype(np.float32) / 8
                tensors[key(layer, module, "A")], tensors[key(layer, module, "B")] = a, b
    for name, values in (overrides or {}).items():
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values
    write_safetensors(path / "adapter_model.safetensors", tensors, dtype)
    return path


def load(tmp_path: Path, adapter: Path | None = None) -> FloatModel:
    write_tiny_llama(tmp_path / "base")
    return load_model(tmp_path / "base", adapter)


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 12 / 3), (True, 12 / math.sqrt(3))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_equals_the_merged_model(
    tmp_path: Path, rslora: bool, scaling: float, dtype: str
) -> None:
    folder = write_adapter(tmp_path / "a", list(SHAPES), use_rslora=rslora, dtype=dtype)
    model = load(tmp_path, folder)
    merged = load(tmp_path)
    raw = write_adapter(tmp_path / "f32", list(SHAPES))
    assert raw.is_dir()
    for layer, target in zip(model.layers, merged.layers, strict=True):
        assert set(layer.adapters) == set(SHAPES)
        for module, side in layer.adapters.items():
            rows, columns = SHAPES[module]
            assert side.a.shape == (3, columns) and side.b.shape == (rows, 3)
            assert side.a.dtype == side.b.dtype == np.float32
            getattr(target, MODULES[module].field)[:] += side.b @ side.a
    tokens = [1, 30, 31, 32]
    np.testing.assert_allclose(
        forward(model, tokens, np.float64), forward(merged, tokens, np.float64), atol=1e-4
    )
    # the scaling itself, against the numbers in the file
    rng = np.random.default_rng(5)
    rng.standard_normal((3, 16))
    b = rng.standard_normal((16, 3)).astype(np.float32) / 8
    got = model.layers[0].adapters["q_proj"].b
    np.testing.assert_allclose(got, b * scaling, rtol=1e-6 if dtype == "float32" else 1e-2)


def test_without_adapter_there_is_none(tmp_path: Path) -> None:
    assert all(not layer.adapters for layer in load(tmp_path).layers)


@pytest.mark.parametrize(
    ("targets", "layers", "extra"),
    [
        (["q_proj", "v_proj"], (0, 1), {}),
        (["q_proj", "v_proj"], (1,), {"layers_to_transform": [1]}),
        (["q_proj", "v_proj"], (1,), {"layers_to_transform": 1}),
        (["q_proj", "v_proj"], (0, 1), {"target_modules": r".*self_attn\.(q|v)_proj"}),
        (list(SHAPES), (0, 1), {"target_modules": "all-linear"}),
        (
            ["q_proj", "v_proj"],
            (0, 1),
            {"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ["k_proj"]},
        ),
        (["down_proj"], (0,), {"target_modules": ["layers.0.mlp.down_proj"]}),
    ],
)
def test_targets(
    tmp_path: Path, targets: list[str], layers: tuple[int, ...], extra: dict[str, Any]
) -> None:
    model = load(tmp_path, write_adapter(tmp_path / "a", targets, layers=layers, **extra))
    for index, layer in enumerate(model.layers):
        assert set(layer.adapters) == (set(targets) if index in layers else set())


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [3]},
        {"a_future_field": 1},
        {"peft_type": "IA3"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head"]},
    ],
)
def test_refused_kinds(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"], **config)
    with pytest.raises(UnsupportedModel, match="merge_and_unload") as caught:
        load(tmp_path, folder)
    name, value = next(iter(config.items()))
    assert name in str(caught.value) or value[-1] in str(caught.value)


def test_all_refusals_at_once(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"], use_dora=True, bias="all")
    with pytest.raises(UnsupportedModel, match="use_dora.*bias|bias.*use_dora"):
        load(tmp_path, folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 0}, "r = 0"),
        ({"r": "8"}, "r = '8'"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"lora_alpha": math.inf}, "lora_alpha = inf"),
        ({"target_modules": None}, "target_modules = None"),
        ({"target_modules": "("}, "not a valid pattern"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ],
)
def test_bad_values(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"], **config)
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, folder)
    assert said in str(caught.value)


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    overrides: dict[str, np.ndarray | None] = {
        key(0, "q_proj", "A"): None,
        key(1, "q_proj", "B"): np.zeros((16, 4), np.float32),
        "base_model.model.lm_head.lora_A.weight": np.zeros((3, 16), np.float32),
    }
    folder = write_adapter(tmp_path / "a", ["q_proj"], overrides=overrides)
    with pytest.raises(ShapeMismatch) as caught:
        load(tmp_path, folder)
    text = str(caught.value)
    assert f"missing {key(0, 'q_proj', 'A')} [3, 16]" in text
    assert f"{key(1, 'q_proj', 'B')} is [16, 4], the config says [16, 3]" in text
    assert "unexpected base_model.model.lm_head" in text


def test_adapter_of_another_depth(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"], layers=(0, 1, 2))
    with pytest.raises(ShapeMismatch, match=r"unexpected .*layers\.2"):
        load(tmp_path, folder)


def test_targets_that_match_nothing(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", ["query_key_value"])
    with pytest.raises(ShapeMismatch, match="match no projection"):
        load(tmp_path, folder)


def test_nan_and_integers(tmp_path: Path) -> None:
    name = key(1, "q_proj", "B")
    values = np.zeros((16, 3), np.float32)
    values[4, 2] = np.nan
    folder = write_adapter(tmp_path / "a", ["q_proj"], overrides={name: values})
    with pytest.raises(BadWeights, match=r"holds 1 NaN .* at \[4, 2\]"):
        load(tmp_path, folder)
    integers = np.zeros((16, 3), np.int8)
    folder = write_adapter(tmp_path / "a", ["q_proj"], overrides={name: integers})
    with pytest.raises(BadWeights, match="is I8"):
        load(tmp_path, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"])
    (folder / name).unlink()
    with pytest.raises(ModelNotFound, match=name):
        load(tmp_path, folder)
    if name == "adapter_model.safetensors":
        (folder / "adapter_model.bin").touch()
        with pytest.raises(ModelNotFound, match="safe_serialization"):
            load(tmp_path, folder)


def test_adapter_given_as_the_model(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", ["q_proj"])
    write_tiny_llama(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(ShapeMismatch, match="LoRA adapter"):
        load_model(tmp_path / "base")
