"""Read tensors of a safetensors file with numpy alone.

The ``safetensors`` package checks the header; it cannot hand bfloat16 to numpy, so values are read
here.  A file is 8 bytes little-endian header length, that many bytes of JSON
``{"name": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...}``,
then the data, to which the offsets are relative.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shrinkc.core.errors import BadWeights

_LENGTH_BYTES = 8
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
    or with the file's size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np") as file:  # refuses a header that is wrong in any way
                self.metadata: dict[str, str] = dict(file.metadata() or {})
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
                table = json.loads(handle.read(length))
            # mapped, not read: a 16-bit checkpoint must not be in memory beside its float32 copy
            self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as exc:
            raise BadWeights(f"{path} cannot be read: {exc.strerror or exc}.") from exc
        except (SafetensorError, ValueError) as exc:  # ValueError: a number of thousands of digits
            size = path.stat().st_size
            raise BadWeights(
                f"{path} ({size} bytes) is damaged or cut short: {exc}.",
                hint="download or copy the file again.",
            ) from exc
        table.pop("__metadata__", None)
        start = _LENGTH_BYTES + length
        self.entries = {
            name: TensorEntry(
                about["dtype"],
                tuple(about["shape"]),
                *(start + offset for offset in about["data_offsets"]),
            )
            for name, about in table.items()
        }

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
        return np.frombuffer(self.raw(name), dtype=_INTEGERS[entry.dtype]).reshape(entry.shape)
