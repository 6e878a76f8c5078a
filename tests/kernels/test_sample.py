"""sc_sample against sample(): greedy ties, temperatures, top-p, slices of 1, 2, 3 and 8 cores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shrinkc.ir.interpreter import Sampling, sample
from shrinkc.ir.ops import Sample

from .conftest import CONFIGS
from .harness import SAMPLE, Harness, to_words

Get = Callable[[str], Harness]
LIMIT = (1 << 31) - 1


@pytest.mark.parametrize("config", list(CONFIGS))
def test_tokens_are_the_interpreters(harness: Get, config: str) -> None:
    h, rng = harness(config), np.random.default_rng(30)
    op = next(op for op in h.graph.ops if isinstance(op, Sample))
    unit = 1 << (op.scale_shift + 16)
    vocab = h.config.vocab
    commands, wanted = [], []
    for i in range(300):
        kind = i % 6
        if kind == 0:  # many equal largest logits
            logits = rng.integers(-2, 3, vocab) * unit
        elif kind == 1:
            logits = rng.integers(-LIMIT, LIMIT + 1, vocab)
        elif kind == 2:
            logits = np.full(vocab, int(rng.integers(-LIMIT, LIMIT + 1)))
        else:
            logits = (rng.standard_normal(vocab) * 3 * unit).astype(np.int64)
        how = Sampling(
            int(rng.choice([0, 1, 65536, 1 << 20, (1 << 32) - 1, int(rng.integers(1, 1 << 18))])),
            int(rng.choice([1, 65535, 65536, int(rng.integers(1, 65537))])),
            int(rng.integers(1 << 32)),
        )
        position = int(rng.integers(h.config.context))
        head = [how.inv_temp_q16, how.top_p_q16, how.seed, position]
        commands.append((SAMPLE, np.concatenate([to_words(head), to_words(logits)])))
        wanted.append((sample(op, logits, how, position), how))
    got = [int(words[0]) for words in h.run(commands)]
    bad = [(i, g, w) for i, (g, (w, _)) in enumerate(zip(got, wanted, strict=True)) if g != w]
    assert not bad, (
        f"{len(bad)} of {len(got)} differ: [index, got, expected] {bad[:5]} {wanted[bad[0][0]][1]}"
    )
    assert len(set(got)) > 1


def test_probabilities_of_the_draw(harness: Get) -> None:
    """20,000 positions: every token's share is its softmax probability within 0.015."""
    h = harness("hd6")
    op = next(op for op in h.graph.ops if isinstance(op, Sample))
    logits = np.linspace(-2, 2, h.config.vocab)
    fixed = np.rint(logits * 2.0 ** (op.scale_shift + 16)).astype(np.int64)
    commands = [
        (SAMPLE, np.concatenate([to_words([65536, 65536, 5, p]), to_words(fixed)]))
        for p in range(20000)
    ]
    counts = np.bincount([int(w[0]) for w in h.run(commands)], minlength=h.config.vocab)
    p = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(counts / 20000 - p).max() < 0.015
