"""Formats of Gemma's values are chosen from expected sizes, because upper bounds leave no bits for them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import FloatModel, load_model
from shrinkc.ir.graph import Graph
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import SiluMul
from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.quantize import QuantOptions, lower
from shrinkc.quantize.expected import ExpectedSizes, largest_size, squares_of

IDS = [1, 5, 9, 33, 60, 2, 71, 8, 90, 14, 51, 20]
HIDDEN, HEAD_DIM, LAYERS = 64, 16, 3
MASSIVE, SIZE = 5, 2.0**14
"""A channel of the residual stream, and how much a block adds to it; to other channels it adds about 1."""


def gemma(folder: Path, **overrides: np.ndarray) -> FloatModel:
    """A Gemma 3 model with a massive channel, and weights of norms that make up for it, as in Gemma 3 270M."""
    norms: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        inside, after = np.ones(HIDDEN), np.ones(HIDDEN)
        after[MASSIVE] = SIZE
        if layer:
            inside[:] = SIZE / math.sqrt(HIDDEN)
            inside[MASSIVE] = 0.1
        for name, weights in (
            ("input_layernorm", inside),
            ("post_attention_layernorm", after),
            ("pre_feedforward_layernorm", inside),
            ("post_feedforward_layernorm", after),
            ("self_attn.q_norm", np.ones(HEAD_DIM)),
            ("self_attn.k_norm", np.ones(HEAD_DIM)),
        ):
            norms[f"model.layers.{layer}.{name}.weight"] = (weights - 1).astype(np.float32)
    norms["model.norm.weight"] = (inside - 1).astype(np.float32)
    write_tiny_llama(
        folder, hidden=HIDDEN, intermediate=96, layers=LAYERS, heads=4, kv_heads=2, overrides=norms | overrides,
        config={
            "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 32,
            "query_pre_attn_scalar": HEAD_DIM, "hidden_activation": "gelu_pytorch_tanh",
        },
    )  # fmt: skip
    return load_model(folder)


def logits_of(graph: Graph) -> np.ndarray:
    logits = Interpreter(graph).forward(IDS, all_logits=True)
    return np.asarray(logits * 2.0 ** -graph.types["logits"].frac)


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    p, q = (
        values - np.logaddexp.reduce(values, axis=1)[:, None]
        for values in (expected.astype(np.float64), found)
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def test_a_massive_channel_takes_no_bits_from_others(tmp_path: Path) -> None:
    model = gemma(tmp_path)
    graph = lower(model, QuantOptions(), 16)
    assert divergence(forward(model, IDS, np.float64), logits_of(graph)) < 2e-3


def test_larger_results_saturate(tmp_path: Path) -> None:
    """A token far larger than all others: its gates and values saturate, and the kernels' bounds still hold."""
    table = np.random.default_rng(2).standard_normal((107, HIDDEN)).astype(np.float32) / 16
    model = gemma(tmp_path, **{"model.embed_tokens.weight": table})
    up = np.zeros((96, HIDDEN), np.float32)
    up[:, MASSIVE + 1] = 1.0
    for layer in model.layers:  # all rows read one channel, which the token has alone
        layer.w_up, layer.w_gate = up, up.copy()
    model.embedding[IDS[3]] = 0
    model.embedding[IDS[3], MASSIVE + 1] = 1.0
    for layer in model.layers:
        layer.mlp_norm = np.where(np.arange(HIDDEN) == MASSIVE + 1, 1e4, 1.0).astype(np.float32)
    graph = lower(model, QuantOptions(), 16)
    seen: list[int] = []

    def observe(op: object, out: object) -> None:
        if isinstance(op, SiluMul):
            seen.append(int(np.abs(np.asarray(out)).max()))

    Interpreter(graph).forward(IDS, observe=observe)
    assert max(seen) <= INT32_MAX
    assert np.isfinite(logits_of(graph)).all()


def test_expected_sizes() -> None:
    rng = np.random.default_rng(4)
    table = rng.standard_normal((4000, 8)) * np.arange(1, 9)
    sizes = ExpectedSizes(table, 2.0)
    np.testing.assert_allclose(sizes.normalised(np.ones(8)).mean(), 1)
    block = np.array([0, 0, 0, 0, 0, 0, 0, 30.0])
    sizes.add(block)
    stream = 2 * table + block * rng.standard_normal((4000, 1))
    found = np.square(stream).mean(axis=0)
    want = sizes.normalised(np.ones(8))
    np.testing.assert_allclose(found / found.mean(), want, rtol=0.1)
    weight = rng.standard_normal((5, 8))
    results = (stream / np.sqrt(found.mean())) @ weight.T
    np.testing.assert_allclose(np.square(results).mean(axis=0), squares_of(weight, want), rtol=0.2)
    assert largest_size(np.array([4.0, 9.0])) == pytest.approx(3.0)
