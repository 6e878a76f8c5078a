"""The order of key channels: the most important pairs first, and the same one every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import load_model
from shrinkc.ir.key_order import key_order, most_important, sample_tokens
from shrinkc.ir.ops import RopeCache
from shrinkc.numerics.vectors import QHeads
from shrinkc.quantize import QuantOptions, lower


def test_pairs_with_large_keys_and_queries_come_first() -> None:
    rng = np.random.default_rng(2)
    q, keys = rng.integers(-10, 11, (9, 4, 16)), rng.integers(-100, 101, (9, 2, 16))
    keys[:, 0, 13] *= 50  # a large key
    q[:, 2:, 2] *= 12  # a large query of the second KV head
    heads = QHeads(q, np.ones((9, 4)), np.zeros((9, 4)))
    order = key_order(heads, keys)
    assert order.dtype == np.uint8
    assert order[:, :2].tolist() == [[5, 13], [2, 10]]
    assert (np.sort(order, axis=1) == np.arange(16)).all()


def test_equal_channels_keep_their_order() -> None:
    ones = np.ones((1, 8))
    assert most_important(ones, ones).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_tokens_are_spread() -> None:
    ids = sample_tokens(1000, 64)
    assert len(set(ids.tolist())) > 56 and ids.min() >= 0 and ids.max() < 1000
    assert sample_tokens(3, 64).max() == 2


def test_a_lowered_model_has_an_order_per_layer(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, heads=4, kv_heads=2, head_dim=16, layers=2)
    model = load_model(tmp_path)
    found = [
        [
            op.key_order
            for op in lower(model, QuantOptions(kv_bits=4), 12).ops
            if isinstance(op, RopeCache)
        ]
        for _ in range(2)
    ]
    natural = np.tile(np.arange(16), (2, 1))
    for once, again in zip(*found, strict=True):
        assert once is not None
        np.testing.assert_array_equal(once, again)
        assert (once != natural).any()
