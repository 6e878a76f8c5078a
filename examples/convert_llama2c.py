"""Convert a llama2.c checkpoint: `python examples/convert_llama2c.py model.bin tokenizer.bin DIR`.

DIR becomes a Hugging Face directory, which shrinkc and transformers load.  Float32 checkpoints of version 0 and 1 of
llama2.c's export.py are read.  RoPE pairs are brought into the order of Hugging Face.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, processors

from shrinkc.importer.tokenizer_json import SPACE, ranked_merges, sentencepiece

CONTROLS = [
    "<unk>",
    "<s>",
    "</s>",
]  # llama2.c wraps the last two in line feeds, to print them nicely
BYTES = 256  # their pieces follow those of control


def convert(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write the directory ``out``, which must not exist."""
    config, tensors = read_checkpoint(checkpoint)
    pieces = read_pieces(tokenizer)
    if len(pieces) != config["vocab_size"]:
        raise SystemExit(
            f"{tokenizer} has {len(pieces)} tokens, {checkpoint} {config['vocab_size']}: "
            "give the tokenizer that the checkpoint was trained with."
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        **dict(zip(("unk_token", "bos_token", "eos_token"), CONTROLS, strict=True)),
    }
    out.mkdir()
    bpe(pieces).save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def read_checkpoint(path: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Return the content of ``config.json`` and float32 tensors by their names in a Hugging Face model."""
    data = path.read_bytes()
    if data.startswith(b"24ka"):
        version, *sizes, tied = struct.unpack_from("<8i?", data, 4)
        start = 256
    else:  # a negative size of the vocabulary says that the head is not the embedding
        version, start, sizes = 0, 28, struct.unpack_from("<7i", data)
        tied = sizes[5] > 0
    if version > 1:
        raise SystemExit(f"{path} has version {version}: export it with export.py --version 1.")
    dim, hidden, layers, heads, kv_heads, vocab, positions = sizes
    vocab, head_dim = abs(vocab), dim // heads
    kv_dim = kv_heads * head_dim

    embedding, head = ("model.embed_tokens", (vocab, dim)), ("lm_head", (vocab, dim))
    final_norm = ("model.norm", (dim,))
    norms = [("input_layernorm", (dim,)), ("post_attention_layernorm", (dim,))]
    attention = [
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv_dim, dim)),
        ("self_attn.v_proj", (kv_dim, dim)),
        ("self_attn.o_proj", (dim, dim)),
    ]
    mlp = [
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    ]
    if version == 0:
        rope_tables = ("", (positions, head_dim))  # rope_theta implies them
        order = [embedding, norms[0], *attention, norms[1], *mlp, final_norm, rope_tables]
    else:
        order = [*norms, final_norm, embedding, *attention, *mlp]
    tensors = {}
    for name, shape in order if tied else [*order, head]:
        in_layers = (name, shape) in norms + attention + mlp  # all layers' in a row
        prefixes = [f"model.layers.{layer}." for layer in range(layers)] if in_layers else [""]
        for prefix in prefixes:
            if start + 4 * math.prod(shape) > len(data):
                raise SystemExit(f"{path} ends in {prefix}{name}: copy it again.")
            values = np.frombuffer(data, "<f4", math.prod(shape), start).reshape(shape)
            start += values.nbytes
            if name.endswith(("q_proj", "k_proj")):
                # llama2.c rotates rows 2 i and 2 i + 1 of a head together, transformers i and i + head_dim / 2
                pairs = values.reshape(-1, head_dim // 2, 2, dim)
                values = pairs.swapaxes(1, 2).reshape(shape)
            if name:
                tensors[f"{prefix}{name}.weight"] = np.ascontiguousarray(values)
    if start != len(data):
        raise SystemExit(f"{path} has {len(data)} bytes, its header says {start}: copy it again.")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        # constants of run.c
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, tensors


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Return the pieces of a tokenizer.bin with their scores: behind the longest length, each score, length, bytes."""
    data = path.read_bytes()
    position, pieces = 4, []
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        position += 8 + length
        text = data[position - length : position].decode().replace(" ", SPACE)
        pieces.append((text, score))
    return [*((text, 0.0) for text in CONTROLS), *pieces[len(CONTROLS) :]]


def bpe(pieces: list[tuple[str, float]]) -> Tokenizer:
    """Return the tokenizer that encodes as llama2.c: a space before the text, bytes of what is unknown, BOS first."""
    vocab = {text: index for index, (text, _) in enumerate(pieces)}
    merges = ranked_merges(dict(pieces[len(CONTROLS) + BYTES :]))
    added = [AddedToken(text, special=True, normalized=False) for text in CONTROLS]
    out = sentencepiece(vocab, merges, added=added, unknown=CONTROLS[0], prefix_space=True)
    out.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("checkpoint", "tokenizer", "directory"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    convert(options.checkpoint, options.tokenizer, options.directory)
