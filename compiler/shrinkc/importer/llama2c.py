"""Convert a llama2.c checkpoint and tokenizer to a plain Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shrinkc.core.errors import OutputError
from shrinkc.core.output import check_directory, new_directory
from shrinkc.importer.llama2c_checkpoint import Llama2cHeader, read_checkpoint
from shrinkc.importer.llama2c_tokenizer import (
    BOS_ID,
    EOS_ID,
    read_pieces,
    tokenizer_json,
    tokenizer_settings,
)

# constants of run.c
_RMS_EPS = 1e-5
_ROPE_THETA = 10000.0


def convert_llama2c(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write the directory ``out`` from a llama2.c ``.bin`` (float32) and its ``tokenizer.bin``.

    ``out`` must not exist.  It appears complete or not at all.  Raises ModelNotFound,
    BadWeights, BadTokenizer or OutputError.
    """
    checkpoint, tokenizer, out = Path(checkpoint), Path(tokenizer), Path(out)
    _check_output(out)  # before the reading, which may take a while
    header, tensors = read_checkpoint(checkpoint)
    tokenizer_text = tokenizer_json(read_pieces(tokenizer, header.vocab_size))
    with new_directory(out) as folder:
        _write(folder, header, tensors, tokenizer_text)


def _check_output(out: Path) -> None:
    # a dangling link is in the way as well
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} already exists.", hint="choose another output directory.")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is not a directory.", hint="create it first.")
    check_directory(out)


def _write(
    directory: Path,
    header: Llama2cHeader,
    tensors: dict[str, NDArray[np.float32]],
    tokenizer_text: str,
) -> None:
    (directory / "tokenizer.json").write_text(tokenizer_text, encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", tokenizer_settings(header.seq_len))
    _write_json(directory / "config.json", _config(header))
    _write_json(
        directory / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    )
    weights = directory / "model.safetensors"
    # transformers refuses a file without this entry
    save_file(tensors, weights, metadata={"format": "pt"})
    # the library makes a private file
    weights.chmod((directory / "config.json").stat().st_mode)


def _config(header: Llama2cHeader) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "head_dim": header.head_size,
        "hidden_act": "silu",
        "hidden_size": header.dim,
        "intermediate_size": header.hidden_dim,
        "max_position_embeddings": header.seq_len,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": header.n_heads,
        "num_hidden_layers": header.n_layers,
        "num_key_value_heads": header.n_kv_heads,
        "rms_norm_eps": _RMS_EPS,
        "rope_theta": _ROPE_THETA,
        "tie_word_embeddings": header.tied,
        "torch_dtype": "float32",
        "vocab_size": header.vocab_size,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
