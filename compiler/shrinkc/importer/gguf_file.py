"""Read the container of a GGUF file: metadata, and tensors in place.

The format (github.com/ggml-org/ggml, ``docs/gguf.md``), all little-endian::

    "GGUF", uint32 version, uint64 tensors, uint64 metadata entries
    per entry:   string key, uint32 type, value      (string: uint64 length, bytes)
    per tensor:  string name, uint32 dimensions, uint64 sizes, innermost first,
                 uint32 type, uint64 offset from the start of the data
    padding to ``general.alignment`` (32), data
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound, UnsupportedModel
from shrinkc.importer.weight_checks import listing

_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_MAX_DIMENSIONS = 4
# more than any vocabulary; a larger count is a corrupt length
_MAX_COUNT = 1 << 26

_STRING, _ARRAY = 8, 9
# value type -> struct format; bool is checked apart
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

# tensor type -> name (``ggml.h``)
_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
# supported type -> (values per block, bytes per block)
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: ``shape`` outermost first, ``begin`` and ``end`` bytes of the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class GgufFile:
    """One validated, memory-mapped file: ``metadata`` by key, ``tensors`` by name.

    Raises ModelNotFound (cannot be opened), BadWeights (truncated, or not consistent with itself),
    or UnsupportedModel (version, byte order, or tensor types, all of which are named).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # an empty file cannot be mapped
            size = path.stat().st_size
            self._bytes: NDArray[np.uint8] = (
                np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
                if size
                else np.empty(0, np.uint8)
            )
        except OSError as exc:
            raise ModelNotFound(f"{path} cannot be read: {exc.strerror}.") from exc
        self._header_bytes = self._bytes.data  # slices of an array are slow
        self._position = 0
        tensors, entries = self._header()
        self.metadata: dict[str, Any] = {}
        for index in range(entries):
            key = self._string(f"the key of metadata entry {index}")
            if key in self.metadata:
                self._refuse(f"the metadata key {key!r} occurs twice")
            self.metadata[key] = self._value(self._number("I", key), key)
        infos = [self._tensor_info(index) for index in range(tensors)]
        self.tensors = self._place(infos)

    def block_bytes(self, name: str) -> NDArray[np.uint8]:
        """Return the data of tensor ``name`` as uint8 [rows, blocks per row, bytes per block].

        A tensor of one dimension has one row.
        """
        tensor = self.tensors[name]
        values, width = BLOCKS[tensor.kind]
        raw = self._bytes[tensor.begin : tensor.end]
        return raw.reshape(-1, tensor.shape[-1] // values, width)

    def _header(self) -> tuple[int, int]:
        magic = self._take(4, "the magic number").tobytes()
        if magic != b"GGUF":
            self._refuse(f"it begins with {magic!r}, not b'GGUF'")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = f"version {version}"
            if swapped in _VERSIONS:
                what = f"version {swapped} in big-endian byte order"
            raise UnsupportedModel(
                f"{self.path}: {what}; versions 2 and 3, little-endian, are supported.",
                hint="convert the model again with a current llama.cpp.",
            )
        return self._count("the number of tensors"), self._count("the number of metadata entries")

    def _tensor_info(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
        what = f"entry {index} of the tensor table"
        name = self._string(what)
        dimensions = self._number("I", what)
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            self._refuse(f"{name} has {dimensions} dimensions")
        sizes = tuple(int(self._number("Q", what)) for _ in range(dimensions))
        return name, sizes[::-1], self._number("I", what), self._number("Q", what)

    def _place(self, infos: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, GgufTensor]:
        names = [name for name, *_ in infos]
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            self._refuse(f"tensors occur more than once: {listing(repeated, 'names')}")
        unsupported: dict[str, list[str]] = {}
        for name, _, kind, _ in infos:
            label = _TYPE_NAMES.get(kind, f"of type {kind}")
            if label not in BLOCKS:
                unsupported.setdefault(label, []).append(name)
        if unsupported:
            kinds = [
                listing(found, f"tensors are {label}", f"{{}} is {label}")
                for label, found in unsupported.items()
            ]
            raise UnsupportedModel(
                f"{self.path}: {sum(map(len, unsupported.values()))} of {len(infos)} tensors are of "
                f"types that are not supported ({', '.join(BLOCKS)} are): {'; '.join(kinds)}.",
                # Q4_1 alone leaves embedding and head in Q6_K
                hint="requantise the model with llama.cpp: llama-quantize --token-embedding-type q8_0 "
                "--output-tensor-type q8_0 IN OUT Q4_1, or to Q8_0.",
            )
        alignment = self.metadata.get(_ALIGNMENT_KEY, 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._refuse(f"{_ALIGNMENT_KEY} = {alignment!r}; a power of two is needed")
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        faults: list[str] = []
        for name, shape, kind, offset in infos:
            values, width = BLOCKS[_TYPE_NAMES[kind]]
            if 0 in shape or shape[-1] % values:
                faults.append(f"{name} is {list(shape)}, in blocks of {values}")
                continue
            if offset % alignment:
                faults.append(f"{name} begins at {offset}, no multiple of {alignment}")
            begin = start + offset
            end = begin + math.prod(shape) // values * width
            tensors[name] = GgufTensor(_TYPE_NAMES[kind], shape, begin, end)
        previous_end, previous = start, ""
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            if tensor.begin < previous_end:
                faults.append(f"{name} overlaps {previous}")
            previous_end, previous = tensor.end, name
        if faults:
            self._refuse(f"the tensor table is not consistent: {listing(faults)}")
        if tensors and previous_end > len(self._bytes):
            self._truncated(f"the data of {previous}", previous_end)
        return tensors

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            inner, count = self._number("I", key), self._count(key)
            if inner == _STRING:
                return [self._string(key) for _ in range(count)]
            if inner not in _SCALARS:
                self._refuse(f"{key} is an array of type {inner}")
            form = np.dtype(_SCALARS[inner]).newbyteorder("<")
            return np.frombuffer(self._take(count * form.itemsize, key), form).tolist()
        if kind not in _SCALARS:
            self._refuse(f"{key} is of type {kind}")
        return self._number(_SCALARS[kind], key)

    def _count(self, what: str) -> int:
        count = int(self._number("Q", what))
        if count > _MAX_COUNT:
            self._refuse(f"{what}: a count of {count}; at most {_MAX_COUNT} is allowed")
        return count

    def _string(self, what: str) -> str:
        length = int(self._number("Q", what))
        try:
            return self._take(length, what).tobytes().decode("utf-8")
        except UnicodeDecodeError as exc:
            raise BadWeights(f"{self.path}: {what} is not UTF-8 ({exc}).") from exc

    def _number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form), what))[0]

    def _take(self, count: int, what: str) -> memoryview:
        end = self._position + count
        if end > len(self._bytes):
            self._truncated(what, end)
        part = self._header_bytes[self._position : end]
        self._position = end
        return part

    def _truncated(self, what: str, need: int) -> None:
        raise BadWeights(
            f"{self.path} is truncated in {what}: need {need} bytes, have {len(self._bytes)}.",
            hint="download or copy the file again.",
        )

    def _refuse(self, what: str) -> None:
        raise BadWeights(
            f"{self.path}: {what}.", hint="the file is damaged, or not a GGUF file; copy it again."
        )
