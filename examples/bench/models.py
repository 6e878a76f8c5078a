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

from shrinkc.importer import parse_config
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
