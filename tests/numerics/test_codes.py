"""Heads of a cache of 4 bits: codes, parts with scales of their own, and the rotation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shrinkc.numerics.fixed import I64
from shrinkc.numerics.vectors import (
    Coding,
    StoredHeads,
    rotate_heads,
    rotation_bits,
    store_parts,
    store_rotated,
)

UNIT = 18
LIMIT = (1 << 31) - 1


def heads_of(head_dim: int) -> st.SearchStrategy[np.ndarray]:
    values = st.integers(-LIMIT, LIMIT) | st.integers(-300, 300)
    return arrays(I64, (2, 3, head_dim), elements=values)


def check_codes(stored: StoredHeads) -> None:
    """At most 16 equidistant values per head."""
    q = stored.q
    assert ((q - q[..., :1]) % 16 == 0).all()
    low, high = q.min(axis=2), q.max(axis=2)
    assert (low >= -240).all() and (high <= 239).all() and (high - low <= 240).all()
    assert (stored.scale >= 1).all() and (stored.scale <= 32767).all()


@pytest.mark.parametrize("head_dim", [2, 6, 16, 20])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_codes_are_in_range_and_near(head_dim: int, data: st.DataObject) -> None:
    x = data.draw(heads_of(head_dim))
    channels = np.tile(np.arange(head_dim), (3, 1))
    (stored,) = store_parts(x, UNIT, [(Coding.NIBBLES, channels)])
    check_codes(stored)
    step = 16 * stored.scale * 2.0**UNIT / 127
    value = stored.q * stored.scale[..., None] * 2.0**UNIT / 127
    size = np.abs(x).max(axis=2) * 2.0**-13  # rounded down to 15 bits, and the reciprocal
    assert (np.abs(value - x).max(axis=2) <= 0.57 * step + size).all()


@pytest.mark.parametrize("head_dim", [2, 6, 12, 16, 64])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rotated_values_are_in_range(head_dim: int, data: st.DataObject) -> None:
    x = data.draw(heads_of(head_dim))
    bits = rotation_bits(head_dim)
    stored = store_rotated(x, UNIT + bits - bits // 2)
    check_codes(stored)
    wanted = rotate_heads(x >> bits) * 2.0 ** (bits - bits // 2)  # without overflow
    unit = stored.scale * 2.0 ** (UNIT + bits - bits // 2) / 127
    off = np.abs(stored.q * unit[..., None] - wanted).max(axis=2)
    size = np.abs(x).max(axis=2)
    assert (off <= 0.57 * 16 * unit + size * 2.0 ** (bits - 13) + 2.0 ** (bits + 2)).all()


@pytest.mark.parametrize("head_dim", [2, 6, 12, 16, 64, 80, 256])
def test_rotating_twice_multiplies(head_dim: int) -> None:
    x = np.random.default_rng(head_dim).integers(-1000, 1000, (3, 2, head_dim))
    size = 1 << rotation_bits(head_dim)
    assert head_dim % size == 0 and head_dim // size % 2 == 1
    np.testing.assert_array_equal(rotate_heads(rotate_heads(x)), size * x)
    block = rotate_heads(x)[..., :size]
    assert (block[..., 0] == x[..., :size].sum(axis=2)).all()


def test_parts_have_their_own_scales() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-1000, 1000, (5, 2, 16)) << 8
    x[:, :, [3, 11]] <<= 9
    order = np.array([[3, 11, *(i for i in range(16) if i not in (3, 11))]] * 2)
    wide, codes = store_parts(x, 14, [(Coding.BYTES, order[:, :2]), (Coding.NIBBLES, order[:, 2:])])
    assert np.abs(wide.q).max() <= 127
    for part, channels in ((wide, order[:, :2]), (codes, order[:, 2:])):
        found = part.q * part.scale[..., None] * 2.0**14 / 127
        wanted = np.take_along_axis(x, channels[None], 2)
        largest = np.abs(wanted).max(axis=2, keepdims=True)
        assert (np.abs(found - wanted) <= largest / (12 if part is codes else 120)).all()


def test_a_head_larger_than_its_unit_is_refused() -> None:
    x = np.array([[[1 << 20, 0]]])
    with pytest.raises(ArithmeticError, match="larger than its unit"):
        store_rotated(x, 4)
