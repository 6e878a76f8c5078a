from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward, greedy, token_losses
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import (
    FloatModel,
    Llama3RopeScaling,
    LlamaConfig,
    inverse_frequencies,
    load_model,
    parse_config,
)

TOKENS = [1, 40, 41, 42, 7, 7, 90]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def slow_forward(model: FloatModel, tokens: list[int]) -> np.ndarray:
    """The same model once more, in float64, one position and one head at a time."""
    c = model.config
    frequencies = inverse_frequencies(c)
    half = c.head_dim // 2

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return np.asarray(gain * x / math.sqrt(sum(v * v for v in x) / len(x) + c.rms_norm_eps))

    def rotate(x: np.ndarray, position: int) -> np.ndarray:
        # as complex numbers: pair (i, i + half) turns by position * frequency
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
        return np.concatenate([z.real, z.imag])

    xs = [model.embedding[t].astype(np.float64) for t in tokens]
    for layer in model.layers:
        hs = [norm(x, layer.attn_norm) for x in xs]
        qs = [(layer.wq @ h).reshape(c.num_heads, c.head_dim) for h in hs]
        ks = [(layer.wk @ h).reshape(c.num_kv_heads, c.head_dim) for h in hs]
        vs = [(layer.wv @ h).reshape(c.num_kv_heads, c.head_dim) for h in hs]
        for t in range(len(tokens)):
            heads = []
            for j in range(c.num_heads):
                kv = j * c.num_kv_heads // c.num_heads
                q = rotate(qs[t][j], t)
                scores = [q @ rotate(ks[s][kv], s) / math.sqrt(c.head_dim) for s in range(t + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                heads.append(sum(w * vs[s][kv] for s, w in enumerate(weights)))
            xs[t] = xs[t] + layer.wo @ np.concatenate(heads)
            h = norm(xs[t], layer.mlp_norm)
            gate = layer.w_gate @ h
            xs[t] = xs[t] + layer.w_down @ (gate / (1 + np.exp(-gate)) * (layer.w_up @ h))
    head = model.embedding if model.head is None else model.head
    return np.array([head @ norm(x, model.final_norm) for x in xs])


@pytest.mark.parametrize("scaling", [None, LLAMA3])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "tied"), [(2, 1, None, True), (6, 3, 10, False)]
)
def test_agrees_with_a_slow_version(
    tmp_path: Path,
    heads: int,
    kv_heads: int,
    head_dim: int | None,
    tied: bool,
    scaling: dict[str, Any] | None,
) -> None:
    write_tiny_llama(
        tmp_path,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=tied,
        rope_scaling=scaling,
        rope_theta=500.0,
    )
    model = load_model(tmp_path)
    expected = slow_forward(model, TOKENS)
    np.testing.assert_allclose(forward(model, TOKENS, np.float64), expected, rtol=1e-9, atol=1e-9)
    single = forward(model, TOKENS)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-5)


def test_later_tokens_do_not_matter(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    model = load_model(tmp_path)
    np.testing.assert_allclose(
        forward(model, TOKENS[:4]), forward(model, [*TOKENS[:4], 5, 6])[:4], atol=1e-6
    )


def test_losses_and_greedy_follow_from_the_logits(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    model = load_model(tmp_path)
    logits = forward(model, TOKENS, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [-math.log(probabilities[t, TOKENS[t + 1]]) for t in range(len(TOKENS) - 1)]
    np.testing.assert_allclose(token_losses(model, TOKENS, np.float64), expected, rtol=1e-9)
    assert greedy(model, TOKENS, 1) == [int(np.argmax(logits[-1]))]


def test_greedy_stops_after_eos(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    model = load_model(tmp_path)
    text = greedy(model, [1], 5)
    assert len(text) == 5
    write_tiny_llama(tmp_path, eos_ids=[text[0], 2])
    assert greedy(load_model(tmp_path), [1], 5) == text[:1]


def test_large_activations_do_not_warn(tmp_path: Path) -> None:
    gate = np.full((24, 16), -1e3, np.float32)
    gate[::2] *= -1
    write_tiny_llama(tmp_path, overrides={"model.layers.0.mlp.gate_proj.weight": gate})
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(forward(load_model(tmp_path), TOKENS)).all()


# --- RoPE --------------------------------------------------------------------------------


def config_with(head_dim: int, theta: float, scaling: dict[str, Any] | None) -> LlamaConfig:
    return parse_config(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 10,
            "hidden_size": head_dim,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": 131072,
            "rope_theta": theta,
            "rope_scaling": scaling,
        }
    )


@pytest.mark.parametrize("head_dim", [4, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5])
def test_plain_frequencies(head_dim: int, theta: float) -> None:
    expected = [1.0 / theta ** (2 * i / head_dim) for i in range(head_dim // 2)]
    got = inverse_frequencies(config_with(head_dim, theta, None))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def published_llama3(frequencies: list[float], scaling: Llama3RopeScaling) -> list[float]:
    """``apply_scaling`` of Meta's llama-models, with its constants as arguments."""
    low_wavelength = scaling.original_max_position / scaling.low_freq_factor
    high_wavelength = scaling.original_max_position / scaling.high_freq_factor
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < high_wavelength:
            scaled.append(frequency)
        elif wavelength > low_wavelength:
            scaled.append(frequency / scaling.factor)
        else:
            smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            scaled.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return scaled


@pytest.mark.parametrize("head_dim", [4, 64, 128])
@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 2.0, 2.5, 512)],
)
def test_llama3_frequencies(
    head_dim: int, factor: float, low: float, high: float, original: int
) -> None:
    section = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    config = config_with(head_dim, 5e5, section)
    plain = list(inverse_frequencies(config_with(head_dim, 5e5, None)))
    expected = published_llama3(plain, Llama3RopeScaling(factor, low, high, original))
    np.testing.assert_allclose(inverse_frequencies(config), expected, rtol=1e-12)
    assert expected != plain
