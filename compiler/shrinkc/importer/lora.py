"""Import of low-rank adapters (LoRA of PEFT, EoRA of GPTQModel) into a FloatModel."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.core.errors import (
    BadConfig,
    BadWeights,
    ModelNotFound,
    ShapeMismatch,
    UnsupportedModel,
)
from shrinkc.importer.assembly import check_float, check_names_and_shapes
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.model import FloatModel, LowRankAdapter, QuantizedWeight
from shrinkc.importer.safetensors_file import SafetensorsFile
from shrinkc.importer.weight_checks import listing, non_finite
from shrinkc.model import FIELDS, LlamaConfig, layer_shapes, module_name

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"

# larger values mean a corrupt file
_RANK_MAX, _ALPHA_MAX = 65535, 1e9

_READ = frozenset(
    {"r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"}
)
# bookkeeping, training only, or settings of a finished initialisation
# fmt: off
_HARMLESS = frozenset({
    "arrow_config", "auto_mapping", "base_model_name_or_path", "corda_config",
    "ensure_weight_tying", "eva_config", "inference_mode", "layers_pattern", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
})
# fmt: on
# field -> values without effect; any other field must be off (null, false, empty)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # PiSSA, OLoRA, CorDA and LoftQ also change the base weights, so the base model's
    # files would be the wrong ones
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", None),
}
_SAME = (
    "the adapter has to be trained on this base model, with only q, k, v, o, gate, up and down "
    "projections as targets."
)
_OFF: tuple[Any, ...] = (None, False, "", [], {})
_REASONS = {
    "use_dora": "DoRA normalises the weights",
    "modules_to_save": "only low-rank matrices are imported, no fully trained modules",
    "bias": "trained biases are not supported",
    "rank_pattern": "one rank for all modules is supported",
    "alpha_pattern": "one lora_alpha for all modules is supported",
    "init_lora_weights": "this initialisation changes the base weights",
}


@dataclass(frozen=True)
class _AdapterConfig:
    rank: int
    scaling: float
    targets: str | list[str]
    excluded: str | list[str]
    layers: list[int] | None


def load_adapter(directory: Path, model: FloatModel) -> None:
    """Fill ``FloatLayer.adapters`` of ``model`` from the PEFT or EoRA directory ``directory``.

    ``a`` becomes float32 [rank, in], ``b`` float32 [out, rank] times ``lora_alpha / r`` (or
    ``lora_alpha / sqrt(r)`` with rsLoRA); GPTQModel applies no such factor and writes
    ``lora_alpha = r``.  Raises ModelNotFound, BadConfig, UnsupportedModel,
    BadWeights or ShapeMismatch; ``model`` is then unchanged.
    """
    quantized = {
        module_name(index, module)
        for index, layer in enumerate(model.layers)
        for module, field in FIELDS.items()
        if isinstance(getattr(layer, field), QuantizedWeight)
    }
    config, file, targets = _open(directory, model.config, quantized)
    names = (_key(*pair, side) for pair in targets for side in "AB")
    tensors = {name: file.tensors[name].read() for name in names}
    faults = [fault for name, values in tensors.items() if (fault := non_finite(name, values))]
    if not faults:
        for layer, module in targets:
            name = _key(layer, module, "B")
            with np.errstate(over="ignore"):  # checked below
                tensors[name] *= np.float32(config.scaling)
            if fault := non_finite(f"{name} times {config.scaling:g} (alpha / r)", tensors[name]):
                faults.append(fault)
    if faults:
        raise BadWeights(f"{file.path}: {listing(faults)}.", hint="the adapter is damaged.")
    for layer, module in targets:
        model.layers[layer].adapters[module] = LowRankAdapter(
            a=tensors[_key(layer, module, "A")], b=tensors[_key(layer, module, "B")]
        )


def adapter_ranks(
    directory: Path, config: LlamaConfig, quantized: Collection[str]
) -> dict[tuple[int, str], int]:
    """Return (layer, module such as "q_proj") -> rank of every adapter, without reading weights.

    ``quantized``: names ("model.layers.0.mlp.up_proj") of the base model's quantised matrices.  Raises the errors
    of :func:`load_adapter`, except those about values.
    """
    adapter, _, targets = _open(directory, config, quantized)
    return dict.fromkeys(targets, adapter.rank)


def _open(
    directory: Path, base: LlamaConfig, quantized: Collection[str]
) -> tuple[_AdapterConfig, SafetensorsFile, list[tuple[int, str]]]:
    """Return configuration, weights and (layer, module) pairs, after checking them against the base model."""
    config = _load_config(directory)
    file = SafetensorsFile(_find(directory, _WEIGHTS))
    targets = _quantized_or_stored(_targeted(config, base.num_layers), quantized, file)
    if not targets:
        raise ShapeMismatch(f"{directory}: target_modules match no projection of the model.")
    sizes = {name.rpartition(".")[2]: shape for name, shape in layer_shapes(base).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, module in targets:
        out_size, in_size = sizes[module]
        shapes[_key(layer, module, "A")] = (config.rank, in_size)
        shapes[_key(layer, module, "B")] = (out_size, config.rank)
    check_names_and_shapes(directory, {n: t.shape for n, t in file.tensors.items()}, shapes, _SAME)
    check_float(directory, file.tensors, shapes, "save the adapter as floats.")
    return config, file, targets


def _load_config(directory: Path) -> _AdapterConfig:
    path = _find(directory, _CONFIG)
    raw = read_json_object(path, BadConfig)
    refused = []
    for name, value in raw.items():
        if name in _READ or name in _HARMLESS:
            continue
        if value not in _NEUTRAL.get(name, _OFF):
            reason = _REASONS.get(name, "not supported")
            refused.append(f"{name} = {value!r}: {reason}")
    if "peft_type" not in raw:
        refused.append("peft_type is missing; 'LORA' is supported")
    targets = raw.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets if isinstance(targets, list) else []
    for name in names:
        if str(name).rpartition(".")[2] in ("embed_tokens", "lm_head"):
            refused.append(f"target module {name}: adapters of embedding or head are not supported")
    if refused:
        raise UnsupportedModel(
            f"{path}: {'; '.join(refused)}.",
            hint="merge the adapter with PEFT (merge_and_unload) and compile the merged model.",
        )

    bad = []
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _RANK_MAX:
        bad.append(f"r = {rank!r}; an integer from 1 to {_RANK_MAX} is needed")
    if (
        not isinstance(alpha, (int, float))
        or isinstance(alpha, bool)
        or not abs(alpha) <= _ALPHA_MAX
    ):
        bad.append(f"lora_alpha = {alpha!r}; a number of at most {_ALPHA_MAX:g} is needed")
    rslora = raw.get("use_rslora") or False
    if not isinstance(rslora, bool):
        bad.append(f"use_rslora = {rslora!r}; true or false is needed")
    if not names or not all(isinstance(name, str) for name in names):
        bad.append(f"target_modules = {targets!r}; a list of names or a pattern is needed")
    layers = raw.get("layers_to_transform")
    if isinstance(layers, int):
        layers = [layers]
    if layers is not None and not (
        isinstance(layers, list) and all(isinstance(i, int) for i in layers)
    ):
        bad.append(f"layers_to_transform = {layers!r}; a list of layer numbers is needed")
    excluded = raw.get("exclude_modules") or []
    if isinstance(excluded, list) and not all(isinstance(name, str) for name in excluded):
        bad.append(f"exclude_modules = {excluded!r}; a list of names or a pattern is needed")
    for name, pattern in (("target_modules", targets), ("exclude_modules", excluded)):
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as exc:
                bad.append(f"{name} = {pattern!r} is not a valid pattern: {exc}")
    if bad:
        raise BadConfig(f"{path}: {'; '.join(bad)}.")
    assert isinstance(rank, int) and isinstance(alpha, (int, float))
    scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
    return _AdapterConfig(rank, scaling, targets or [], excluded, layers)


def _targeted(config: _AdapterConfig, num_layers: int) -> list[tuple[int, str]]:
    """Return the (layer, module) pairs that PEFT would wrap, by its rules for names and patterns."""
    found = []
    for layer in range(num_layers):
        if config.layers is not None and layer not in config.layers:
            continue
        for module in FIELDS:
            path = module_name(layer, module)
            if _matches(config.targets, path) and not _matches(config.excluded, path):
                found.append((layer, module))
    return found


def _quantized_or_stored(
    targets: list[tuple[int, str]], quantized: Collection[str], file: SafetensorsFile
) -> list[tuple[int, str]]:
    """Return ``targets`` without modules that GPTQ left as floats and EoRA therefore skips."""
    if not any(".layers." in name for name in quantized):
        return targets
    return [
        (layer, module)
        for layer, module in targets
        if module_name(layer, module) in quantized
        or any(_key(layer, module, side) in file.tensors for side in "AB")
    ]


def _matches(targets: str | list[str], path: str) -> bool:
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == name or path.endswith("." + name) for name in targets)


def _key(layer: int, module: str, side: str) -> str:
    return f"base_model.model.{module_name(layer, module)}.lora_{side}.weight"


def _find(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.is_file():
        hint = "give the directory that PEFT's save_pretrained wrote."
        if name == _WEIGHTS and (directory / "adapter_model.bin").is_file():
            hint = "save the adapter again with safe_serialization=True."
        raise ModelNotFound(f"{path} does not exist.", hint=hint)
    return path
