"""Import of models from GGUF files of llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadConfig, BadWeights, UnsupportedModel
from shrinkc.importer.assembly import assemble, check_names_and_shapes
from shrinkc.importer.config import FACTOR_RANGE, parse_config
from shrinkc.importer.gguf_blocks import INTEGER_FORMATS, read_tensor
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_tokenizer import special_ids
from shrinkc.importer.hf import Progress, meter, refuse_faults
from shrinkc.importer.model import (
    FloatModel,
    Formats,
    QuantizedWeight,
    Weight,
    dense,
)
from shrinkc.importer.rope import half_order, inverse_frequencies
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing
from shrinkc.model import (
    EMBEDDING,
    FAMILIES,
    FINAL_NORM,
    HEAD,
    SUPPORTED,
    Family,
    Llama3RopeScaling,
    LlamaConfig,
    bias_shapes,
    family_of,
    matrix_shapes,
    norm_shapes,
)

ROPE_FACTORS = "rope_freqs.weight"
# module outside of the layers -> tensor without ".weight" (llama.cpp, ``gguf-py/gguf/constants.py``)
_NAMES = {EMBEDDING: "token_embd", HEAD: "output", FINAL_NORM: "output_norm"}

# metadata -> field of config.json; a key that begins with a dot has the architecture's name before it
_FIELDS = {
    ".context_length": "max_position_embeddings",
    ".embedding_length": "hidden_size",
    ".block_count": "num_hidden_layers",
    ".feed_forward_length": "intermediate_size",
    ".attention.head_count": "num_attention_heads",
    ".attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL_FIELDS = {
    ".vocab_size": "vocab_size",
    ".attention.head_count_kv": "num_key_value_heads",
    ".attention.key_length": "head_dim",
    ".rope.freq_base": "rope_theta",
    ".rope.freq_base_swa": "rope_local_base_freq",
    ".attention.sliding_window": "sliding_window",
}
# metadata -> (values without effect, meaning of any other value)
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    ".rope.scaling.type": (("none", "linear"), "this RoPE scaling is not supported"),
    ".expert_count": ((0,), "mixtures of experts are not supported"),
    ".expert_used_count": ((0,), "mixtures of experts are not supported"),
    ".attention.causal": ((True,), "attention has to be causal"),
    "general.type": (("model",), "this is no model of its own"),
    "split.count": ((0, 1), "the model is split into several files; merge them first"),
}
# Factors of linear RoPE scaling, the newer name first; 0 and 1 stand for no scaling.
_ROPE_SCALES = (".rope.scaling.factor", ".rope.scale_linear")
_CHECKED = (".rope.dimension_count", ".attention.value_length")
_HARMLESS = (".rope.scaling.original_context_length", ".rope.scaling.finetuned")
_HINT = f"shrinkc compiles models of these families: {SUPPORTED}."
# Values of Meta's models with scaled RoPE; a GGUF file has only the resulting factors.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def load_gguf(
    file: GgufFile,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
) -> FloatModel:
    """Read an opened GGUF file.  Quantised tensors become QuantizedWeights.

    llama.cpp permutes the rows of q and k of some architectures; they are restored to the order of Hugging Face.
    ``config`` and ``tokenizer`` are those of ``file``.  Raises BadWeights or ShapeMismatch.
    """
    modules = _checked_modules(file, config)
    advance = meter(progress, sum(file.tensors[name].nbytes for name in modules.values()))
    faults: list[str] = []
    weights: dict[str, Weight] = {}
    family = family_of(config)
    turned = [m.short for m in family.modules if m.rotated and family.gguf_interleaved]
    for module, name in modules.items():
        weight = read_tensor(name, file.tensors[name], file.block_bytes(name), faults)
        if module.removesuffix(".bias").endswith(tuple(turned)):
            weight = _rows(weight, half_order(weight.shape[0], config.head_dim))
        weights[module] = weight
        advance(file.tensors[name].nbytes)
    refuse_faults(file.path, faults)
    norms = {name: dense(weights.pop(name)).reshape(-1) for name in norm_shapes(config)}
    biases = {name: dense(weights.pop(f"{name}.bias")).reshape(-1) for name in bias_shapes(config)}
    return assemble(file.path, config, norms, weights, tokenizer, biases)


def gguf_formats(file: GgufFile, config: LlamaConfig) -> Formats:
    """Return module -> (bits, inputs per scale, kind of zero point) of quantised matrices."""
    modules = _checked_modules(file, config)
    kinds = {module: file.tensors[modules[module]].kind for module in matrix_shapes(config)}
    known = {m: INTEGER_FORMATS[kind] for m, kind in kinds.items() if kind in INTEGER_FORMATS}
    return {module: (form.bits, form.group, form.kind) for module, form in known.items()}


def gguf_config(file: GgufFile) -> LlamaConfig:
    """Return the LlamaConfig of a GGUF file.  Raises UnsupportedModel, BadConfig or BadWeights."""
    family = _family(file)
    metadata = _own_keys(file, family)
    missing = [key for key in _FIELDS if key not in metadata]
    if missing:
        raise BadConfig(
            f"{file.path}: missing metadata: {', '.join(family.gguf + key for key in missing)}."
        )
    raw = {field: metadata[key] for key, field in _FIELDS.items()}
    raw.update((f, metadata[key]) for key, f in _OPTIONAL_FIELDS.items() if key in metadata)
    bos, eos = special_ids(file)
    tokens = metadata.get("tokenizer.ggml.tokens")
    raw.setdefault("vocab_size", len(tokens) if isinstance(tokens, list) else None)
    raw.setdefault("num_key_value_heads", None)  # None: equal to the number of heads
    raw.setdefault("head_dim", None)
    raw.update(
        architectures=[family.architecture],
        model_type=family.name,
        tie_word_embeddings=f"{_NAMES[HEAD]}.weight" not in file.tensors,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    if family.bias_field is not None:
        raw[family.bias_field] = _has_biases(file, family)
    raw["rope_scaling"] = _linear_scaling(metadata)
    window = raw.pop("sliding_window", None) or None
    raw |= {"sliding_window": window} if family.windowed else {"use_sliding_window": bool(window)}
    _check_unsupported(file, family, metadata)
    config = parse_config(raw, source=f"{file.path}: metadata")
    odd = [
        f"{family.gguf}{key} = {metadata[key]}, the heads have {config.head_dim}"
        for key in _CHECKED
        if metadata.get(key, config.head_dim) != config.head_dim
    ]
    if odd:
        raise UnsupportedModel(f"{file.path}: {'; '.join(odd)}.")
    if family.query_scalar_field is not None:  # llama.cpp derives it from the sizes
        largest = config.num_layers == 62  # of Gemma 3, 27B
        scalar = config.hidden_size / config.num_heads if largest else config.head_dim
        config = dataclasses.replace(config, query_scalar=float(scalar))
    if ROPE_FACTORS in file.tensors:
        if config.rope_scaling is not None:
            raise UnsupportedModel(
                f"{file.path}: linear RoPE scaling together with {ROPE_FACTORS} is not supported.",
                hint=_HINT,
            )
        config = dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))
    return config


def _family(file: GgufFile) -> Family:
    """Return the family of ``general.architecture``.  If several share the name, a sliding window in the file
    selects the family that has one."""
    architecture = file.metadata.get("general.architecture")
    found = [family for family in FAMILIES.values() if family.gguf == architecture]
    if not found:
        known = ", ".join(dict.fromkeys(repr(family.gguf) for family in FAMILIES.values()))
        raise UnsupportedModel(
            f"{file.path}: general.architecture = {architecture!r}; {known} are supported.",
            hint=_HINT,
        )
    window = bool(file.metadata.get(f"{architecture}.attention.sliding_window"))
    return next((family for family in found if family.windowed == window), found[0])


def _has_biases(file: GgufFile, family: Family) -> bool:
    """Return whether the first layer has all biases of the family."""
    return all(
        f"blk.0.{m.gguf}.bias" in file.tensors for m in family.modules if m.name in family.biased
    )


def _own_keys(file: GgufFile, family: Family) -> dict[str, Any]:
    """Return the file's metadata; the architecture's name is removed from the beginning of keys."""
    return {
        key.removeprefix(family.gguf) if key.startswith(f"{family.gguf}.") else key: value
        for key, value in file.metadata.items()
    }


def _check_unsupported(file: GgufFile, family: Family, metadata: Mapping[str, Any]) -> None:
    known = {*_FIELDS, *_OPTIONAL_FIELDS, *_ROPE_SCALES, *_CHECKED, *_HARMLESS}
    faults = []
    for key, value in metadata.items():
        name = family.gguf + key if key.startswith(".") else key
        if key in NEUTRAL:
            allowed, meaning = NEUTRAL[key]
            if value not in allowed:
                faults.append(f"{name} = {value!r}: {meaning}")
        elif key.startswith(".") and key not in known:
            faults.append(f"{name} = {value!r}: unknown, it may change the mathematics")
    if faults:
        raise UnsupportedModel(f"{file.path}: {listing(faults)}.", hint=_HINT)


def _linear_scaling(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the section rope_scaling of config.json; llama.cpp's default type is linear."""
    factor = next((metadata[key] for key in _ROPE_SCALES if key in metadata), 1.0)
    if metadata.get(".rope.scaling.type", "linear") != "linear" or factor in (0.0, 1.0):
        return None
    return {"rope_type": "linear", "factor": factor}


