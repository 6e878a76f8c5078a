"""Smoothing does not change the float model, and saves keys that biases make large."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, QuantizedWeight, load_model
from shrinkc.importer.model import LowRankAdapter
from shrinkc.ir.interpreter import Interpreter
from shrinkc.quantize import QuantOptions, lower
from shrinkc.quantize.smoothing import EXPONENT_MAX, smoothed, smoothing_exponents

IDS = [1, 5, 9, 33, 60, 2, 71, 8, 90, 14, 51, 20]
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 12


def with_biases(folder: Path, largest: float) -> FloatModel:
    """A Qwen2 model in which one channel of every key head has a bias of ``largest``."""
    rng = np.random.default_rng(3)
    biases = {}
    for layer in range(2):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            bias = rng.standard_normal(heads * HEAD_DIM).astype(np.float32)
            if name == "k":
                bias[4::HEAD_DIM] = largest
            biases[f"model.layers.{layer}.self_attn.{name}_proj.bias"] = bias
    write_tiny_llama(
        folder, hidden=48, intermediate=80, layers=2, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
        overrides=biases, config={"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    )  # fmt: skip
    return load_model(folder)


def all_smoothed(model: FloatModel) -> FloatModel:
    return replace(model, layers=[smoothed(layer, model.config) for layer in model.layers])


def test_float_logits_are_the_same(tmp_path: Path) -> None:
    model = with_biases(tmp_path, 80.0)
    rng = np.random.default_rng(5)
    for layer in model.layers:
        for name, weight in (("q_proj", layer.wq), ("k_proj", layer.wk)):
            n, k = weight.shape
            a, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, k), (n, 2)))
            layer.adapters[name] = LowRankAdapter(a, b)
    changed = all_smoothed(model)
    assert not np.array_equal(changed.layers[0].wq, model.layers[0].wq)
    # factors are powers of two, so each product is the same
    np.testing.assert_allclose(forward(changed, IDS), forward(model, IDS), rtol=1e-5, atol=1e-5)


def test_channels_of_a_pair_have_one_factor_which_evens_sizes(tmp_path: Path) -> None:
    model = with_biases(tmp_path, 80.0)
    layer = model.layers[0]
    exponents = smoothing_exponents(layer, model.config)
    assert exponents.shape == (KV_HEADS, HEAD_DIM)
    half = HEAD_DIM // 2
    assert np.array_equal(exponents[:, :half], exponents[:, half:])
    assert (exponents[:, 4] >= 2).all(), "keys are about 2**5 times larger than queries"
    assert not smoothing_exponents(smoothed(layer, model.config), model.config).any()


def test_zero_channels_stay_in_range(tmp_path: Path) -> None:
    model = with_biases(tmp_path, 80.0)
    layer = model.layers[0]
    nothing = replace(
        layer, wk=np.zeros_like(layer.wk), biases={"k_proj": np.zeros(24, np.float32)}
    )
    assert (smoothing_exponents(nothing, model.config) == -EXPONENT_MAX).all()
    lower(replace(model, layers=[nothing, model.layers[1]]), QuantOptions(), 16)


def test_norms_of_heads_are_evened(tmp_path: Path) -> None:
    """The float model stays the same, and one large channel of the keys takes no bits from others."""
    norms = {}
    for layer in range(2):
        for name in ("q", "k"):
            norm = np.ones(HEAD_DIM, np.float32)
            norm[4] = 64.0 if name == "k" else 0.02
            norms[f"model.layers.{layer}.self_attn.{name}_norm.weight"] = norm
    write_tiny_llama(
        tmp_path, hidden=48, intermediate=80, layers=2, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
        overrides=norms, config={"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    )  # fmt: skip
    model = load_model(tmp_path)
    changed = all_smoothed(model)
    q, k = changed.layers[0].q_norm, changed.layers[0].k_norm
    assert q is not None and k is not None
    assert k[4] == k[10] * 64 < 64, "both channels of a pair have one factor"
    np.testing.assert_allclose(q * k, model.layers[0].q_norm * model.layers[0].k_norm)
    np.testing.assert_allclose(forward(changed, IDS), forward(model, IDS), rtol=1e-5, atol=1e-5)


def test_zero_norms_of_heads_stay_in_range(tmp_path: Path) -> None:
    model = with_biases(tmp_path, 80.0)
    nothing = np.zeros(HEAD_DIM, np.float32)
    layer = replace(model.layers[0], q_norm=nothing, k_norm=nothing)
    assert not smoothed(layer, model.config).k_norm.any()


def test_keys_without_bias_are_left_alone(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    model = load_model(tmp_path)
    assert smoothed(model.layers[0], model.config) is model.layers[0]


def test_integers_of_a_file_stay(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "m.gguf", kind="Q4_1")
    layer, config = (m := load_model(tmp_path / "m.gguf")).layers[0], m.config
    layer.biases["k_proj"] = np.full(layer.wk.shape[0], 50, np.float32)
    changed = smoothed(layer, config)
    for before, after in ((layer.wq, changed.wq), (layer.wk, changed.wk)):
        assert isinstance(before, QuantizedWeight) and isinstance(after, QuantizedWeight)
        assert after.q is before.q and not np.array_equal(after.scale, before.scale)
        ratio = after.scale / before.scale
        assert (np.exp2(np.rint(np.log2(ratio))) == ratio).all()


def divergence(model: FloatModel, monkeypatch: pytest.MonkeyPatch, smooth: bool) -> float:
    if not smooth:
        module = sys.modules["shrinkc.quantize.lower"]  # the package has a function of that name
        monkeypatch.setattr(module, "smoothed", lambda layer, config: layer)
    graph = lower(model, QuantOptions(), 16)
    logits = Interpreter(graph).forward(IDS, all_logits=True) * 2.0 ** -graph.types["logits"].frac
    p, q = (
        values - np.logaddexp.reduce(values, axis=1)[:, None]
        for values in (forward(model, IDS, np.float64), logits)
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_large_biases_of_keys_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_biases(tmp_path, 80.0)
    good = divergence(model, monkeypatch, True)
    assert good < divergence(model, monkeypatch, False) / 4
