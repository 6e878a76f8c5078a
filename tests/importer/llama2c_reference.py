"""llama2.c's own files and arithmetic, written after its export.py and run.c for the tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass
class Sizes:
    dim: int = 24
    hidden_dim: int = 20
    n_layers: int = 2
    n_heads: int = 3
    n_kv_heads: int = 1
    vocab_size: int = 270
    seq_len: int = 16

    @property
    def head_size(self) -> int:
        return self.dim // self.n_heads


def random_weights(sizes: Sizes, tied: bool, seed: int = 0) -> dict[str, Floats]:
    """Return float32 arrays under the names of run.c, layers stacked."""
    rng = np.random.default_rng(seed)
    layers, dim, hidden = sizes.n_layers, sizes.dim, sizes.hidden_dim
    kv_dim = sizes.n_kv_heads * sizes.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding_table": (sizes.vocab_size, dim),
        "rms_att_weight": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "rms_ffn_weight": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final_weight": (dim,),
    }
    if not tied:
        shapes["wcls"] = (sizes.vocab_size, dim)
    return {
        name: (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }


def checkpoint_bytes(sizes: Sizes, weights: dict[str, Floats], version: int = 0) -> bytes:
    """Return the file that export.py writes (legacy_export or version1_export)."""
    tied = "wcls" not in weights
    numbers = [sizes.dim, sizes.hidden_dim, sizes.n_layers, sizes.n_heads, sizes.n_kv_heads]
    if version == 0:
        head = struct.pack(
            "<7i", *numbers, sizes.vocab_size if tied else -sizes.vocab_size, sizes.seq_len
        )
        order = ["token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo"]
        order += ["rms_ffn_weight", "w1", "w2", "w3", "rms_final_weight"]
        body = b"".join(weights[name].tobytes() for name in order)
        # freq_cis_real and freq_cis_imag; nobody reads them, so they are garbage here
        body += np.full(sizes.seq_len * sizes.head_size, np.nan, np.float32).tobytes()
    else:
        head = struct.pack(
            "<Ii7iB", 0x616B3432, version, *numbers, sizes.vocab_size, sizes.seq_len, tied
        ).ljust(256, b"\0")
        order = ["rms_att_weight", "rms_ffn_weight", "rms_final_weight", "token_embedding_table"]
        order += ["wq", "wk", "wv", "wo", "w1", "w2", "w3"]
        body = b"".join(weights[name].tobytes() for name in order)
    return head + body + (b"" if tied else weights["wcls"].tobytes())


def logits(sizes: Sizes, w: dict[str, Floats], tokens: Sequence[int]) -> Floats:
    """Return float64 logits [T, vocab]: run.c's forward(), one position after the other."""
    size = sizes.head_size
    group = sizes.n_heads // sizes.n_kv_heads
    keys: list[list[Floats]] = [[] for _ in range(sizes.n_layers)]
    values: list[list[Floats]] = [[] for _ in range(sizes.n_layers)]
    rows = []
    for position, token in enumerate(tokens):
        x = w["token_embedding_table"][token].astype(np.float64)
        for layer in range(sizes.n_layers):
            xb = _rmsnorm(x, w["rms_att_weight"][layer])
            q, k = w["wq"][layer] @ xb, w["wk"][layer] @ xb
            for vector in (q, k):
                for i in range(0, len(vector), 2):
                    angle = position / 10000.0 ** ((i % size) / size)
                    a, b = vector[i], vector[i + 1]
                    vector[i] = a * np.cos(angle) - b * np.sin(angle)
                    vector[i + 1] = a * np.sin(angle) + b * np.cos(angle)
            keys[layer].append(k)
            values[layer].append(w["wv"][layer] @ xb)
            out = np.zeros(sizes.dim)
            for head in range(sizes.n_heads):
                kv = slice(head // group * size, (head // group + 1) * size)
                part = slice(head * size, (head + 1) * size)
                scores = np.array([q[part] @ old[kv] for old in keys[layer]]) / size**0.5
                weight = np.exp(scores - scores.max())
                weight /= weight.sum()
                out[part] = sum(a * old[kv] for a, old in zip(weight, values[layer], strict=True))
            x = x + w["wo"][layer] @ out
            xb = _rmsnorm(x, w["rms_ffn_weight"][layer])
            gate = w["w1"][layer] @ xb
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ xb))
        head_weight = w.get("wcls", w["token_embedding_table"])
        rows.append(head_weight @ _rmsnorm(x, w["rms_final_weight"]))
    return np.array(rows)


def _rmsnorm(x: Floats, gain: Floats) -> Floats:
    return np.asarray(x / np.sqrt(np.mean(x * x) + 1e-5) * gain)


# --- tokenizer ---------------------------------------------------------------------------


def byte_pieces() -> list[tuple[bytes, float]]:
    """The first 259 entries of every tokenizer.bin."""
    names = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    return [(name, 0.0) for name in names]


def tokenizer_bytes(pieces: Sequence[tuple[bytes, float]]) -> bytes:
    """Return the file that tokenizer.py's export() writes."""
    parts = [struct.pack("<i", max(len(piece) for piece, _ in pieces))]
    parts += [struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces]
    return b"".join(parts)


def read_tokenizer(path: Path) -> list[tuple[bytes, float]]:
    data, position, pieces = path.read_bytes(), 4, []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        pieces.append((data[position + 8 : position + 8 + length], score))
        position += 8 + length
    return pieces


def encode(pieces: Sequence[tuple[bytes, float]], text: str) -> list[int]:
    """run.c's encode() with BOS: characters or bytes first, then the best pair again and again."""
    lookup = {piece: index for index, (piece, _) in enumerate(pieces)}
    ids = [1]
    if text:
        ids.append(lookup[b" "])
    for char in text:
        raw = char.encode()
        ids += [lookup[raw]] if raw in lookup else [byte + 3 for byte in raw]
    while True:
        best_score, best_at, best_id = -1e10, -1, -1
        for at in range(len(ids) - 1):
            joined = lookup.get(pieces[ids[at]][0] + pieces[ids[at + 1]][0])
            if joined is not None and pieces[joined][1] > best_score:
                best_score, best_at, best_id = pieces[joined][1], at, joined
        if best_at < 0:
            return ids
        ids[best_at : best_at + 2] = [best_id]
