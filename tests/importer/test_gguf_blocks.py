"""Blocks of GGUF tensors against the ``gguf`` package of llama.cpp, for any bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.gguf_blocks import HALVES, random_blocks
from shrinkc.importer.gguf_blocks import INTEGER_FORMATS, read_tensor
from shrinkc.importer.gguf_reader import GgufTensor
from shrinkc.importer.model import QuantizedWeight, Zero


def read(kind: str, stored: NDArray[np.uint8]) -> QuantizedWeight:
    values, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = stored.reshape(len(stored), -1, width)
    shape, faults = (len(stored), blocks.shape[1] * values), list[str]()
    weight = read_tensor("w", GgufTensor(kind, shape, (values, width), 0), blocks, faults)
    assert not faults and isinstance(weight, QuantizedWeight)
    return weight


def floats(kind: str, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", INTEGER_FORMATS)
def test_weights(kind: str) -> None:
    """Equal to the package's floats, for integers and scales of all values, and for numbers of any size."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        stored = random_blocks(kind, 7, 1024, rng, largest=10.0 ** rng.uniform(-4, 3))
        weight = read(kind, stored)
        np.testing.assert_array_equal(weight.dequantized(), floats(kind, stored))
        assert (weight.scale > 0).all() and weight.q.max() < 1 << weight.bits
        points = weight.zero_points
        zero = INTEGER_FORMATS[kind].kind
        if zero is Zero.ANY:
            continue
        assert points is not None
        assert np.abs(points - (1 << (weight.bits - 1))).max() == (1 if zero is Zero.NEAR else 0)


def with_scales_of_one(kind: str, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return blocks with the same integers whose scales are 1 and whose minima are 0."""
    _, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = stored.reshape(-1, width).copy()
    for at, number in zip(HALVES[kind], (1, 0), strict=False):
        blocks[:, at : at + 2] = np.array([number], "<f2").view(np.uint8)
    if kind == "Q2_K":
        blocks[:, :16] = 1
    elif kind == "Q3_K":  # 33, less 32
        blocks[:, 96:104], blocks[:, 104:108] = 0x11, 0xAA
    elif kind in ("Q4_K", "Q5_K"):
        blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16] = 1, 0, 1
    elif kind == "Q6_K":
        blocks[:, 192:208] = 1
    return blocks.reshape(stored.shape)


@pytest.mark.parametrize("kind", INTEGER_FORMATS)
def test_integers(kind: str) -> None:
    """The package reads the file's integers as floats if all scales are 1."""
    stored = random_blocks(kind, 16, 4096, np.random.default_rng(1))
    fields = floats(kind, with_scales_of_one(kind, stored))
    weight, form = read(kind, stored), INTEGER_FORMATS[kind]
    plain = read(kind, with_scales_of_one(kind, stored))
    assert (plain.scale == 1).all()
    np.testing.assert_array_equal(plain.q - np.float32(form.zero or 0), fields)
    # a group with a negative scale is mirrored; one without a scale has no integers; all others are kept
    kept = weight.q.reshape(16, -1, form.group) == plain.q.reshape(16, -1, form.group)
    mirrored = (weight.q + plain.q.astype(int)).reshape(16, -1, form.group) == (form.mirror or 0)
    groups = floats(kind, stored).reshape(16, -1, form.group)
    empty = groups.max(axis=2) == groups.min(axis=2)
    if form.mirror is None:
        mirrored[:] = False
    assert (kept.all(axis=2) | mirrored.all(axis=2) | empty).all()
    assert not (kept.all(axis=2) | empty).all() or form.mirror is None
    assert empty.mean() < 0.2


@pytest.mark.parametrize("kind", INTEGER_FORMATS)
def test_groups_without_scale(kind: str) -> None:
    stored = random_blocks(kind, 4, 512, np.random.default_rng(2))
    width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = stored.reshape(4, -1, width)
    blocks[::2, ::2, HALVES[kind][0]] = blocks[::2, ::2, HALVES[kind][0] + 1] = 0
    weight = read(kind, stored)
    np.testing.assert_array_equal(weight.dequantized(), floats(kind, stored))
    assert (weight.scale > 0).all()
