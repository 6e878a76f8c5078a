from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_llama import write_safetensors
from shrinkc.core.errors import BadWeights, ShapeMismatch
from shrinkc.importer import QuantizedWeight
from shrinkc.importer.embedding_sidecar import (
    check_agreement,
    embedding_format,
    read_embedding,
    write_embedding,
)
from shrinkc.importer.model import Zero
from shrinkc.importer.safetensors_file import SafetensorsFile


def table(
    bits: int = 4, group: int = 8, hidden: int = 24, symmetric: bool = False
) -> QuantizedWeight:
    rng = np.random.default_rng(bits)
    groups = -(-hidden // group)
    scale = rng.uniform(0.01, 1, (10, groups)).astype(np.float16).astype(np.float32)
    offset = rng.uniform(-1, 0, (10, groups)).astype(np.float16).astype(np.float32)
    if symmetric:
        offset = -float(1 << (bits - 1)) * scale
    q = rng.integers(0, 1 << bits, (10, hidden)).astype(np.uint8)
    return QuantizedWeight(bits, group, q, scale, offset)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(2, 24), (3, 8), (3, 16), (4, 8), (8, 24), (8, 16)])
def test_round_trip(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    written = table(bits, group, symmetric=symmetric)
    write_embedding(tmp_path / "e.safetensors", written)
    read = read_embedding(tmp_path / "e.safetensors")
    assert (read.bits, read.group, read.order) == (bits, group, None)
    for name in ("q", "scale", "offset"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    shown = embedding_format(tmp_path / "e.safetensors", written.shape)
    assert shown == (bits, group, Zero.MIDDLE if symmetric else Zero.ANY)
    with pytest.raises(ShapeMismatch, match="the table of the model is"):
        embedding_format(tmp_path / "e.safetensors", (written.shape[0] + 1, written.shape[1]))
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]
    again = tmp_path / "again.safetensors"
    write_embedding(again, written)
    assert again.read_bytes() == (tmp_path / "e.safetensors").read_bytes()


@pytest.mark.parametrize(("bits", "group"), [(2, 24), (3, 8), (3, 24), (4, 8)])
def test_integer_zero_points_take_their_bits(tmp_path: Path, bits: int, group: int) -> None:
    weight = table(bits, group)
    points = np.random.default_rng(1).integers(0, 1 << bits, weight.scale.shape)
    weight = dataclasses.replace(weight, offset=-weight.scale * points.astype(np.float32))
    write_embedding(tmp_path / "e.safetensors", weight)
    read = read_embedding(tmp_path / "e.safetensors")
    for name in ("q", "scale", "offset"):
        np.testing.assert_array_equal(getattr(read, name), getattr(weight, name))
    assert embedding_format(tmp_path / "e.safetensors", weight.shape) == (bits, group, Zero.POINT)
    stored = SafetensorsFile(tmp_path / "e.safetensors").tensors
    assert sorted(stored) == ["q", "scale", "zero"]
    assert stored["zero"].nbytes == -(-points.size * bits // 8)


def test_other_libraries_can_read_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    written = table()
    write_embedding(tmp_path / "e.safetensors", written)
    with safe_open(tmp_path / "e.safetensors", "np") as file:
        q = file.get_tensor("q")
        np.testing.assert_array_equal(q & 15, written.q[:, 0::2])
        np.testing.assert_array_equal(q >> 4, written.q[:, 1::2])
        assert file.get_tensor("scale").dtype == np.float16
        assert file.metadata()["group"] == "8"


@pytest.mark.parametrize(
    "changes",
    [
        {"order": np.arange(24)},
        {"scale": np.full((10, 3), 1 / 3, dtype=np.float32)},
        {"offset": np.full((10, 3), 1e6, dtype=np.float32)},
    ],
)
def test_what_the_file_cannot_hold(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        write_embedding(tmp_path / "e.safetensors", dataclasses.replace(table(), **changes))
    assert list(tmp_path.iterdir()) == []


def test_rows_have_to_fill_bytes(tmp_path: Path) -> None:
    """Twenty inputs do at 4 bit, and not at 3."""
    write_embedding(tmp_path / "e.safetensors", table(4, 4, 20))
    with pytest.raises(ValueError, match="3 bit, 20 inputs"):
        write_embedding(tmp_path / "f.safetensors", table(3, 4, 20))
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        ({"version": "4"}, {}, "version '4'"),
        ({"version": "3"}, {}, "zero = None; middle, points, offsets are allowed"),
        ({"version": "3", "zero": "middle"}, {}, "unexpected offset"),
        ({"version": "3", "zero": "points"}, {}, "zero has to be U8 with 1 dimensions"),
        ({"format": "pt"}, {}, "format 'pt'"),
        ({"bits": "5"}, {}, "bits = '5'; 2, 3, 4, 8 are allowed"),
        (
            {"bits": "3"},
            {"q": np.zeros((10, 10), dtype=np.uint8)},
            "q has 10 bytes per row, which 3 bit do not fill",
        ),
        ({"group": "x"}, {}, "group = 'x'"),
        ({"group": "0"}, {}, "group = '0'"),
        ({"group": "25"}, {}, "group = 25 with 24 inputs"),
        ({}, {"q": np.zeros((10, 12), dtype=np.int8)}, "q has to be U8"),
        ({}, {"scale": np.ones((10, 2), dtype=np.float16)}, "scale is [10, 2], not [10, 3]"),
        ({}, {"offset": np.ones((10, 3), dtype=np.float32)}, "offset has to be F16"),
        ({}, {"other": np.ones(1, dtype=np.float32)}, "unexpected other"),
        ({}, {"scale": np.zeros((10, 3), dtype=np.float16)}, "positive and finite"),
        ({}, {"offset": np.full((10, 3), np.nan, dtype=np.float16)}, "finite"),
    ],
)
def test_refused(
    tmp_path: Path, metadata: dict[str, str], tensors: dict[str, np.ndarray], said: str
) -> None:
    base = {"format": "shrinkc-embedding", "version": "1", "bits": "4", "group": "8"}
    parts = {
        "q": np.zeros((10, 12), dtype=np.uint8),
        "scale": np.ones((10, 3), dtype=np.float16),
        "offset": np.ones((10, 3), dtype=np.float16),
    }
    file = tmp_path / "e.safetensors"
    write_safetensors(file, {**parts, **tensors}, metadata={**base, **metadata})
    with pytest.raises(BadWeights) as caught:
        read_embedding(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(("dtype", "digits"), [("F16", 11), ("F32", 24), ("BF16", 8)])
def test_agreement_up_to_rounding(dtype: str, digits: int) -> None:
    weight = table()
    exact = weight.dequantized()
    mantissa, exponent = np.frexp(exact)
    rounded = np.ldexp(np.round(mantissa * 2**digits) / 2**digits, exponent).astype(np.float32)
    check_agreement(Path("e"), weight, rounded, dtype)
    rounded[3, 4] *= 1.02
    with pytest.raises(ShapeMismatch, match="differ in 1 of 240 values"):
        check_agreement(Path("e"), weight, rounded, dtype)
    with pytest.raises(ShapeMismatch, match=r"holds \[10, 24\]"):
        check_agreement(Path("e"), weight, rounded[:5], dtype)
