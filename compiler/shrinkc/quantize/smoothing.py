"""Smoothing of queries and keys: channels of about equal size lose less when heads become 8-bit integers.

A head has one scale per position.  Qwen2 adds biases to keys that are a hundred times larger than its other keys, so
these would keep only one or two bits.  The norms of heads of Gemma 3 give some channels twenty times the size of
others.  Dividing a channel of the keys by a factor and multiplying the same channel of
the queries by it leaves their product unchanged.  RoPE rotates two channels into each other, so both get the same
factor, as in SmoothAttention of QServe (https://arxiv.org/abs/2405.04532).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shrinkc.importer.model import FloatLayer, LowRankAdapter, QuantizedWeight, Weight, dense
from shrinkc.model import LlamaConfig

EXPONENT_MAX = 6
"""Rows have multipliers of 16 bits in one unit: rows that are much smaller than others would be less exact."""
_QUERY, _KEY = "q_proj", "k_proj"


def smoothed(layer: FloatLayer, c: LlamaConfig) -> FloatLayer:
    """Return the layer with smoothed queries and keys if heads have norms or keys a bias; otherwise the layer itself.

    Only weights of norms, or scales of rows, biases and adapters change, by powers of two, which is exact.
    """
    if layer.q_norm is not None and layer.k_norm is not None:
        exponents = _exponents(*(_pair_squares(norm) for norm in (layer.k_norm, layer.q_norm)))
        factor = (2.0 ** np.concatenate([exponents, exponents])).astype(np.float32)
        return replace(layer, q_norm=layer.q_norm * factor, k_norm=layer.k_norm / factor)
    if _KEY not in layer.biases:
        return layer
    exponents = smoothing_exponents(layer, c)
    per_key = c.num_heads // c.num_kv_heads
    up = 2.0 ** np.repeat(exponents, per_key, axis=0).reshape(-1)
    down = 2.0 ** -exponents.reshape(-1)
    adapters, biases = dict(layer.adapters), dict(layer.biases)
    for name, factor in ((_QUERY, up), (_KEY, down)):
        if name in biases:
            biases[name] = (biases[name] * factor).astype(np.float32)
        if name in adapters:
            b = (adapters[name].b * factor[:, None]).astype(np.float32)
            adapters[name] = LowRankAdapter(adapters[name].a, b)
    return replace(
        layer,
        wq=_scaled(layer.wq, up),
        wk=_scaled(layer.wk, down),
        adapters=adapters,
        biases=biases,
    )


def smoothing_exponents(layer: FloatLayer, c: LlamaConfig) -> np.ndarray:
    """Return the binary logarithm of each channel's factor: whole numbers [kv_heads, head_dim].

    The factor is the square root of (size of keys / size of queries), which makes both sizes equal.
    """
    pairs = (c.num_kv_heads, -1, 2, c.head_dim // 2)
    queries, keys = (
        _squares(layer, name, weight).reshape(pairs).mean(axis=(1, 2))
        for name, weight in ((_QUERY, layer.wq), (_KEY, layer.wk))
    )
    exponents = _exponents(keys, queries)
    return np.concatenate([exponents, exponents], axis=1)


def _exponents(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return whole exponents for pairs of channels of these mean squares."""
    ratio = np.maximum(keys, 1e-30) / np.maximum(queries, 1e-30)
    exponents: np.ndarray = np.clip(np.rint(np.log2(ratio) / 4), -EXPONENT_MAX, EXPONENT_MAX)
    return exponents


def _pair_squares(norm: np.ndarray) -> np.ndarray:
    """Return the mean square of each pair of channels that RoPE rotates, float64 [head_dim / 2]."""
    squares: np.ndarray = np.square(norm.astype(np.float64)).reshape(2, -1).mean(axis=0)
    return squares


def _squares(layer: FloatLayer, name: str, weight: Weight) -> np.ndarray:
    """Return the mean square of each output, float64 [n], for inputs that are independent and normalised."""
    found = np.square(dense(weight) * layer.attn_norm).sum(axis=1, dtype=np.float64)
    bias = layer.biases.get(name)
    return found if bias is None else found + np.square(bias.astype(np.float64))


def _scaled(weight: Weight, factor: np.ndarray) -> Weight:
    """Return the weight [n, k] with each row times ``factor`` [n]."""
    rows = factor.astype(np.float32)[:, None]
    if isinstance(weight, QuantizedWeight):
        return replace(weight, scale=weight.scale * rows, offset=weight.offset * rows)
    return weight * rows
