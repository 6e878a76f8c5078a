from __future__ import annotations

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.layer import MODULES
from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer import QuantizedWeight, dense, load_model


def weight(**changes: object) -> QuantizedWeight:
    fields: dict[str, object] = {
        "bits": 4,
        "group": 2,
        "q": np.array([[0, 1, 2], [3, 15, 4]], dtype=np.uint8),
        "scale": np.array([[1, 2], [0.5, 4]], dtype=np.float32),
        "offset": np.array([[0, -2], [1, 0]], dtype=np.float32),
        **changes,
    }
    return QuantizedWeight(**fields)  # type: ignore[arg-type]


def test_a_short_last_group() -> None:
    np.testing.assert_array_equal(weight().dequantized(), [[0, 1, 2], [2.5, 8.5, 16]])
    assert weight().shape == (2, 3)


def test_order_says_where_a_stored_column_belongs() -> None:
    stored = weight(order=np.array([2, 0, 1]))
    np.testing.assert_array_equal(stored.dequantized(), [[1, 2, 0], [8.5, 16, 2.5]])


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 7},
        {"group": 0},
        {"group": 4},
        {"q": np.zeros((2, 3), dtype=np.int64)},
        {"scale": np.ones((2, 3), dtype=np.float32)},
        {"offset": np.ones((1, 2), dtype=np.float32)},
        {"order": np.array([0, 1])},
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        weight(**changes)


def test_dense_leaves_floats_alone() -> None:
    floats = np.ones((2, 2), dtype=np.float32)
    assert dense(floats) is floats
    np.testing.assert_array_equal(dense(weight()), weight().dequantized())


def test_forward_takes_integers_wherever_it_takes_floats(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_tiny_llama(tmp_path / "m", tied=False)
    model = load_model(tmp_path / "m")

    def rounded(values: np.ndarray) -> QuantizedWeight:
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        q = np.round(values / scale + 128).astype(np.uint8)
        return QuantizedWeight(8, values.shape[1], q, scale, -128 * scale)

    parts = [(layer, m.field) for layer in model.layers for m in MODULES.values()]
    parts += [(model, "embedding"), (model, "head")]  # type: ignore[list-item]
    integers = [rounded(getattr(part, name)) for part, name in parts]
    for (part, name), value in zip(parts, integers, strict=True):
        setattr(part, name, value)
    first = forward(model, [1, 5, 9])
    again = forward(model, [1, 5, 9])
    for (part, name), value in zip(parts, integers, strict=True):
        setattr(part, name, value.dequantized())
    np.testing.assert_array_equal(first, forward(model, [1, 5, 9]))
    np.testing.assert_array_equal(first, again)
