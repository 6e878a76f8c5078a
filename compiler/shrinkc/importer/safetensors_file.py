"""Read tensors of a safetensors file with numpy alone.

The ``safetensors`` package cannot hand bfloat16 to numpy, so the header is read here:
8 bytes little-endian header length, that many bytes of JSON
``{"name": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...}``,
then the data, to which the offsets are relative.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights
from shrinkc.importer.weight_checks import listing

_LENGTH_BYTES = 8
# the limit of the reference implementation; a longer header is a corrupt length field
_MAX_HEADER = 100_000_000

_BYTES_PER_VALUE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
FLOAT_DTYPES = ("F32", "F16", "BF16")
_INTEGERS = {"U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``begin`` and ``end`` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """One validated, memory-mapped file; ``entries`` maps tensor names to their places.

    ``metadata`` is what the file says about itself.

    Raises BadWeights if the file is truncated or its header is not consistent with itself
    or with the file's size; every fault found in the header is listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            size = path.stat().st_size
            with path.open("rb") as handle:
                prefix = handle.read(_LENGTH_BYTES)
                self._need(_LENGTH_BYTES, size, "the header length")
                length = int.from_bytes(prefix, "little")
                if length > _MAX_HEADER:
                    raise BadWeights(
                        f"{path}: the header length is {length} bytes; at most {_MAX_HEADER} "
                        "is allowed.",
                        hint="this is probably not a safetensors file.",
                    )
                self._need(_LENGTH_BYTES + length, size, "the header")
                header = handle.read(length)
        except OSError as exc:
            raise BadWeights(f"{path} cannot be read: {exc.strerror}.") from exc
        self.entries = self._parse(header, _LENGTH_BYTES + length, size)
        # mapped, not read: a 16-bit checkpoint must not be in memory beside its float32 copy
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")

    def read(self, name: str) -> NDArray[np.float32]:
        """Return tensor ``name`` as a new float32 array of its shape.

        Raises BadWeights if its dtype is not F32, F16 or BF16.
        """
        entry = self.entries[name]
        raw = self._bytes[entry.begin : entry.end]
        values: NDArray[np.float32]
        if entry.dtype == "F32":
            values = np.frombuffer(raw, dtype="<f4").astype(np.float32)
        elif entry.dtype == "F16":
            values = np.frombuffer(raw, dtype="<f2").astype(np.float32)
        elif entry.dtype == "BF16":
            # bfloat16 is the upper half of a float32
            wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32)
            wide <<= 16
            values = wide.view(np.float32)
        else:
            raise BadWeights(
                f"{self.path}: {name} has dtype {entry.dtype}; "
                f"{', '.join(FLOAT_DTYPES)} are supported."
            )
        return values.reshape(entry.shape)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the stored bytes of tensor ``name`` as a read-only view."""
        entry = self.entries[name]
        return self._bytes[entry.begin : entry.end]

    def read_integers(self, name: str) -> NDArray[np.integer]:
        """Return tensor ``name``, of an integer type up to 32 bits, as a read-only view.

        Raises BadWeights for another dtype.
        """
        entry = self.entries[name]
        if entry.dtype not in _INTEGERS:
            raise BadWeights(
                f"{self.path}: {name} has dtype {entry.dtype}; an integer type is needed."
            )
        raw = self._bytes[entry.begin : entry.end]
        return np.frombuffer(raw, dtype=_INTEGERS[entry.dtype]).reshape(entry.shape)

    def _need(self, need: int, have: int, what: str) -> None:
        if have < need:
            raise BadWeights(
                f"{self.path} is truncated in {what}: need {need} bytes, have {have}.",
                hint="download or copy the file again.",
            )

    def _parse(self, header: bytes, data_start: int, size: int) -> dict[str, TensorEntry]:
        try:
            table = json.loads(header, object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as exc:
            raise BadWeights(f"{self.path}: the header is not valid JSON ({exc}).") from exc
        if not isinstance(table, dict):
            raise BadWeights(f"{self.path}: the header is not a JSON object.")
        metadata = table.pop("__metadata__", None)
        if isinstance(metadata, dict):
            self.metadata = {str(key): str(value) for key, value in metadata.items()}

        entries: dict[str, TensorEntry] = {}
        faults: list[str] = []
        for name, description in table.items():
            try:
                entries[name] = _entry(description, data_start)
            except ValueError as exc:
                faults.append(f"{name}: {exc}")
        if faults:
            raise BadWeights(
                f"{self.path}: the header is not consistent: {listing(faults, 'entries')}."
            )

        end = max((entry.end for entry in entries.values()), default=data_start)
        self._need(end, size, "the tensor data")
        # The format allows neither gaps nor overlaps; either means that the header
        # belongs to another file.
        position = data_start
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != position:
                what = (
                    "overlaps the tensor before it" if entry.begin < position else "follows a gap"
                )
                raise BadWeights(
                    f"{self.path}: {name} {what}: it begins at byte {entry.begin}, "
                    f"expected {position}."
                )
            position = entry.end
        if position != size:
            raise BadWeights(
                f"{self.path} has {size - position} bytes after the last tensor: "
                f"need {position} bytes, have {size}."
            )
        return entries


def _entry(description: Any, data_start: int) -> TensorEntry:
    if not isinstance(description, dict):
        raise ValueError("the entry is not an object")
    dtype, shape = description.get("dtype"), description.get("shape")
    offsets = description.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BYTES_PER_VALUE:
        raise ValueError(f"dtype {dtype!r} is not known")
    if not _is_list_of_sizes(shape):
        raise ValueError(f"shape {shape!r} is not a list of sizes")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {offsets!r} is not [begin, end]")
    need, have = math.prod(shape) * _BYTES_PER_VALUE[dtype], offsets[1] - offsets[0]
    if need != have:
        raise ValueError(f"{dtype} {shape} needs {need} bytes, data_offsets give {have}")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_list_of_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys {repeated}")
    return table
