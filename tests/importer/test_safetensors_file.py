from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers.tiny_llama import write_safetensors
from shrinkc.core.errors import BadWeights
from shrinkc.importer.safetensors_file import SafetensorsFile


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_agrees_with_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((7,)).astype(np.float16),
        "scalar": np.array(4, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x")
    assert file.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.tensors[name].read(), values.astype(np.float32))


def test_own_writer_is_valid_for_the_library(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_safetensors(tmp_path / "x", {"a": values})
    np.testing.assert_array_equal(load_file(tmp_path / "x")["a"], values)


def test_every_bfloat16_pattern(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    write_raw(tmp_path / "x", {"a": entry("BF16", [1 << 16], 0, 1 << 17)}, bits.tobytes())
    got = SafetensorsFile(tmp_path / "x").tensors["a"].read().view(np.uint32)
    np.testing.assert_array_equal(got, bits.astype(np.uint32) << 16)


def test_unaligned_data(tmp_path: Path) -> None:
    header = json.dumps({"a": entry("F32", [2], 0, 8)}).encode()
    header += b" " * (3 - len(header) % 4)
    write_raw(tmp_path / "x", header, np.array([1, 2], np.float32).tobytes())
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").tensors["a"].read(), [1, 2])


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x", {"a": entry("F32", [4], 0, 16)}, bytes(16))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadWeights, match=rf"\({length} bytes\) is damaged or cut short"):
            SafetensorsFile(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "invalid JSON"),
        (b"\xff\xff", "invalid UTF-8"),
        (b"[]", "invalid JSON"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "duplicate field"),
        ({"a": 1}, "invalid JSON"),
        ({"a": entry("F99", [4], 0, 16)}, "unknown variant `F99`"),
        ({"a": entry("F32", [-4], 0, 16)}, "integer `-4`"),
        ({"a": entry("F32", [True], 0, 16)}, "boolean `true`"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "missing field `data_offsets`"),
        ({"a": entry("F32", [4], 16, 0)}, "invalid offset"),
        ({"a": entry("F32", [5], 0, 16)}, "invalid shape, data type, or offset"),
        ({"a": entry("F32", [4], 16, 32)}, "invalid offset"),
        ({"a": entry("F32", [1 << 61], 0, 1 << 63)}, "overflow computing buffer size"),
        ({"a": entry("F32", [2], 8, 16)}, "invalid offset"),
        ({"a": entry("F32", [3], 0, 12), "b": entry("F32", [2], 8, 16)}, "invalid offset"),
        ({"a": entry("F32", [3], 0, 12)}, "file not fully covered"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    path = write_raw(tmp_path / "x", header, bytes(16))
    with pytest.raises(BadWeights) as caught:
        SafetensorsFile(path)
    assert message in str(caught.value)


def test_huge_header_length(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff" * 64)
    with pytest.raises(BadWeights, match="header too large"):
        SafetensorsFile(tmp_path / "x")


def test_a_number_that_python_does_not_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {**entry("F32", [4], 0, 16), "other": 0}}).encode()
    path = write_raw(tmp_path / "x", header.replace(b": 0}", b": " + b"9" * 5000 + b"}"), bytes(16))
    with pytest.raises(BadWeights, match="damaged"):
        SafetensorsFile(path)


def test_type_without_a_reader(tmp_path: Path) -> None:
    file = SafetensorsFile(write_raw(tmp_path / "x", {"a": entry("I8", [4], 0, 4)}, bytes(4)))
    with pytest.raises(BadWeights, match="a has dtype I8; F32, F16, BF16 are supported"):
        file.tensors["a"].read()
