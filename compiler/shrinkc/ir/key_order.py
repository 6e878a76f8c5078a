"""The channels of keys that keep 8 bits in a KV cache of 4 bits.

A few channels decide most of a dot product.  With 4 bits for all channels, they would be too inexact, and as the
largest ones they would make the step of the others too coarse.  Which channels these are hardly depends on the text,
but cannot be seen in the weights: so the integer model runs over a few tokens.  The two channels that RoPE rotates
into each other stay together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shrinkc.ir.graph import Graph, Op
from shrinkc.ir.interpreter import Interpreter
from shrinkc.ir.ops import RopeCache
from shrinkc.ir.ops.ropecache import Cache
from shrinkc.numerics.fixed import I64
from shrinkc.numerics.vectors import QHeads

TOKENS = 64
_STRIDE = 0x9E3779B1  # spreads the token ids over the vocabulary


def sample_tokens(vocab: int, count: int) -> np.ndarray:
    """Return ``count`` token ids, equal on every machine and spread over the vocabulary."""
    ids: np.ndarray = (np.arange(1, count + 1, dtype=np.uint64) * _STRIDE >> 7) % vocab
    return ids.astype(I64)


def order_keys(graph: Graph) -> None:
    """Replace the key orders of a graph with a cache of 4 bits, which must be those of the channels."""
    interpreter = Interpreter(graph)
    found: dict[int, np.ndarray] = {}

    def observe(op: Op, out: Any) -> None:
        if isinstance(op, RopeCache):
            parts = Cache.of(interpreter.state, op.layer).k
            keys = [p.q[: len(out.q)] * p.scale[: len(out.q), :, None] for p in parts]
            found[op.layer] = key_order(out, np.concatenate(keys, axis=2))

    tokens = sample_tokens(graph.vocab, min(TOKENS, graph.context))
    interpreter.forward(tokens, logits=False, observe=observe)
    for op in graph.ops:
        if isinstance(op, RopeCache):
            op.key_order = found[op.layer]


def key_order(q: QHeads, keys: np.ndarray) -> np.ndarray:
    """Return the channels of each KV head, the most important ones first: uint8 [kv_heads, head_dim].

    ``keys`` int64 [T, kv_heads, head_dim], below 2**23.  All sums are exact, so the order is the same on every machine.
    """
    kv_heads, head_dim = keys.shape[1:]
    queries = (q.q**2).sum(axis=0).reshape(kv_heads, -1, head_dim).sum(axis=1)
    return most_important(queries, (keys**2).sum(axis=0)).astype(np.uint8)


def most_important(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the channels of each KV head, the most important ones first: int64 [kv_heads, head_dim].

    ``queries`` and ``keys`` [kv_heads, head_dim] are sums of squares.  The importance of a pair of channels is the
    product of both sums over the pair."""
    kv_heads, head_dim = keys.shape
    pairs = (kv_heads, 2, head_dim // 2)
    of_query, of_key = (x.reshape(pairs).sum(axis=1).astype(np.float64) for x in (queries, keys))
    first = np.argsort(-of_query * of_key, axis=1, kind="stable")
    order: np.ndarray = np.stack([first, first + head_dim // 2], axis=2)
    return order.reshape(kv_heads, head_dim).astype(I64)
