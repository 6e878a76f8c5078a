"""Write small random models of every family as transformers, GPTQModel and llama.cpp store them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.tiny_gguf import gguf_name
from helpers.tiny_gptq import packed_tensors, quantize
from helpers.tiny_llama import bytelevel_json, round_to, sentencepiece_json, write_weights

_REASON = "needs transformers (pip install '.[compress]')"
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
SIZES: dict[str, Any] = {
    "vocab_size": 288, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# what llama.cpp's convert_hf_to_gguf.py calls them; rows that it reorders
ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_family(path: Path, family: str, seed: int = 0, **config: Any) -> Any:
    """Save a random model of ``family`` with its tokenizer to ``path`` as transformers does.

    ``config`` replaces fields of SIZES.  Gains are around 1, biases around 0 and as large as what
    they are added to.  Returns the transformers model in float32.
    """
    torch = pytest.importorskip("torch", reason=_REASON)
    transformers = pytest.importorskip("transformers", reason=_REASON)
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **config})).float().eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.copy_((family != "gemma3_text") + 0.3 * torch.randn_like(values))
            elif name.endswith("bias"):
                values.copy_(torch.randn_like(values))
            else:
                values.copy_(torch.randn_like(values) / values.shape[1] ** 0.5)
        model.model.embed_tokens.weight.mul_(2)
    model.save_pretrained(path)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_of(family)), encoding="utf-8")
    return model


def tokenizer_of(family: str) -> dict[str, Any]:
    """The ``tokenizer.json`` that models of the family have, with few pieces."""
    if not family.startswith("qwen"):
        return sentencepiece_json(SIZES["vocab_size"])
    document = bytelevel_json(SIZES["vocab_size"])
    split = {"Regex": QWEN_WORDS}
    document["normalizer"] = {"type": "NFC"}
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
            {**document["pre_tokenizer"], "use_regex": False},
        ],
    }
    document["post_processor"] = {**document["decoder"], "trim_offsets": False}
    return document


def logits_of(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """What transformers gives for ``ids``, float32 [T, vocab]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy())


def tensors_of(model: Any) -> dict[str, NDArray[np.float32]]:
    """The parameters by name; a tied head is the embedding's."""
    return {name: values.detach().numpy() for name, values in model.named_parameters()}


def write_family_gptq(path: Path, source: Path, model: Any, bits: int = 4, group: int = 32) -> Any:
    """Write ``model``, saved in ``source``, to ``path`` as GPTQModel does; biases stay float.

    Returns the transformers model with the weights that the integers stand for.
    """
    import torch

    path.mkdir(parents=True)
    rng = np.random.default_rng(7)
    stored: dict[str, NDArray[Any]] = {}
    parameters = dict(model.named_parameters())
    for name, values in tensors_of(model).items():
        module = name.removesuffix(".weight")
        if values.ndim == 2 and ".layers." in name:
            packed = quantize(values, bits, group, False, False, "float16", rng)
            stored.update(packed_tensors(module, packed))
            exact = packed.dense()
        else:
            stored[name] = exact = round_to("float16", values)
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(exact)))
    write_weights(path, stored, "float16")
    fields = {
        "bits": bits, "group_size": group, "desc_act": False, "sym": False, "lm_head": False,
        "method": "gptq", "quant_method": "gptq", "format": "gptq", "checkpoint_format": "gptq",
        "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.6.0"]},
    }  # fmt: skip
    config = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": fields}))
    (path / "quantize_config.json").write_text(json.dumps(fields))
    (path / "tokenizer.json").write_text((source / "tokenizer.json").read_text())
    return model


def write_family_gguf(
    path: Path, family: str, model: Any, kind: str = "Q4_1", metadata: dict[str, Any] | None = None
) -> Any:
    """Write ``model`` to the file ``path`` as llama.cpp's converter and quantiser do.

    Returns the transformers model with the weights that the file stands for.
    """
    import torch

    architecture, c = ARCHITECTURES[family], model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(c.vocab_size)
    if architecture == "gemma3":
        writer.add_sliding_window(c.sliding_window)
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    _add_tokenizer(writer, family)
    parameters = dict(model.named_parameters())
    for name, values in tensors_of(model).items():
        module, _, part = name.rpartition(".")
        chosen = "F32" if values.ndim == 1 else "Q8_0" if ".layers." not in name else kind
        type_ = gguf.GGMLQuantizationType[chosen]
        data = gguf.quants.quantize(np.ascontiguousarray(values), type_)
        with torch.no_grad():
            exact = gguf.quants.dequantize(data, type_)
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(exact)))
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            # neighbours rotate together there; whole rows move, so blocks of integers stay whole
            order = np.arange(len(values)).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
            data = gguf.quants.quantize(np.ascontiguousarray(values[order]), type_)
        if architecture == "gemma3" and values.ndim == 1:
            data = data + np.float32(1)  # the converter adds what norms of Gemma add
        writer.add_tensor(f"{_gguf_name(module, family)}.{part}", data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _gguf_name(module: str, family: str) -> str:
    for head in ("q_norm", "k_norm"):
        if module.endswith(head):
            return f"blk.{module.split('.')[2]}.attn_{head}"
    for norm, named in GEMMA_NORMS.items():
        if family == "gemma3_text" and module.endswith(norm):
            return f"blk.{module.split('.')[2]}.{named}"
    return gguf_name(module)


def _add_tokenizer(writer: Any, family: str) -> None:
    document = tokenizer_of(family)
    tokens = list(document["model"]["vocab"])
    byte_level = family.startswith("qwen")
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_token_list(tokens)
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    if byte_level:
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
        writer.add_add_bos_token(False)
    else:
        merges = document["model"]["merges"]
        ranks = {"".join(pair): -float(index) for index, pair in enumerate(merges)}
        writer.add_token_scores([ranks.get(text, -1000.0) for text in tokens])
        kinds |= {text: 6 for text in tokens if text.startswith("<0x")}
    writer.add_token_types([kinds.get(text, 1) for text in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
