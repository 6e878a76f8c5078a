"""Read a llama2.c float checkpoint (``export.py`` version 0 or 1) as ``config.json`` and tensors.

Version 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len;
a negative vocab_size means an own head), then float32 tensors, the layers of each kind
together.  Version 1: magic ``ak42``, int32 1, the same seven (vocab_size positive), one
byte "shared classifier", zeros up to byte 256, then float32 tensors in another order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadConfig, BadWeights, ModelNotFound
from shrinkc.importer.config import parse_config
from shrinkc.importer.rope import half_order
from shrinkc.importer.weight_checks import listing, non_finite
from shrinkc.model import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LlamaConfig,
    matrix_shapes,
    norm_shapes,
)

_MAGIC = 0x616B3432
_V0_HEADER, _V1_HEADER = 28, 256
_TABLES = "RoPE tables"  # of version 0; the config implies them
# constants of run.c
BOS_ID, EOS_ID = 1, 2
_RMS_EPS, _ROPE_THETA = 1e-5, 10000.0


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the content of ``config.json``, and tensors by Hugging Face names, float32 [out, in].

    llama2.c rotates the rows (2 i, 2 i + 1) of a head of q and k together, Hugging Face the rows
    (i, i + head_dim / 2): they are put into that order.  Raises ModelNotFound if there is
    no such file, BadWeights if it is truncated, too long, inconsistent or holds NaN.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} does not exist.") from exc
    except OSError as exc:
        raise BadWeights(f"{path} cannot be read: {exc.strerror}.") from exc
    fields, version, start = _parse_header(path, data)
    try:
        config = parse_config(fields, source=f"{path}: the header")
    except BadConfig as exc:
        hint = "the file is damaged, or not a llama2.c checkpoint; copy it again."
        raise BadWeights(exc.message, hint=hint) from exc
    fields["head_dim"] = config.head_dim

    shapes: dict[str, tuple[int, ...]] = {**matrix_shapes(config), **norm_shapes(config)}
    shapes[_TABLES] = (config.max_position, config.head_dim)
    order = _order(config, version)
    need = start + 4 * sum(math.prod(shapes[name]) for name in order)
    if len(data) != need:
        state = "is truncated" if len(data) < need else "is longer than its header says"
        raise BadWeights(
            f"{path} {state}: need {need} bytes, have {len(data)}.",
            hint="copy the file again; only float32 checkpoints of version 0 or 1 are read.",
        )
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in order:
        size = math.prod(shapes[name])
        values = np.frombuffer(data, "<f4", size, start).reshape(shapes[name])
        start += 4 * size
        if name.endswith(("q_proj", "k_proj")):
            values = values[half_order(len(values), config.head_dim)]
        if name != _TABLES:
            tensors[f"{name}.weight"] = values.astype(np.float32)
    faults = [fault for name, tensor in tensors.items() if (fault := non_finite(name, tensor))]
    if faults:
        raise BadWeights(f"{path}: {listing(faults)}.", hint="the checkpoint is damaged.")
    return fields, tensors


def _parse_header(path: Path, data: bytes) -> tuple[dict[str, Any], int, int]:
    """Return the content of ``config.json``, the version, and the byte where the tensors start."""
    versioned = data[:4] == struct.pack("<I", _MAGIC)
    need = _V1_HEADER if versioned else _V0_HEADER
    if len(data) < need:
        raise BadWeights(f"{path} is truncated in the header: need {need} bytes, have {len(data)}.")
    version = struct.unpack_from("<i", data, 4)[0] if versioned else 0
    if versioned and version != 1:
        raise BadWeights(
            f"{path} is a llama2.c checkpoint of version {version}; float32 checkpoints of "
            "version 0 and 1 are read.",
            hint="export it again with llama2.c's export.py --version 1.",
        )
    numbers = struct.unpack_from("<7i", data, 8 if versioned else 0)
    dim, hidden_dim, layers, heads, kv_heads, vocab, positions = numbers
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "head_dim": None,  # follows
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": hidden_dim,
        "max_position_embeddings": positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": _RMS_EPS,
        "rope_theta": _ROPE_THETA,
        "tie_word_embeddings": data[36] != 0 if versioned else vocab > 0,
        "torch_dtype": "float32",
        "vocab_size": vocab if versioned else abs(vocab),
    }
    return fields, version, need


def _order(config: LlamaConfig, version: int) -> list[str]:
    """The tensors as they follow each other in the file."""

    def layers(*parts: str) -> list[str]:
        return [f"model.layers.{i}.{part}" for part in parts for i in range(config.num_layers)]

    norms = ("input_layernorm", "post_attention_layernorm")
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    mlp = [f"mlp.{part}_proj" for part in ("gate", "down", "up")]
    if version == 0:
        names = [EMBEDDING, *layers(norms[0], *attention, norms[1], *mlp), FINAL_NORM, _TABLES]
    else:
        names = [*layers(*norms), FINAL_NORM, EMBEDDING, *layers(*attention, *mlp)]
    return names if config.tie_embeddings else [*names, HEAD]
