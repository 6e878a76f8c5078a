"""Import a LLaMA from a GGUF file of llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadConfig, BadWeights, UnsupportedModel
from shrinkc.importer.assembly import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    assemble,
    check_names_and_shapes,
    matrix_shapes,
    norm_names,
)
from shrinkc.importer.config import FACTOR_RANGE, parse_config
from shrinkc.importer.gguf_blocks import INTEGER_FORMATS, read_tensor
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_tokenizer import special_ids
from shrinkc.importer.hf import Progress, meter, refuse_faults
from shrinkc.importer.lora import load_adapter
from shrinkc.importer.model import (
    FloatModel,
    Llama3RopeScaling,
    LlamaConfig,
    QuantizedWeight,
    Weight,
    dense,
)
from shrinkc.importer.rope import inverse_frequencies
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing

_ROPE_FACTORS = "rope_freqs.weight"
# module -> tensor without ".weight" (llama.cpp, ``gguf-py/gguf/constants.py``)
_NAMES = {EMBEDDING: "token_embd", HEAD: "output", FINAL_NORM: "output_norm"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

# metadata -> field of config.json
_FIELDS = {
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.block_count": "num_hidden_layers",
    "llama.feed_forward_length": "intermediate_size",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL_FIELDS = {
    "llama.vocab_size": "vocab_size",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.key_length": "head_dim",
    "llama.rope.freq_base": "rope_theta",
}
# metadata -> (values that change nothing, what any other value would mean)
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "llama.rope.scaling.type": (("none",), "this RoPE scaling is not supported"),
    "llama.rope.scaling.factor": ((1.0,), "linear RoPE scaling is not supported"),
    "llama.rope.scale_linear": ((1.0,), "linear RoPE scaling is not supported"),
    "llama.expert_count": ((0,), "mixtures of experts are not supported"),
    "llama.expert_used_count": ((0,), "mixtures of experts are not supported"),
    "llama.attention.sliding_window": ((0,), "sliding-window attention is not supported"),
    "llama.attention.causal": ((True,), "attention has to be causal"),
    "general.type": (("model",), "this is no model of its own"),
    "split.count": ((0, 1), "the model is split into several files; merge them first"),
}
_CHECKED = ("llama.rope.dimension_count", "llama.attention.value_length")
_HARMLESS = ("llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned")
# What Meta's models with scaled RoPE have; a file has only the factors that follow from it.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def load_gguf(
    file: GgufFile,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    adapter: Path | None = None,
    progress: Progress | None = None,
) -> FloatModel:
    """Read an opened GGUF file; tensors of integers become QuantizedWeights.

    llama.cpp stores the rows of q and k in another order; here they are as in ``config.json``
    models.  ``config`` and ``tokenizer`` are the file's own.  Raises BadWeights or ShapeMismatch.
    """
    modules = _checked_modules(file, config)
    advance = meter(progress, sum(file.tensors[name].nbytes for name in modules.values()))
    faults: list[str] = []
    weights: dict[str, Weight] = {}
    for module, name in modules.items():
        weight = read_tensor(file, name, faults)
        if module.endswith(("q_proj", "k_proj")):
            weight = _rows(weight, _half_order(weight.shape[0], config.head_dim))
        weights[module] = weight
        advance(file.tensors[name].nbytes)
    refuse_faults(file.path, faults)
    norms = {name: dense(weights.pop(name)).reshape(-1) for name in norm_names(config)}
    model = assemble(file.path, config, norms, weights, tokenizer)
    if adapter is not None:
        load_adapter(Path(adapter), model)
    return model


def gguf_formats(file: GgufFile, config: LlamaConfig) -> dict[str, tuple[int, int, bool]]:
    """Return module -> (bits, inputs per scale, asymmetric) of what is stored as integers."""
    modules = _checked_modules(file, config)
    kinds = {module: file.tensors[modules[module]].kind for module in matrix_shapes(config)}
    return {m: INTEGER_FORMATS[kind] for m, kind in kinds.items() if kind in INTEGER_FORMATS}


def gguf_config(file: GgufFile) -> LlamaConfig:
    """The LlamaConfig of a GGUF file.  Raises UnsupportedModel, BadConfig or BadWeights."""
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModel(
            f"{file.path}: general.architecture = {architecture!r}; 'llama' is supported.",
            hint="shrinkc compiles plain LLaMA models (LlamaForCausalLM).",
        )
    missing = [key for key in _FIELDS if key not in metadata]
    if missing:
        raise BadConfig(f"{file.path}: missing metadata: {', '.join(missing)}.")
    raw = {field: metadata[key] for key, field in _FIELDS.items()}
    raw.update((f, metadata[key]) for key, f in _OPTIONAL_FIELDS.items() if key in metadata)
    bos, eos = special_ids(file)
    tokens = metadata.get("tokenizer.ggml.tokens")
    raw.setdefault("vocab_size", len(tokens) if isinstance(tokens, list) else None)
    raw.update(
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=f"{_NAMES[HEAD]}.weight" not in file.tensors,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    _check_unsupported(file)
    config = parse_config(raw, source=f"{file.path}: metadata")
    odd = [
        f"{key} = {metadata[key]}, the heads have {config.head_dim}"
        for key in _CHECKED
        if metadata.get(key, config.head_dim) != config.head_dim
    ]
    if odd:
        raise UnsupportedModel(f"{file.path}: {'; '.join(odd)}.")
    if _ROPE_FACTORS in file.tensors:
        config = dataclasses.replace(config, rope_scaling=_rope_scaling(file, config))
    return config


def _check_unsupported(file: GgufFile) -> None:
    known = {*_FIELDS, *_OPTIONAL_FIELDS, *_CHECKED, *_HARMLESS}
    faults = []
    for key, value in file.metadata.items():
        if key in _NEUTRAL:
            allowed, meaning = _NEUTRAL[key]
            if value not in allowed:
                faults.append(f"{key} = {value!r}: {meaning}")
        elif key.startswith("llama.") and key not in known:
            faults.append(f"{key} = {value!r}: unknown, it may change the mathematics")
    if faults:
        raise UnsupportedModel(
            f"{file.path}: {listing(faults)}.",
            hint="shrinkc compiles plain LLaMA models (LlamaForCausalLM).",
        )


def _rope_scaling(file: GgufFile, config: LlamaConfig) -> Llama3RopeScaling:
    """The scaling whose factors are those of the file: the largest is ``factor`` itself."""
    faults: list[str] = []
    factors = dense(read_tensor(file, _ROPE_FACTORS, faults)).reshape(-1)
    if len(factors) != config.head_dim // 2:
        faults.append(f"{_ROPE_FACTORS} holds {len(factors)} factors, not {config.head_dim // 2}")
    low, high = FACTOR_RANGE
    if not faults and not ((factors >= low) & (factors <= high)).all():
        faults.append(
            f"{_ROPE_FACTORS} holds factors from {factors.min():g} to {factors.max():g}; "
            f"{low:g} to {high:g} is allowed"
        )
    if faults:
        raise BadWeights(f"{file.path}: {listing(faults)}.")
    scaling = Llama3RopeScaling(float(factors.max()), _LOW, _HIGH, _ORIGINAL)
    plain = inverse_frequencies(config)
    scaled = inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    if not np.allclose(plain / scaled, factors, rtol=1e-4, atol=0):
        raise UnsupportedModel(
            f"{file.path}: {_ROPE_FACTORS} is not Llama 3's scaling (low_freq_factor {_LOW:g}, "
            f"high_freq_factor {_HIGH:g}, original context {_ORIGINAL}).",
            hint="use the safetensors version of the model.",
        )
    return scaling


def _checked_modules(file: GgufFile, config: LlamaConfig) -> dict[str, str]:
    """Module -> tensor, all there and of the right shape."""
    shapes: Mapping[str, tuple[int, ...]] = {
        **matrix_shapes(config),
        **dict.fromkeys(norm_names(config), (config.hidden_size,)),
    }
    modules = {module: f"{_tensor_name(module)}.weight" for module in shapes}
    wanted = {name: shapes[module] for module, name in modules.items()}
    found = {name: t.shape for name, t in file.tensors.items() if name != _ROPE_FACTORS}
    check_names_and_shapes(file.path, found, wanted)
    return modules


def _tensor_name(module: str) -> str:
    if module in _NAMES:
        return _NAMES[module]
    index, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_LAYER_NAMES[rest]}"


def _half_order(rows: int, head_dim: int) -> NDArray[np.int64]:
    """Which row of the file belongs where: it has i beside i + head_dim / 2 within each head.

    (llama.cpp, ``convert_hf_to_gguf.py``, LlamaModel.permute, undone.)
    """
    return np.arange(rows).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def _rows(weight: Weight, order: NDArray[np.int64]) -> Weight:
    if not isinstance(weight, QuantizedWeight):
        return weight[order]
    return dataclasses.replace(
        weight, q=weight.q[order], scale=weight.scale[order], offset=weight.offset[order]
    )
