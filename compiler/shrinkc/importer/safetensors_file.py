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


def as_floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return a new array of the values whose bytes are ``raw``; ``dtype`` is one of FLOAT_DTYPES."""
    if dtype != "BF16":
        return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)
    # bfloat16 is the upper half of a float32
    wide = np.frombuffer(raw, "<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file ``path``; ``raw``: its bytes, uint8 and read-only, mapped into memory."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def read(self) -> NDArray[np.float32]:
        """Return a new float32 array; BadWeights if the dtype is not F32, F16 or BF16."""
        if self.dtype not in FLOAT_DTYPES:
            raise self._of_other_type(f"{', '.join(FLOAT_DTYPES)} are supported.")
        return as_floats(self.raw, self.dtype).reshape(self.shape)

    def read_integers(self) -> NDArray[np.integer]:
        """Return a read-only view; BadWeights if the dtype is no integer type up to 32 bits."""
        if self.dtype not in _INTEGERS:
            raise self._of_other_type("an integer type is needed.")
        return np.frombuffer(self.raw, dtype=_INTEGERS[self.dtype]).reshape(self.shape)

    def _of_other_type(self, needed: str) -> BadWeights:
        return BadWeights(f"{self.path}: {self.name} has dtype {self.dtype}; {needed}")


class SafetensorsFile:
    """One validated, memory-mapped file: its ``tensors`` by name.

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
            mapped: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as exc:
            raise BadWeights(f"{path} cannot be read: {exc.strerror or exc}.") from exc
        except (SafetensorError, ValueError) as exc:  # ValueError: a number of thousands of digits
            size = path.stat().st_size
            raise BadWeights(
                f"{path} ({size} bytes) is damaged or cut short: {exc}.",
                hint="download or copy the file again.",
            ) from exc
        table.pop("__metadata__", None)
        data = mapped[_LENGTH_BYTES + length :]
        self.tensors = {
            name: Tensor(path, name, t["dtype"], tuple(t["shape"]), data[slice(*t["data_offsets"])])
            for name, t in table.items()
        }
