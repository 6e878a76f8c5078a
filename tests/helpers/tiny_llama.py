"""Write small random LLaMA checkpoints as Hugging Face directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.layer import PARTS

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]
# 3 special tokens, 95 printable characters, line feed, 8 merged pieces; no multiple of 8
DEFAULT_VOCAB = 107

_WORDS = [("t", "h"), ("th", "e"), (" ", "a"), ("i", "n"), ("o", "u"), (" ", "the"), ("e", "r")]
_WORDS += [("l", "l")]


def write_tiny_llama(
    path: Path,
    *,
    hidden: int = 16,
    intermediate: int = 24,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int | None = None,
    vocab: int = DEFAULT_VOCAB,
    max_position: int = 64,
    dtype: str = "float32",
    shards: int = 1,
    tied: bool = True,
    seed: int = 0,
    eps: float = 1e-5,
    rope_theta: float = 10000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    bos_id: int | None = 1,
    eos_ids: int | Sequence[int] | None = 2,
    tokenizer: str = "sentencepiece",
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, NDArray[Any] | None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Write config.json, generation_config.json, weights and tokenizer to ``path``.

    ``dtype`` is float32, float16 or bfloat16.  ``tokenizer`` is "sentencepiece" (byte
    fallback if ``vocab`` leaves room for it), "bytelevel" (needs vocab >= 259) or "none".
    Ids that the tokenizer does not fill have no piece; a vocab below 99 drops characters from
    the end of the printable ones.  ``config`` adds or replaces fields of config.json;
    ``overrides`` replaces tensors by name (None removes one), also by ones that do not fit.
    Returns the stored tensors by name, as float32 after rounding to ``dtype``.
    """
    path.mkdir(parents=True, exist_ok=True)
    dim = hidden // heads if head_dim is None else head_dim
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos_id,
        "eos_token_id": list(eos_ids) if isinstance(eos_ids, Sequence) else eos_ids,
        "head_dim": dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": max_position,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": eps,
        "rope_scaling": None if rope_scaling is None else dict(rope_scaling),
        "rope_theta": rope_theta,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "transformers_version": "4.46.0",
        "use_cache": True,
        "vocab_size": vocab,
    }
    fields.update(config or {})
    (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n")

    tensors = tiny_tensors(
        hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=dim, vocab=vocab, tied=tied, seed=seed,
    )  # fmt: skip
    stored: dict[str, NDArray[Any]] = {name: round_to(dtype, t) for name, t in tensors.items()}
    for name, replacement in (overrides or {}).items():
        stored.pop(name, None)
        if replacement is not None:
            stored[name] = replacement
    write_weights(path, stored, dtype, shards)

    if tokenizer != "none":
        build = {"sentencepiece": sentencepiece_json, "bytelevel": bytelevel_json}[tokenizer]
        (path / "tokenizer.json").write_text(json.dumps(build(vocab), ensure_ascii=False))
    return stored


def tiny_tensors(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    tied: bool,
    head_dim: int | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """Return the random tensors of a model by name."""
    rng = np.random.default_rng(seed)
    dim = hidden // heads if head_dim is None else head_dim

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)

    def gain(size: int) -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    sizes = {"hidden": hidden, "ffn": intermediate, "q": heads * dim, "kv": kv_heads * dim}
    tensors = {"model.embed_tokens.weight": matrix(vocab, hidden) * np.float32(2)}
    for layer in range(layers):
        for part in PARTS:
            inputs = sizes[part.inputs]
            values = matrix(sizes[part.rows], inputs) if part.rows else gain(inputs)
            tensors[f"model.layers.{layer}.{part.name}.weight"] = values
    tensors["model.norm.weight"] = gain(hidden)
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, hidden) * np.float32(2)
    return tensors


# --- weights -----------------------------------------------------------------------------


def round_to(dtype: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``values`` rounded to ``dtype``, as float32."""
    if dtype == "bfloat16":
        return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(dtype).astype(np.float32)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bfloat16 bit patterns of ``values``, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    # adding to the bits of a NaN could carry into infinity
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def write_weights(
    path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str = "float32", shards: int = 1
) -> None:
    """Write model.safetensors, or ``shards`` files and their index.

    Float32 arrays are stored as ``dtype``, arrays of any other type as they are.
    """
    if shards == 1:
        write_safetensors(path / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(path / file, part, dtype)
        weight_map.update(dict.fromkeys(part, file))
    size = sum(t.size * (4 if dtype == "float32" else 2) for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


_DTYPE_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file by hand, since numpy has no bfloat16 for the library to take."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    parts: list[bytes] = []
    position = 0
    for name, values in tensors.items():
        if values.dtype != np.float32 or dtype == "float32":
            kind, data = _DTYPE_NAMES[values.dtype.name], values.tobytes()
        elif dtype == "float16":
            kind, data = "F16", values.astype("<f2").tobytes()
        else:
            kind, data = "BF16", bfloat16_bits(values).tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [position, position + len(data)],
        }
        parts.append(data)
        position += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


# --- tokenizers --------------------------------------------------------------------------


def sentencepiece_json(vocab: int = DEFAULT_VOCAB) -> dict[str, Any]:
    """Return a Llama-2 style ``tokenizer.json`` (▁ for space, BOS in front) of <= vocab pieces."""
    words = [(a.replace(" ", "▁"), b.replace(" ", "▁")) for a, b in _WORDS]
    pieces = [UNK, BOS, EOS, "▁", *PRINTABLE[1:], "\n"]
    # the byte pieces come all or not at all: a part of them would decode some bytes only
    if vocab >= len(pieces) + 256:
        pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = (pieces + [a + b for a, b in words])[:vocab]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special_tokens(pieces),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _bpe(pieces, words, byte_fallback=True, unk=UNK),
    }


def bytelevel_json(vocab: int = 3 + 256 + len(_WORDS)) -> dict[str, Any]:
    """Return a GPT-2 style ``tokenizer.json`` (bytes as letters, no BOS of its own)."""
    if vocab < 259:
        raise ValueError(f"a byte-level tokenizer needs vocab >= 259, not {vocab}")
    letters = _byte_letters()
    words = [(a.replace(" ", letters[32]), b.replace(" ", letters[32])) for a, b in _WORDS]
    pieces = ([UNK, BOS, EOS, *letters] + [a + b for a, b in words])[:vocab]
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _special_tokens(pieces),
        "normalizer": None,
        "pre_tokenizer": step,
        "post_processor": None,
        "decoder": step,
        "model": _bpe(pieces, words, byte_fallback=False, unk=None),
    }


def _bpe(
    pieces: list[str], words: list[tuple[str, str]], byte_fallback: bool, unk: str | None
) -> dict[str, Any]:
    known = set(pieces)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": [[a, b] for a, b in words if {a, b, a + b} <= known],
    }


def _special_tokens(pieces: list[str]) -> list[dict[str, Any]]:
    return [added_token(index, pieces[index]) for index in range(3)]


def added_token(index: int, content: str, special: bool = True) -> dict[str, Any]:
    """Return one entry of ``added_tokens``."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself if printable, else one from U+0100 on."""
    letters: list[str] = []
    extra = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            letters.append(chr(byte))
        else:
            letters.append(chr(extra))
            extra += 1
    return letters
