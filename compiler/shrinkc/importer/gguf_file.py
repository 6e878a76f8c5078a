"""GGUF files: validated metadata and memory-mapped tensors.

The ``gguf`` package reads the tables (:mod:`shrinkc.importer.gguf_reader`).  This module refuses invalid
files that the package accepts.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound, UnsupportedModel
from shrinkc.importer.gguf_blocks import KINDS
from shrinkc.importer.weight_checks import listing

if TYPE_CHECKING:
    from shrinkc.importer.gguf_reader import GgufTables, GgufTensor

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4


class GgufFile:
    """One validated, memory-mapped file: ``metadata`` by key, ``tensors`` by name.

    Raises ModelNotFound (cannot be opened), BadWeights (truncated, or not consistent with itself),
    or UnsupportedModel (version, byte order, or tensor types; all are named).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        try:
            self._check_beginning()
            tables = self._read_tables()
        except OSError as exc:
            raise ModelNotFound(f"{path} cannot be read: {exc.strerror}.") from exc
        self._bytes: NDArray[np.uint8] = np.asarray(tables.data)
        self.tensors = self._checked(tables)

    def block_bytes(self, name: str) -> NDArray[np.uint8]:
        """Return the data of tensor ``name`` as uint8 [rows, blocks per row, bytes per block].

        A tensor of one dimension has one row.
        """
        tensor = self.tensors[name]
        values, width = tensor.block
        raw = self._bytes[tensor.begin : tensor.end]
        return raw.reshape(-1, tensor.shape[-1] // values, width)

    def _check_beginning(self) -> None:
        with self.path.open("rb") as handle:
            magic, version = handle.read(4), handle.read(4)
        if not b"GGUF".startswith(magic):
            self._refuse(f"it begins with {magic!r}, not b'GGUF'")
        if len(version) < 4:
            self._truncated(f"need 8 bytes, have {len(magic + version)}")
        little, big = (int.from_bytes(version, order) for order in ("little", "big"))
        if little not in _VERSIONS:
            what = (
                f"version {big} in big-endian byte order"
                if big in _VERSIONS
                else f"version {little}"
            )
            raise UnsupportedModel(
                f"{self.path}: {what}; versions 2 and 3, little-endian, are supported.",
                hint="convert the model again with a current llama.cpp.",
            )

    def _read_tables(self) -> GgufTables:
        from shrinkc.importer.gguf_reader import GgufTables

        key = "the tables"
        try:
            tables = GgufTables(self.path)
            for key, field in tables.fields.items():
                if not key.startswith("GGUF."):  # keys added by the package
                    self.metadata[key] = field.contents()
        except OSError:
            raise
        except EOFError as exc:
            self._truncated(str(exc))
        except UnicodeDecodeError as exc:
            self._refuse(f"{key}: not UTF-8 ({exc})")
        except Exception as exc:  # the package does not check values, so any exception is possible
            self._refuse(str(exc.args[0]) if exc.args else type(exc).__name__)
        return tables

    def _checked(self, tables: GgufTables) -> dict[str, GgufTensor]:
        """Return the tensor table by name, after checking that types are supported and data does not overlap."""
        counts = Counter(name for name, _ in tables.table)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            self._refuse(f"tensors occur more than once: {listing(repeated, 'names')}")
        self._check_kinds(tables.table)
        faults: list[str] = []
        for name, tensor in tables.table:
            shape, (values, _) = tensor.shape, tensor.block
            if not 1 <= len(shape) <= _MAX_DIMENSIONS:
                faults.append(f"{name} has {len(shape)} dimensions")
            elif 0 in shape or shape[-1] % values:
                faults.append(f"{name} is {list(shape)}, in blocks of {values}")
            elif tensor.begin % tables.alignment:  # the data section is aligned too
                offset = tensor.begin - tables.start
                faults.append(f"{name} begins at {offset}, no multiple of {tables.alignment}")
        previous_end, previous = tables.start, ""
        for name, tensor in sorted(tables.table, key=lambda item: item[1].begin):
            if tensor.begin < previous_end:
                faults.append(f"{name} overlaps {previous}")
            previous_end, previous = tensor.end, name
        if faults:
            self._refuse(f"the tensor table is not consistent: {listing(faults)}")
        if previous and previous_end > len(self._bytes):
            self._truncated(
                f"need {previous_end} bytes for the data of {previous}, have {len(self._bytes)}"
            )
        return dict(tables.table)

    def _check_kinds(self, table: list[tuple[str, GgufTensor]]) -> None:
        unsupported: dict[str, list[str]] = {}
        for name, tensor in table:
            if tensor.kind not in KINDS:
                unsupported.setdefault(tensor.kind, []).append(name)
        if unsupported:
            kinds = [
                listing(names, f"tensors are {kind}", f"{{}} is {kind}")
                for kind, names in unsupported.items()
            ]
            raise UnsupportedModel(
                f"{self.path}: {sum(map(len, unsupported.values()))} of {len(table)} tensors are of "
                f"types that are not supported ({', '.join(KINDS)} are): {'; '.join(kinds)}.",
                hint="requantise the model with llama.cpp: llama-quantize IN OUT Q4_K_M.",
            )

    def _truncated(self, what: str) -> NoReturn:
        raise BadWeights(
            f"{self.path} is truncated: {what}.", hint="download or copy the file again."
        )

    def _refuse(self, what: str) -> NoReturn:
        raise BadWeights(
            f"{self.path}: {what}.", hint="the file is damaged, or not a GGUF file; copy it again."
        )
