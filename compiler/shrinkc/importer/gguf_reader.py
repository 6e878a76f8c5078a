"""Reading of a GGUF file's tables with the ``gguf`` package of llama.cpp.

This module, and with it the package, is imported only when a GGUF file is opened.  The package trusts the
file: a wrong count makes it loop for ever.  Here nothing is read past the end of the file.  Arrays of
metadata are read as a whole, not value by value: LLaMA 3's vocabulary takes 0.4 s instead of 13 s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField
from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True)
class GgufTensor:
    """Entry of the tensor table.  ``begin`` and ``end``: byte offsets in the file.

    ``kind``: name of the type, or "type 99" if the package does not know it.  ``shape``: outermost first.
    ``block``: values and bytes per block.
    """

    kind: str
    shape: tuple[int, ...]
    block: tuple[int, int]
    begin: int

    @property
    def nbytes(self) -> int:
        values, width = self.block
        return math.prod(self.shape) // values * width

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


class GgufTables(GGUFReader):
    """Tables of a GGUF file, not checked.  ``fields``: metadata.  ``table``: names, tensors.  ``start``: of the data.

    Raises EOFError if the tables exceed the file.  Other wrong values can raise any exception of the
    package.
    """

    def __init__(self, path: Path) -> None:
        self.table: list[tuple[str, GgufTensor]] = []
        self.start = 0
        super().__init__(path)

    def _get(
        self,
        offset: int,
        dtype: DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> NDArray[Any]:
        little = np.dtype(dtype).newbyteorder("<")
        end = offset + int(count) * little.itemsize
        self._check_end(end)
        return np.asarray(self.data)[offset:end].view(little)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            # a plain int is readable in error messages
            return super()._get_field_parts(orig_offs, int(raw_type))
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count, end = GGUFValueType(int(head[0][0])), int(head[1][0]), orig_offs + 12
        values: list[Any] = []
        if kind == GGUFValueType.STRING:
            whole = self.data.data  # slices of a memoryview are faster than of an array
            for _ in range(count):
                begin = end + 8
                end = begin + int.from_bytes(whole[end:begin], "little")
                self._check_end(end)
                values.append(whole[begin:end])
        elif kind in self.gguf_scalar_to_np:
            values.append(self._get(end, self.gguf_scalar_to_np[kind], count))
            end += values[0].nbytes
        else:
            raise ValueError(f"an array of type {kind} is not supported")
        places = list(range(2, 2 + len(values)))
        return end - orig_offs, [*head, *values], places, [GGUFValueType.ARRAY, kind]

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        """Store the table.  The package would map tensors here without checking their offsets."""
        self.start = int(start_offs)
        for field in fields:
            *_, sizes, (number,), (offset,) = field.parts
            kind, block = _kind(int(number))
            shape = tuple(sizes[::-1].tolist())
            tensor = GgufTensor(kind, shape, block, self.start + int(offset))
            self.table.append((field.name, tensor))

    def _check_end(self, end: int) -> None:
        if end > len(self.data):
            raise EOFError(f"need {end} bytes, have {len(self.data)}")


def _kind(number: int) -> tuple[str, tuple[int, int]]:
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        return f"type {number}", (1, 1)
    return kind.name, GGML_QUANT_SIZES[kind]
