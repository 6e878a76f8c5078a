"""The model in plain numpy: what the integer program is measured against."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shrinkc.importer.model import (
    FloatLayer,
    FloatModel,
    LlamaConfig,
    QuantizedWeight,
    Weight,
    dense,
)
from shrinkc.importer.rope import inverse_frequencies
from shrinkc.model import FIELDS, family_of

# a text is many forward passes: quantised matrices stay dense as long as their model lives
_dense: weakref.WeakKeyDictionary[QuantizedWeight, NDArray[np.float32]] = (
    weakref.WeakKeyDictionary()
)


def forward(
    model: FloatModel, tokens: ArrayLike, dtype: DTypeLike = np.float32
) -> NDArray[np.floating]:
    """Return logits [T, vocab] in ``dtype`` for the ids ``tokens`` [T], T >= 1.

    Causal attention over the T tokens from position 0, RMSNorm, RoPE on pairs
    (i, i + head_dim / 2), SwiGLU; biases, norms of heads and adapters where a layer has them;
    sliding windows, and what Gemma adds.
    """
    config = model.config
    ids = np.asarray(tokens, dtype=np.int64)
    x = _matrix(model.embedding)[ids].astype(dtype)  # [T, hidden]
    family = family_of(config)
    if family.embedding_scaled:
        x = x * np.asarray(config.hidden_size, dtype) ** 0.5
    curve = _gelu if family.gelu else _silu
    for index, layer in enumerate(model.layers):
        local = config.sliding_window is not None and index not in config.global_layers
        # [T, head_dim / 2]
        angle = np.arange(len(ids))[:, None] * inverse_frequencies(config, local=local)
        cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
        window = config.sliding_window if local else None
        h = _norm(x, layer.attn_norm, config)
        mixed = _attention(config, layer, h, cos, sin, window)
        x = x + _after(mixed, layer.attn_post_norm, config)
        h = _norm(x, layer.mlp_norm, config)
        gate = _linear(layer, "gate_proj", h)
        up = _linear(layer, "up_proj", h)
        done = _linear(layer, "down_proj", curve(gate) * up)
        x = x + _after(done, layer.mlp_post_norm, config)
    head = model.embedding if model.head is None else model.head
    logits: NDArray[np.floating] = _norm(x, model.final_norm, config) @ _matrix(head).T.astype(
        dtype
    )
    return logits


def token_losses(
    model: FloatModel, tokens: ArrayLike, dtype: DTypeLike = np.float32
) -> NDArray[np.float64]:
    """Return the cross-entropy [T - 1], in nats, of predicting each token from those before."""
    ids = np.asarray(tokens, dtype=np.int64)
    logits = forward(model, ids[:-1], dtype).astype(np.float64)
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    losses: NDArray[np.float64] = log_sum - logits[np.arange(len(logits)), ids[1:]]
    return losses


def greedy(model: FloatModel, prompt: ArrayLike, count: int) -> list[int]:
    """Return up to ``count`` ids after ``prompt``, the most likely each time; stops after an eos.

    Runs the whole sequence for every token; meant for small models and short texts.
    """
    ids = [int(index) for index in np.asarray(prompt)]
    start = len(ids)
    while len(ids) - start < count:
        ids.append(int(np.argmax(forward(model, ids)[-1])))
        if ids[-1] in model.config.eos_ids:
            break
    return ids[start:]


def _attention(
    config: LlamaConfig,
    layer: FloatLayer,
    h: NDArray[np.floating],
    cos: NDArray[np.floating],
    sin: NDArray[np.floating],
    window: int | None,
) -> NDArray[np.floating]:
    length, heads, kv_heads, dim = len(h), config.num_heads, config.num_kv_heads, config.head_dim
    q: NDArray[np.floating] = _linear(layer, "q_proj", h).reshape(length, heads, dim)
    k: NDArray[np.floating] = _linear(layer, "k_proj", h).reshape(length, kv_heads, dim)
    v = _linear(layer, "v_proj", h).reshape(length, kv_heads, dim)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = _norm(q, layer.q_norm, config), _norm(k, layer.k_norm, config)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    # query head j reads key/value head j // (heads / kv_heads)
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores: NDArray[np.floating] = (
        q.transpose(1, 0, 2)
        @ k.transpose(1, 2, 0)
        / np.asarray(config.query_scalar or dim, h.dtype) ** 0.5
    )
    future = np.triu(np.ones((length, length), dtype=bool), k=1)
    if window is not None:
        future |= np.tril(np.ones((length, length), dtype=bool), k=-window)
    scores[:, future] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = (scores @ v.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(length, heads * dim)
    return _linear(layer, "o_proj", mixed)


def _matrix(weight: Weight) -> NDArray[np.float32]:
    if not isinstance(weight, QuantizedWeight):
        return weight
    if weight not in _dense:
        _dense[weight] = dense(weight)
    return _dense[weight]


def _linear(layer: FloatLayer, name: str, x: NDArray[np.floating]) -> NDArray[np.floating]:
    """The matrix ``name`` with its adapter and bias."""
    y = x @ _matrix(getattr(layer, FIELDS[name])).T.astype(x.dtype)
    side = layer.adapters.get(name)
    if side is not None:
        y = y + (x @ side.a.T.astype(x.dtype)) @ side.b.T.astype(x.dtype)
    if name in layer.biases:
        y = y + layer.biases[name].astype(x.dtype)
    return np.asarray(y)


def _norm(
    x: NDArray[np.floating], gain: NDArray[np.float32], config: LlamaConfig
) -> NDArray[np.floating]:
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    scale = 1 / np.sqrt(mean_square + np.asarray(config.rms_norm_eps, x.dtype))
    return np.asarray(x * scale * gain.astype(x.dtype))


def _rotate(
    x: NDArray[np.floating], cos: NDArray[np.floating], sin: NDArray[np.floating]
) -> NDArray[np.floating]:
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def _after(
    y: NDArray[np.floating], weights: NDArray[np.float32] | None, config: LlamaConfig
) -> NDArray[np.floating]:
    return y if weights is None else _norm(y, weights, config)


def _gelu(x: NDArray[np.floating]) -> NDArray[np.floating]:
    inner = (2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)
    return np.asarray((0.5 * x * (1 + np.tanh(inner))).astype(x.dtype))


def _silu(x: NDArray[np.floating]) -> NDArray[np.floating]:
    # exp of a large positive number overflows to inf, and 1 / inf is the right 0
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)))
