"""Find the weight files of a checkpoint and give all its tensors one name space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.safetensors_file import SafetensorsFile, TensorEntry
from shrinkc.importer.weight_checks import listing

_SINGLE = "model.safetensors"
_MAX_NAME = 255  # bytes, of file systems
_INDEX = "model.safetensors.index.json"


class WeightFiles:
    """All tensors of a checkpoint, from one file or from the shards an index names."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        """Raises BadWeights if two files hold a tensor of the same name."""
        self._owner: dict[str, SafetensorsFile] = {}
        repeated: list[str] = []
        for file in files:
            for name in file.entries:
                if name in self._owner:
                    repeated.append(f"{name} ({self._owner[name].path.name}, {file.path.name})")
                self._owner[name] = file
        if repeated:
            raise BadWeights(
                f"tensors stored in more than one shard: {listing(repeated, 'names')}."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._owner

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        return {name: self.entry(name).shape for name in self._owner}

    def entry(self, name: str) -> TensorEntry:
        return self._owner[name].entries[name]

    def read(self, name: str) -> NDArray[np.float32]:
        """Return tensor ``name`` as float32."""
        return self._owner[name].read(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the stored bytes of tensor ``name`` as a read-only view."""
        return self._owner[name].raw(name)

    def read_integers(self, name: str) -> NDArray[np.integer]:
        """Return tensor ``name``, of an integer type, as a read-only view."""
        return self._owner[name].read_integers(name)


def has_weights(directory: Path) -> bool:
    """Whether there is something for :func:`open_weights` to open."""
    return (directory / _SINGLE).is_file() or (directory / _INDEX).is_file()


def open_weights(directory: Path) -> WeightFiles:
    """Open ``model.safetensors`` or the shards of ``model.safetensors.index.json``.

    Raises ModelNotFound if files are missing (all missing shards are named), BadWeights if a
    file is damaged or two shards hold the same tensor.
    """
    if (directory / _SINGLE).is_file():
        return WeightFiles([SafetensorsFile(directory / _SINGLE)])
    if (directory / _INDEX).is_file():
        return _open_shards(directory)
    raise ModelNotFound(
        f"{directory} holds neither {_SINGLE} nor {_INDEX}.", hint=_other_format_hint(directory)
    )


def _open_shards(directory: Path) -> WeightFiles:
    index_path = directory / _INDEX
    weight_map = read_json_object(index_path, BadWeights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadWeights(f"{index_path}: weight_map is missing, empty or not an object.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    # a shard is a plain file name: an index from elsewhere must not open other files
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
    # which shard holds which tensor the shards say themselves
    return WeightFiles([SafetensorsFile(directory / shard) for shard in shards])


def _other_format_hint(directory: Path) -> str:
    if any(directory.glob("pytorch_model*.bin")):
        return (
            "convert pytorch_model.bin with transformers: "
            "AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out)."
        )
    if any(directory.glob("*.gguf")):
        return "to read a GGUF file, give the file itself."
    return "download the model's safetensors files."