def _rope_scaling(file: GgufFile, config: LlamaConfig) -> Llama3RopeScaling:
    """Return the RoPE scaling that has the file's factors.  The largest factor is ``factor``."""
    faults: list[str] = []
    tensor, blocks = file.tensors[ROPE_FACTORS], file.block_bytes(ROPE_FACTORS)
    factors = dense(read_tensor(ROPE_FACTORS, tensor, blocks, faults)).reshape(-1)
    if len(factors) != config.head_dim // 2:
        faults.append(f"{ROPE_FACTORS} holds {len(factors)} factors, not {config.head_dim // 2}")
    low, high = FACTOR_RANGE
    if not faults and not ((factors >= low) & (factors <= high)).all():
        faults.append(
            f"{ROPE_FACTORS} holds factors from {factors.min():g} to {factors.max():g}; "
            f"{low:g} to {high:g} is allowed"
        )
    if faults:
        raise BadWeights(f"{file.path}: {listing(faults)}.")
    scaling = Llama3RopeScaling(float(factors.max()), _LOW, _HIGH, _ORIGINAL)
    plain = inverse_frequencies(config)
    scaled = inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    if not np.allclose(plain / scaled, factors, rtol=1e-4, atol=0):
        raise UnsupportedModel(
            f"{file.path}: {ROPE_FACTORS} is not Llama 3's scaling (low_freq_factor {_LOW:g}, "
            f"high_freq_factor {_HIGH:g}, original context {_ORIGINAL}).",
            hint="use the safetensors version of the model.",
        )
    return scaling


