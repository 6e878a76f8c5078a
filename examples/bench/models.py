"""Models of the benchmarks: the example, converted ones, and shapes with seeded random weights."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from figures import ROOT
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

from shrinkc.importer import parse_config
from shrinkc.importer.tokenizer_json import LLAMA3_WORDS
from shrinkc.model import matrix_shapes, norm_shapes

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# "microLlama" is the shape of the published peer's benchmark
SHAPES: dict[str, dict[str, int]] = {
    "microLlama": {"hidden": 64, "ffn": 256, "heads": 16, "kv_heads": 16, "head_dim": 4, "layers": 8},
    "smollm2-layer": {"hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 1},
    "smollm2-layers": {"hidden": 576, "ffn": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 2},
    "llama-3.2-1b-layer": {
        "hidden": 2048, "ffn": 8192, "heads": 32, "kv_heads": 8, "head_dim": 64, "layers": 1,
    },
}  # fmt: skip
LLAMA_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
"""The fields of LLaMA-3.2-1B's config.json that a plan needs."""


def write_llama(
    path: Path, *, hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, layers: int,
    vocab: int = 512,
) -> Path:  # fmt: skip
    """A model with seeded random weights and the tokenizer of examples/stories."""
    rng = np.random.default_rng(1)
    path.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((ROOT / "examples/stories" / name).read_bytes())

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    sizes = parse_config(config)
    tensors = {f"{name}.weight": weight(*shape) for name, shape in matrix_shapes(sizes).items()}
    tensors |= {
        f"{name}.weight": np.ones(shape, np.float32) for name, shape in norm_shapes(sizes).items()
    }
    save_file(tensors, path / "model.safetensors")
    return path


def write_llama_1b(path: Path) -> Path:
    """A model of LLaMA-3.2-1B's shape with seeded random weights, as a checkpoint of bfloat16 in one file.

    Rows and columns of the matrices differ in size, and some weights are large, as in trained models.  The tokenizer is
    byte-level BPE with LLaMA 3's pre-tokenizer and 128,256 tokens; its words are made up.
    """
    import torch
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(LLAMA_1B))
    (path / "tokenizer.json").write_text(json.dumps(_tokenizer_1b()))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
    )
    seeded = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        tails = 1 + 0.3 * normal(rows, columns).abs()
        sides = torch.exp(0.3 * normal(rows, 1)) * torch.exp(0.2 * normal(1, columns))
        return (normal(rows, columns) * tails * sides / (1.5 * columns**0.5)).to(torch.bfloat16)

    sizes = parse_config(LLAMA_1B)
    tensors = {f"{name}.weight": matrix(*shape) for name, shape in matrix_shapes(sizes).items()}
    tensors |= {
        f"{name}.weight": (0.5 + 0.1 * normal(*shape)).to(torch.bfloat16)
        for name, shape in norm_shapes(sizes).items()
    }
    save_file(tensors, path / "model.safetensors")
    return path


def _tokenizer_1b() -> dict[str, Any]:
    """A tokenizer.json with as many tokens as LLaMA 3 has, and 256 special ones at the end as there."""
    letters = sorted(ByteLevel.alphabet())
    ends = "abcdefghijklmnopqrstuvwxyz"
    pieces, merges, words = [*letters], [], list(ends)
    while len(pieces) < 128_000:
        pairs = [(word, end) for word in words for end in ends][: 128_000 - len(pieces)]
        merges += [list(pair) for pair in pairs]
        words = [a + b for a, b in pairs]
        pieces += words
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(254)),
    ]
    step = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3_WORDS},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, step]},
        "post_processor": None, "decoder": step,
        "added_tokens": [
            {
                "id": 128_000 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, text in enumerate(special)
        ],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": {piece: i for i, piece in enumerate([*pieces, *special])}, "merges": merges,
        },
    }  # fmt: skip


def model_of(name: str, folder: Path, given: Mapping[str, Path | None]) -> Path:
    """The path of a model; one that has to be made is made in ``folder``.  ``given``: "smollm2", its file, and
    "data", the folder that holds stories260K/."""
    path = folder / name
    if name == "examples/stories":
        return ROOT / name
    if name == SMOLLM2:
        file = given["smollm2"]
        assert file is not None
        return file
    if not path.exists():
        if name in SHAPES:
            return write_llama(path, **SHAPES[name])
        assert given["data"] is not None
        source = given["data"] / name
        convert = runpy.run_path(str(ROOT / "examples/convert_llama2c.py"))["convert"]
        convert(source / f"{name}.bin", source / "tok512.bin", path)
    return path
