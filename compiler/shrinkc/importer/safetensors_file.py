"""Reading of safetensors files with numpy.

The ``safetensors`` package checks the header.  It cannot give bfloat16 to numpy, so values are read
here.  A file has an 8-byte little-endian header length, a JSON header of that length,
``{"name": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ...}``,
and the data; offsets are relative to the beginning of the data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from shrinkc.core.errors import BadWeights, ModelNotFound
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.weight_checks import listing

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
PACKED = "packed.safetensors"
"""Weights of a packed step; under this name no other library reads them without their embedding."""
_MAX_NAME = 255  # bytes of a file name in common file systems
_LENGTH_BYTES = 8
FLOAT_DTYPES = ("F32", "F16", "BF16")
_INTEGERS = {"U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}


def as_floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return the bytes ``raw`` as a new float32 array; ``dtype`` is one of FLOAT_DTYPES."""
    if dtype != "BF16":
        return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)
    # bfloat16 is the upper half of a float32
    wide = np.frombuffer(raw, "<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@dataclass(frozen=True, eq=False)
class Tensor:
    """Tensor of the file ``path``.  ``raw``: its bytes, uint8, read-only and memory-mapped."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def read(self) -> NDArray[np.float32]:
        """Return a new float32 array.  Raises BadWeights if the dtype is not F32, F16 or BF16."""
        if self.dtype not in FLOAT_DTYPES:
            raise self._of_other_type(f"{', '.join(FLOAT_DTYPES)} are supported.")
        return as_floats(self.raw, self.dtype).reshape(self.shape)

    def read_integers(self) -> NDArray[np.integer]:
        """Return a read-only view.  Raises BadWeights if the dtype is not an integer type of at most 32 bits."""
        if self.dtype not in _INTEGERS:
            raise self._of_other_type("an integer type is needed.")
        return np.frombuffer(self.raw, dtype=_INTEGERS[self.dtype]).reshape(self.shape)

    def _of_other_type(self, needed: str) -> BadWeights:
        return BadWeights(f"{self.path}: {self.name} has dtype {self.dtype}; {needed}")


class SafetensorsFile:
    """Validated, memory-mapped file with its ``tensors`` by name.

    ``metadata`` is the header's ``__metadata__``.
    Raises BadWeights if the file is truncated, or its header contradicts itself or the file's size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "np") as file:  # validates the header
                self.metadata: dict[str, str] = dict(file.metadata() or {})
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
                table = json.loads(handle.read(length))
            # mapped, not read: memory should not hold both the 16-bit checkpoint and its float32 copy
            mapped: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except OSError as exc:
            raise BadWeights(f"{path} cannot be read: {exc.strerror or exc}.") from exc
        except (SafetensorError, ValueError) as exc:
            # ValueError: a number with thousands of digits
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


def has_weights(directory: Path) -> bool:
    """Return whether ``directory`` has weights that :func:`open_weights` can open."""
    return any((directory / name).is_file() for name in (_SINGLE, _INDEX, PACKED))


def open_weights(directory: Path) -> dict[str, Tensor]:
    """Return the tensors by name: of ``packed.safetensors``, of ``model.safetensors``, or of the shards of
    ``model.safetensors.index.json``.

    Raises ModelNotFound if files are missing (all missing shards are named), BadWeights if a
    file is damaged or two shards hold the same tensor.
    """
    for name in (PACKED, _SINGLE):
        if (directory / name).is_file():
            return SafetensorsFile(directory / name).tensors
    if (directory / _INDEX).is_file():
        return _open_shards(directory)
    raise ModelNotFound(
        f"{directory} holds neither {_SINGLE} nor {_INDEX}.", hint=_other_format_hint(directory)
    )


def _open_shards(directory: Path) -> dict[str, Tensor]:
    index_path = directory / _INDEX
    weight_map = read_json_object(index_path, BadWeights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index_path}: weight_map is missing, empty or not an object.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    # a shard must be a plain file name, so that a malicious index cannot open other files
    strange = [
        shard
        for shard in shards
        if Path(shard).name != shard or len(shard.encode("utf-8", "replace")) > _MAX_NAME
    ]
    if strange:
        raise BadWeights(
            f"{index_path}: not plain file names: {listing([*map(repr, strange)], 'names')}."
        )
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise ModelNotFound(
            f"{directory} lacks {len(missing)} of {len(shards)} weight files named by {_INDEX}: "
            f"{listing(missing, 'files')}.",
            hint="download the missing files.",
        )
    # the index's assignment of tensors to shards is not needed: shards have headers
    found: dict[str, Tensor] = {}
    repeated = []
    for shard in shards:
        for name, tensor in SafetensorsFile(directory / shard).tensors.items():
            if name in found:
                repeated.append(f"{name} ({found[name].path.name}, {shard})")
            found[name] = tensor
    if repeated:
        raise BadWeights(f"tensors stored in more than one shard: {listing(repeated, 'names')}.")
    return found


def _other_format_hint(directory: Path) -> str:
    if any(directory.glob("pytorch_model*.bin")):
        return (
            "convert pytorch_model.bin with transformers: "
            "AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out)."
        )
    if any(directory.glob("*.gguf")):
        return "to read a GGUF file, give the file itself."
    return "download the model's safetensors files."
