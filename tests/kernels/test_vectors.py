"""Scans and quantisation of int8 and 16-bit vectors against numerics/vectors.py, all cores in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from shrinkc.numerics.fixed import INT32_MAX
from shrinkc.numerics.vectors import (
    norm_quantize_q16,
    norm_quantize_vector,
    quantize_q16,
    quantize_vector,
    square_drop,
    square_pre_shift,
)

from .harness import (
    VECTOR,
    WIDE_VECTORS,
    Harness,
    assert_same,
    cut_words,
    group_sums,
    half_words,
    padded_q,
    planes,
    to_words,
)

Get = Callable[[str], Harness]
GROUPS = (1, 3, 4, 8, 32, 60, 64, 96)
EDGE_K = (23, 24, 25, 63, 64, 65, 127, 128, 129, 171, 172, 173)


@dataclass(frozen=True)
class Case:
    k: int
    group: int
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

    def some(cores: int, k: int, group: int) -> Case:
        return Case(
            k,
            min(group, k),
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
            yield some(cores, k, int(rng.choice(GROUPS)))
    for group in GROUPS:
        for k in EDGE_K:
            for pad in (4, 8):
                yield Case(
                    k, min(group, k), 255, pad, int(rng.choice([1, 3, 8])), bool(rng.integers(2))
                )


@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole tokens"])
@pytest.mark.parametrize("config", ["hd4", "hd6"])
def test_quantised_vectors_are_the_interpreters(harness: Get, config: str, whole: bool) -> None:
    """All cores have blocks of a token, or one has all of it, without sums where nothing asks for them."""
    rng = np.random.default_rng(8)
    commands, wanted = [], []
    for case in cases():
        x = values(case, rng)
        pre_shift = square_pre_shift(case.k)
        eps = max(1, int(rng.integers(1, 1 << 61)) >> int(rng.integers(0, 61)))
        gain = rng.integers(-INT32_MAX, INT32_MAX + 1, case.k) >> int(rng.integers(0, 20))
        perm = rng.permutation(case.k) if case.perm else np.arange(case.k)
        sums = not whole or bool(rng.integers(2))
        if case.norm:
            v = norm_quantize_vector(x[None, perm], case.group, case.cmax, pre_shift, eps, gain)
        else:
            v = quantize_vector(x[None, perm], case.group, case.cmax)
        parts = [
            cut_words(case.k, case.group, case.cmax, case.pad),
            to_words([pre_shift if case.norm else 31, eps, eps >> 32]),
            to_words(
                [
                    int(case.norm),
                    int(case.perm),
                    int(sums),
                    case.cores,
                    int(case.backwards),
                    int(whole),
                ]
            ),
            to_words(x),
        ]
        if case.norm:
            parts.append(to_words(gain))
        if case.perm:
            parts.append(half_words(perm))
        commands.append((VECTOR, np.concatenate(parts)))
        wanted.append(
            (case, np.concatenate([
                to_words([v.mantissa[0], v.exponent[0]]), padded_q(v.q[0], case.group, case.pad),
                to_words(v.c[0]), to_words(group_sums(v.q[0], case.group))[: len(v.c[0]) * sums],
            ]))
        )  # fmt: skip
    compared = 0
    for got, (case, want) in zip(harness(config).run(commands), wanted, strict=True):
        compared += assert_same(got, want, str(case))
    assert compared > 10000


@dataclass(frozen=True)
class WideCase:
    """``tokens`` rows, ``apart`` words between them; ``whole``: cores have tokens of their own."""

    k: int
    bits: int
    pad: int
    cores: int
    tokens: int
    apart: int
    whole: bool
    norm: bool
    perm: bool
    backwards: bool
    kind: str = "random"


KINDS = ("random", "random", "random", "zero", "outlier", "full", "power", "below a power")


def wide_cases() -> Iterator[WideCase]:
    """Sizes around the cores, words, and the inputs that a permutation gathers at a time."""
    rng = np.random.default_rng(9)

    def some(k: int, cores: int, bits: int, kind: str) -> WideCase:
        tokens = int(rng.choice([1, 1, 2, 3, cores, 2 * cores + 1]))
        flags = [bool(v) for v in rng.integers(2, size=4)]
        return WideCase(
            k,
            bits,
            int(rng.choice([4, 8, 16, 32, 36])),
            cores,
            tokens,
            int(rng.integers(3)),
            *flags,
            kind,
        )

    for cores in range(1, 10):
        for k in {
            *range(2, 4 * cores + 3),
            *(4 * cores * n + d for n in (2, 3, 7, 16) for d in (-1, 0, 1)),
        }:
            yield some(
                k, cores, int(rng.choice([1, 2, 7, 8, 9, 13, 14, 14, 14])), str(rng.choice(KINDS))
            )
    for k in (2, 5, 171, 172, 576, 1041):
        for kind in KINDS[2:]:
            yield some(k, 8, 14, kind)


def wide_values(case: WideCase, rng: np.random.Generator) -> np.ndarray:
    """Rows of any size; among others powers of two, and what is rounded up to them."""
    plain = Case(case.k, case.k, 1, 4, case.cores, kind=case.kind)
    rows = []
    for _ in range(case.tokens):
        if case.kind in ("power", "below a power"):
            top = 1 << int(rng.integers(0, 31))
            x = rng.integers(-top, top + 1, case.k)
            x[int(rng.integers(case.k))] = (top - (case.kind != "power")) * int(rng.choice([-1, 1]))
            rows.append(x)
        else:
            rows.append(values(plain, rng))
    return np.stack(rows)


@pytest.mark.parametrize("config", ["hd4", "hd6"])
def test_wide_vectors_are_the_interpreters(harness: Get, config: str) -> None:
    """Both bytes of every value, zeros behind the last, mantissas and exponents; and the same in the values' place."""
    rng = np.random.default_rng(10)
    commands, wanted, highest = [], [], 0
    for case in wide_cases():
        x = wide_values(case, rng)
        pre_shift = square_pre_shift(case.k)
        eps = max(1, int(rng.integers(1, 1 << 61)) >> int(rng.integers(0, 61)))
        gain = rng.integers(-INT32_MAX, INT32_MAX + 1, case.k) >> int(rng.integers(0, 20))
        perm = rng.permutation(case.k) if case.perm else np.arange(case.k)
        if case.norm:
            v = norm_quantize_q16(x[:, perm], case.bits, pre_shift, eps, gain)
        else:
            v = quantize_q16(x[:, perm], case.bits)
        apart = rng.integers(-(1 << 31), 1 << 31, (case.tokens, case.apart))
        rows = np.concatenate([x, apart], axis=1).reshape(-1)
        parts = [
            cut_words(case.k, case.k, case.bits, case.pad),
            to_words([pre_shift if case.norm else 31, square_drop(case.k), eps, eps >> 32]),
            to_words([int(case.norm), int(case.perm), case.cores, int(case.backwards)]),
            to_words([case.tokens, case.apart, int(case.whole)]),
            to_words(rows[: len(rows) - case.apart]),
        ]
        if case.norm:
            parts.append(to_words(gain))
        if case.perm:
            parts.append(half_words(perm))
        commands.append((WIDE_VECTORS, np.concatenate(parts)))
        scales = to_words(np.stack([v.mantissa, v.exponent], axis=1).reshape(-1))
        both = [padded_q(plane, case.k, case.pad) for q in v.q for plane in planes(q)]
        wanted.append((case, np.concatenate([scales, *both])))
        highest = max(highest, int(np.abs(v.q).max()))
    compared = in_place = 0
    for got, (case, want) in zip(harness(config).run(commands), wanted, strict=True):
        in_place += int(got[0])
        compared += assert_same(got[1:], want, str(case))
    assert compared > 10000 and in_place > 10000 and highest == 1 << 14
