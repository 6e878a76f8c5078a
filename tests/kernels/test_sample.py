"""sc_sample against sample(): greedy ties, temperatures, top-p, slices of 1, 2, 3 and 8 cores."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from shrinkc.ir.ops import Sample
from shrinkc.numerics.fixed import exp2_q20, mix32
from shrinkc.numerics.sampling import Sampling, sample

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
        wanted.append((sample(logits, op.scale_shift, how, position), how))
    got = [int(words[0]) for words in h.run(commands)]
    bad = [(i, g, w) for i, (g, (w, _)) in enumerate(zip(got, wanted, strict=True)) if g != w]
    assert not bad, (
        f"{len(bad)} of {len(got)} differ: [index, got, expected] {bad[:5]} {wanted[bad[0][0]][1]}"
    )
    assert len(set(got)) > 1


def seed_for(draw: int) -> int:
    """The seed with mix32(seed) == draw: every step of the finaliser is undone."""
    h = draw
    h ^= h >> 16
    h = h * pow(0xC2B2AE35, -1, 1 << 32) % (1 << 32)
    h ^= (h >> 13) ^ (h >> 26)
    h = h * pow(0x85EBCA6B, -1, 1 << 32) % (1 << 32)
    h ^= h >> 16
    assert int(mix32(h)) == draw
    return h


def draw_one(h: Harness, logits: np.ndarray, draw: int, top_p: int = 65536) -> int:
    """The token at position 0 for a chosen random word; the interpreter's is the same."""
    op = next(op for op in h.graph.ops if isinstance(op, Sample))
    how = Sampling(65536, top_p, seed_for(draw))
    payload = np.concatenate([to_words([65536, top_p, how.seed, 0]), to_words(logits)])
    token = int(h.run([(SAMPLE, payload)])[0][0])
    assert token == sample(logits, op.scale_shift, how, 0)
    return token


@pytest.mark.parametrize("config", ["hd2", "hd4", "hd8"])
def test_a_draw_on_the_edge_between_two_cores(harness: Get, config: str) -> None:
    """Two equal tokens in the slices of different cores share the draw exactly in half."""
    h = harness(config)
    logits = np.full(h.config.vocab, -LIMIT)
    logits[[1, -2]] = 0
    last = h.config.vocab - 2  # not the token that a search without result would give
    draws = (0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    assert [draw_one(h, logits, d) for d in draws] == [1, 1, last, last]


@pytest.mark.parametrize("config", ["hd2", "hd4", "hd8"])
def test_top_p_needs_its_share_rounded_up(harness: Get, config: str) -> None:
    """The first token's mass is less than one unit below the share: the second one is kept too."""
    h, rng = harness(config), np.random.default_rng(31)
    op = next(op for op in h.graph.ops if isinstance(op, Sample))
    unit = 1 << (op.scale_shift + 16)
    found = 0
    for _ in range(2000):
        below = rng.integers(unit // 8, 2 * unit, 2)
        logits = np.full(h.config.vocab, -LIMIT)
        logits[[0, 3, 7]] = 0, -below[0], -below[0] - below[1]
        delta = np.array([0, below[0], below[0] + below[1]]) / unit
        p = exp2_q20(np.rint(delta * math.log2(math.e) * 65536).astype(np.int64))
        mass, top = int(p.sum()), int(p[0])
        share = -(-top * 65536 // mass)
        if mass * share >> 16 == top and mass * share % 65536 and share < 65536:
            found += 1
            assert draw_one(h, logits, (1 << 32) - 1, share) == 3
        if found == 20:
            break
    assert found > 5


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
