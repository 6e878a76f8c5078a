"""Read a llama2.c float checkpoint (``export.py`` version 0 or 1) as Hugging Face tensors.

Version 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len;
a negative vocab_size means an own head), then float32 tensors, the layers of each kind
together.  Version 1: magic ``ak42``, int32 1, the same seven (vocab_size positive), one
byte "shared classifier", zeros up to byte 256, then float32 tensors in another order.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound
from shrinkc.importer.weight_checks import listing, non_finite

_MAGIC = 0x616B3432
_V1_HEADER = 256
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MAX_FIELD = 1 << 24


@dataclass(frozen=True)
class Llama2cHeader:
    """The sizes in a checkpoint's header; ``tied`` tells whether the head is the embedding."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool

    @property
    def head_size(self) -> int:
        return self.dim // self.n_heads


def read_checkpoint(path: Path) -> tuple[Llama2cHeader, dict[str, NDArray[np.float32]]]:
    """Return the header and the tensors by their Hugging Face names, float32 [out, in].

    The rows of q and k are put into Hugging Face's order.  Raises ModelNotFound if there is
    no such file, BadWeights if it is truncated, too long, inconsistent or holds NaN.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path} does not exist.") from exc
    except OSError as exc:
        raise BadWeights(f"{path} cannot be read: {exc.strerror}.") from exc

    header, version, start = _parse_header(path, data)
    layout = _layout_v0(header) if version == 0 else _layout_v1(header)
    need = start + 4 * sum(math.prod(shape) for _, shape in layout)
    if len(data) != need:
        state = "is truncated" if len(data) < need else "is longer than its header says"
        raise BadWeights(
            f"{path} {state}: need {need} bytes, have {len(data)} ({header}).",
            hint="copy the file again; only float32 checkpoints of version 0 or 1 are read.",
        )
    values = np.frombuffer(data, dtype="<f4", offset=start)
    tensors: dict[str, NDArray[np.float32]] = {}
    position = 0
    for name, shape in layout:
        size = math.prod(shape)
        part = values[position : position + size].reshape(shape).astype(np.float32)
        position += size
        if not name:
            continue  # the RoPE tables of version 0, which the config implies
        tensors[name] = _adopt(name, part, header)
    faults = [fault for name, tensor in tensors.items() if (fault := non_finite(name, tensor))]
    if faults:
        raise BadWeights(f"{path}: {listing(faults)}.", hint="the checkpoint is damaged.")
    return header, tensors


def half_split_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows [heads * head_size, in] of q or k from llama2.c to Hugging Face.

    llama2.c rotates the rows (2 i, 2 i + 1) of a head together, Hugging Face the rows
    (i, i + head_size / 2).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(rows, columns))


def _adopt(name: str, part: NDArray[np.float32], header: Llama2cHeader) -> NDArray[np.float32]:
    if name.endswith("q_proj.weight"):
        return half_split_rows(part, header.n_heads)
    if name.endswith("k_proj.weight"):
        return half_split_rows(part, header.n_kv_heads)
    return part


def _parse_header(path: Path, data: bytes) -> tuple[Llama2cHeader, int, int]:
    """Return the header, the version, and the byte where the tensors start."""
    versioned = len(data) >= 4 and struct.unpack_from("<I", data)[0] == _MAGIC
    need = _V1_HEADER if versioned else 4 * len(_FIELDS)
    if len(data) < need:
        raise BadWeights(f"{path} is truncated in the header: need {need} bytes, have {len(data)}.")
    if versioned:
        (version,) = struct.unpack_from("<i", data, 4)
        if version != 1:
            raise BadWeights(
                f"{path} is a llama2.c checkpoint of version {version}; float32 checkpoints of "
                "version 0 and 1 are read.",
                hint="export it again with llama2.c's export.py --version 1.",
            )
        numbers = struct.unpack_from("<7i", data, 8)
        tied = data[36] != 0
    else:
        version = 0
        numbers = struct.unpack_from("<7i", data)
        tied = numbers[5] > 0
        numbers = (*numbers[:5], abs(numbers[5]), numbers[6])
    faults = [
        f"{name} = {value}"
        for name, value in zip(_FIELDS, numbers, strict=True)
        if not 0 < value <= _MAX_FIELD
    ]
    if faults:
        raise BadWeights(
            f"{path}: the header is not that of a llama2.c checkpoint: {', '.join(faults)}; "
            f"1 to {_MAX_FIELD} is allowed."
        )
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = numbers
    header = Llama2cHeader(dim, hidden, layers, heads, kv_heads, vocab, seq_len, tied)
    if header.dim % header.n_heads or header.n_heads % header.n_kv_heads or header.head_size % 2:
        raise BadWeights(
            f"{path}: dim {header.dim} has to be an even multiple of n_heads {header.n_heads}, "
            f"and n_heads a multiple of n_kv_heads {header.n_kv_heads}."
        )
    return header, version, _V1_HEADER if versioned else need


_Layout = list[tuple[str, tuple[int, ...]]]


def _layer_shapes(header: Llama2cHeader) -> dict[str, tuple[int, ...]]:
    """llama2.c's name of a tensor kind -> shape."""
    dim, hidden = header.dim, header.hidden_dim
    kv_dim = header.n_kv_heads * header.head_size
    return {
        "rms_att": (dim,),
        "rms_ffn": (dim,),
        "wq": (dim, dim),
        "wk": (kv_dim, dim),
        "wv": (kv_dim, dim),
        "wo": (dim, dim),
        "w1": (hidden, dim),
        "w2": (dim, hidden),
        "w3": (hidden, dim),
    }


_HF_NAMES = {
    "rms_att": "input_layernorm",
    "rms_ffn": "post_attention_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def _every_layer(header: Llama2cHeader, kinds: str) -> _Layout:
    shapes = _layer_shapes(header)
    return [
        (f"model.layers.{layer}.{_HF_NAMES[kind]}.weight", shapes[kind])
        for kind in kinds.split()
        for layer in range(header.n_layers)
    ]


def _layout_v0(header: Llama2cHeader) -> _Layout:
    """The tensors in file order; an empty name is skipped."""
    embedding = (header.vocab_size, header.dim)
    table = (header.seq_len, header.head_size // 2)
    layout: _Layout = [("model.embed_tokens.weight", embedding)]
    layout += _every_layer(header, "rms_att wq wk wv wo rms_ffn w1 w2 w3")
    layout += [("model.norm.weight", (header.dim,)), ("", table), ("", table)]
    if not header.tied:
        layout.append(("lm_head.weight", embedding))
    return layout


def _layout_v1(header: Llama2cHeader) -> _Layout:
    embedding = (header.vocab_size, header.dim)
    layout = _every_layer(header, "rms_att rms_ffn")
    layout += [("model.norm.weight", (header.dim,)), ("model.embed_tokens.weight", embedding)]
    layout += _every_layer(header, "wq wk wv wo w1 w2 w3")
    if not header.tied:
        layout.append(("lm_head.weight", embedding))
    return layout