def _checked_modules(file: GgufFile, config: LlamaConfig) -> dict[str, str]:
    """Return module -> tensor name, after checking names and shapes; "<module>.bias" is the key of a bias."""
    shapes: dict[str, tuple[int, ...]] = {**matrix_shapes(config), **norm_shapes(config)}
    shapes.update({f"{module}.bias": shape for module, shape in bias_shapes(config).items()})
    modules = {module: tensor_name(config, module) for module in shapes}
    wanted = {name: shapes[module] for module, name in modules.items()}
    found = {name: t.shape for name, t in file.tensors.items() if name != ROPE_FACTORS}
    check_names_and_shapes(file.path, found, wanted)
    return modules


def tensor_name(config: LlamaConfig, module: str) -> str:
    if module in _NAMES:
        return f"{_NAMES[module]}.weight"
    index, _, rest = module.removeprefix("model.layers.").partition(".")
    part = "bias" if rest.endswith(".bias") else "weight"
    family = family_of(config)
    names = {m.name: m.gguf for m in family.modules} | {n.name: n.gguf for n in family.norms}
    return f"blk.{index}.{names[rest.removesuffix('.bias')]}.{part}"


def _rows(weight: Weight, order: NDArray[np.int64]) -> Weight:
    if not isinstance(weight, QuantizedWeight):
        return weight[order]
    return dataclasses.replace(
        weight, q=weight.q[order], scale=weight.scale[order], offset=weight.offset[order]
    )
