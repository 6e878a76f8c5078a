from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shrinkc.importer.packed_words import unpack, words_for


@given(
    st.sampled_from([2, 3, 4, 8]).flatmap(
        lambda bits: st.tuples(
            st.just(bits),
            st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=130),
        )
    )
)
def test_a_row_is_one_long_number(case: tuple[int, list[int]]) -> None:
    bits, values = case
    number = sum(value << (bits * place) for place, value in enumerate(values))
    raw = number.to_bytes(4 * words_for(len(values), bits), "little")
    words = np.frombuffer(raw, dtype="<i4")[None]
    np.testing.assert_array_equal(unpack(words, bits, len(values))[0], values)


@pytest.mark.parametrize(
    ("count", "bits", "words"),
    [(32, 3, 3), (33, 3, 6), (8, 4, 1), (9, 4, 2), (64, 2, 4), (5, 8, 2)],
)
def test_words_for(count: int, bits: int, words: int) -> None:
    assert words_for(count, bits) == words


@pytest.mark.parametrize("bits", [3, 8])
def test_more_rows_than_are_unpacked_at_a_time(bits: int) -> None:
    words = np.zeros((5000, 3), dtype=np.int32)
    words[:, 0] = np.arange(5000)
    values = unpack(words, bits, 9)
    np.testing.assert_array_equal(values[:, 1], (np.arange(5000) >> bits) % (1 << bits))
