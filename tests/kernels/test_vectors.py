"""sc_vec_scan, sc_vec_quantize and sc_vec_sums against numerics/vectors.py, all cores in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from shrinkc.numerics.vectors import norm_quantize_vector, quantize_vector, square_pre_shift

from .harness import (
    VECTOR,
    Harness,
    assert_same,
    cut_words,
    padded_q,
    segment_sums,
    to_words,
)

Get = Callable[[str], Harness]
SEGMENTS = (1, 3, 4, 8, 32, 60, 64, 96)
EDGE_K = (23, 24, 25, 63, 64, 65, 127, 128, 129, 171, 172, 173)


@dataclass(frozen=True)
class Case:
    k: int
    seg: int
    cmax: int
    pad: int
    cores: int
    norm: bool = False
    perm: bool = False
    backwards: bool = False
    kind: str = "random"


def values(case: Case, rng: np.random.Generator) -> np.ndarray:
    k, limit = case.k, (1 << 31) - 1
    x = rng.integers(-limit, limit + 1, k) >> int(rng.integers(0, 31))
    if case.kind == "zero":
        x[:] = 0
    elif case.kind == "outlier":
        x = rng.integers(-3, 4, k)
        x[int(rng.integers(k))] = limit * int(rng.choice([-1, 1]))
    elif case.kind == "full":
        x = rng.choice([-limit, limit], k)
    return x


def cases() -> Iterator[Case]:
    rng = np.random.default_rng(7)

    def some(cores: int, k: int, seg: int) -> Case:
        return Case(
            k,
            min(seg, k),
            int(rng.choice([1, 2, 100, 255])),
            int(rng.choice([4, 8])),
            cores,
            bool(rng.integers(2)),
            bool(rng.integers(4) == 0),
            bool(rng.integers(2)),
            str(rng.choice(["random", "random", "random", "zero", "outlier", "full"])),
        )

    for cores in range(1, 10):
        # a SC_BLOCK of inputs is one unit of a core's work: sizes up to 2 * cores + 1 of both
        for k in (
            *range(1, 2 * cores + 2),
            *(8 * n + d for n in range(1, 2 * cores + 2) for d in (-1, 0, 1)),
        ):
            yield some(cores, k, int(rng.choice(SEGMENTS)))
    for seg in SEGMENTS:
        for k in EDGE_K:
            for pad in (4, 8):
                yield Case(
                    k, min(seg, k), 255, pad, int(rng.choice([1, 3, 8])), bool(rng.integers(2))
                )


def half_words(values: np.ndarray) -> np.ndarray:
    """16-bit integers, two to a word."""
    padded = np.zeros(-(-len(values) // 2) * 2, np.int64)
    padded[: len(values)] = values
    return (padded & 0xFFFF).astype(np.uint16).view(np.int32)


@pytest.mark.parametrize("config", ["hd4", "hd6"])
def test_quantised_vectors_are_the_interpreters(harness: Get, config: str) -> None:
    rng = np.random.default_rng(8)
    commands, wanted = [], []
    for case in cases():
        x = values(case, rng)
        pre_shift = square_pre_shift(case.k)
        eps = max(1, int(rng.integers(1, 1 << 61)) >> int(rng.integers(0, 61)))
        gain = rng.integers(-32767, 32768, case.k)
        perm = rng.permutation(case.k) if case.perm else np.arange(case.k)
        if case.norm:
            v = norm_quantize_vector(x[None, perm], case.seg, case.cmax, pre_shift, eps, gain)
        else:
            v = quantize_vector(x[None, perm], case.seg, case.cmax)
        parts = [
            cut_words(case.k, case.seg, case.cmax, case.pad),
            to_words([pre_shift if case.norm else 31, eps, eps >> 32]),
            to_words([int(case.norm), int(case.perm), 1, case.cores, int(case.backwards)]),
            to_words(x),
        ]
        if case.norm:
            parts.append(half_words(gain))
        if case.perm:
            parts.append(half_words(perm))
        commands.append((VECTOR, np.concatenate(parts)))
        wanted.append(
            (case, np.concatenate([
                to_words([v.mantissa[0], v.exponent[0]]), padded_q(v.q[0], case.seg, case.pad),
                to_words(v.c[0]), to_words(segment_sums(v.q[0], case.seg)),
            ]))
        )  # fmt: skip
    compared = 0
    for got, (case, want) in zip(harness(config).run(commands), wanted, strict=True):
        compared += assert_same(got, want, str(case))
    assert compared > 10000
