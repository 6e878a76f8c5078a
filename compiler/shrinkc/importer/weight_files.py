"""Find the weight files of a checkpoint and give all its tensors one name space."""

from __future__ import annotations

from pathlib import Path

from shrinkc.core.errors import BadWeights, ModelNotFound
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.safetensors_file import SafetensorsFile, Tensor
from shrinkc.importer.weight_checks import listing

_SINGLE = "model.safetensors"
_MAX_NAME = 255  # bytes, of file systems
_INDEX = "model.safetensors.index.json"


def has_weights(directory: Path) -> bool:
    """Whether there is something for :func:`open_weights` to open."""
    return (directory / _SINGLE).is_file() or (directory / _INDEX).is_file()


def open_weights(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of ``model.safetensors``, or of the shards of ``model.safetensors.index.json``, by name.

    Raises ModelNotFound if files are missing (all missing shards are named), BadWeights if a
    file is damaged or two shards hold the same tensor.
    """
    if (directory / _SINGLE).is_file():
        return SafetensorsFile(directory / _SINGLE).tensors
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
