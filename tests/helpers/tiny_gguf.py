"""Write small GGUF files of LLaMA models with the ``gguf`` package of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from helpers.gguf_blocks import K_QUANTS, random_blocks
from helpers.layer import PARTS
from helpers.tiny_llama import (
    BOS,
    EOS,
    UNK,
    bytelevel_json,
    sentencepiece_json,
    tiny_tensors,
)

LAYER_NAMES = {p.name: p.gguf for p in PARTS}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tiny_gguf(
    path: Path,
    *,
    kind: str = "Q4_1",
    embedding_kind: str = "Q8_0",
    kinds: Mapping[str, str] | None = None,
    hidden: int = 64,
    intermediate: int = 96,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 288,
    tied: bool = True,
    tokenizer: str = "gpt2",
    pre: str = "smollm",
    metadata: Mapping[str, Any] | None = None,
    overrides: Mapping[str, NDArray[np.float32] | None] | None = None,
    extra: Mapping[str, NDArray[np.float32]] | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Write a model with the mathematics and names of ``config.json`` models to ``path``.

    ``kind``, ``embedding_kind``: tensor types such as "F16" and "Q4_1" of the matrices of the layers, and of
    embedding and head; ``kinds`` by module, e.g. "model.layers.0.mlp.up_proj".  K-quants and IQ4_NL get random
    weights: the package does not write them.  ``tokenizer``: "gpt2", "llama" or "none".  ``metadata`` adds or
    replaces entries (None removes one), ``overrides`` the values of modules (None removes one)
    before they are quantised, ``extra`` adds float tensors under GGUF names.

    Returns every module's weight, dequantised by the ``gguf`` package, in the order of rows of
    ``config.json`` models.
    """
    tensors = tiny_tensors(
        hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=kv_heads,
        vocab=vocab, tied=tied, seed=seed,
    )  # fmt: skip
    modules = {name.removesuffix(".weight"): values for name, values in tensors.items()}
    for name, replacement in (overrides or {}).items():
        modules.pop(name, None)
        if replacement is not None:
            modules[name] = replacement
    fields: dict[str, Any] = {
        "llama.vocab_size": vocab,
        "llama.context_length": 64,
        "llama.embedding_length": hidden,
        "llama.block_count": layers,
        "llama.feed_forward_length": intermediate,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": hidden // heads,
        "llama.rope.freq_base": 10000.0,
        **_tokenizer_fields(tokenizer, pre, vocab),
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture", "llama"))
    for key, value in fields.items():
        _add(writer, key, value)
    expected = {}
    rng = np.random.default_rng(seed)
    for name, values in modules.items():
        chosen = embedding_kind if name in ("model.embed_tokens", "lm_head") else kind
        chosen = "F32" if values.ndim == 1 else chosen
        chosen = (kinds or {}).get(name, chosen)
        type_ = gguf.GGMLQuantizationType[chosen]
        if chosen in K_QUANTS or chosen == "IQ4_NL":
            stored = random_blocks(chosen, *values.shape, rng)
        else:
            stored = gguf.quants.quantize(values, type_)
        expected[name] = gguf.quants.dequantize(stored, type_)
        if name.endswith(("q_proj", "k_proj")):
            # llama.cpp rotates neighbours, config.json models halves of a head
            count = heads if name.endswith("q_proj") else kv_heads
            stored = np.concatenate([_interleaved(part) for part in np.split(stored, count)])
        writer.add_tensor(f"{gguf_name(name)}.weight", stored, raw_dtype=type_)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def gguf_name(module: str) -> str:
    """Return the name of a tensor, without ".weight"."""
    if module in _NAMES:
        return _NAMES[module]
    index, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{LAYER_NAMES[rest]}"


def _interleaved(head: NDArray[Any]) -> NDArray[Any]:
    low, high = np.split(head, 2)
    mixed = np.empty_like(head)
    mixed[0::2], mixed[1::2] = low, high
    return mixed


def _tokenizer_fields(kind: str, pre: str, vocab: int) -> dict[str, Any]:
    if kind == "none":
        return {}
    source = bytelevel_json(vocab) if kind == "gpt2" else sentencepiece_json(vocab)
    tokens = list(source["model"]["vocab"])
    merges = source["model"]["merges"]
    types = [2 if text == UNK else 3 if text in (BOS, EOS) else 1 for text in tokens]
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    if kind == "gpt2":
        fields["tokenizer.ggml.pre"] = pre
        fields["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
        fields["tokenizer.ggml.add_bos_token"] = False
    else:
        # the better the earlier the merge; characters are never made by one
        ranks = {"".join(pair): float(-index) for index, pair in enumerate(merges)}
        fields["tokenizer.ggml.scores"] = [ranks.get(text, -1000.0) for text in tokens]
        fields["tokenizer.ggml.token_type"] = [
            6 if text.startswith("<0x") else kind for text, kind in zip(tokens, types, strict=True)
        ]
    return fields


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
