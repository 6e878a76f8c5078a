"""Convert a llama2.c checkpoint and tokenizer to a plain Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shrinkc.core.errors import OutputError
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

    ``out`` must not exist.  It appears complete or not at all: the files are written to a
    temporary directory beside it, which is renamed at the end.  Raises ModelNotFound,
    BadWeights, BadTokenizer or OutputError.
    """
    checkpoint, tokenizer, out = Path(checkpoint), Path(tokenizer), Path(out)
    _check_output(out)  # before the reading, which may take a while
    header, tensors = read_checkpoint(checkpoint)
    tokenizer_text = tokenizer_json(read_pieces(tokenizer, header.vocab_size))
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as exc:
        raise OutputError(f"{out.parent} cannot be written: {exc.strerror}.") from exc
    try:
        _write(partial, header, tensors, tokenizer_text)
        _check_output(out)
        partial.rename(out)
    except OSError as exc:
        raise OutputError(
            f"{out} cannot be written: {exc.strerror}.", hint="check the free space and the rights."
        ) from exc
    finally:
        # after the rename there is nothing left to remove
        shutil.rmtree(partial, ignore_errors=True)


def _check_output(out: Path) -> None:
    # a dangling link is in the way as well
    if out.exists() or out.is_symlink():
        raise OutputError(
            f"{out} already exists.", hint="remove it or choose another output directory."
        )
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is not a directory.", hint="create it first.")


def _write(
    directory: Path,
    header: Llama2cHeader,
    tensors: dict[str, NDArray[np.float32]],
    tokenizer_text: str,
) -> None:
    # mkdtemp makes a private directory; the result gets the user's usual rights
    mask = os.umask(0)
    os.umask(mask)
    directory.chmod(0o777 & ~mask)
    (directory / "tokenizer.json").write_text(tokenizer_text, encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", tokenizer_settings(header.seq_len))
    _write_json(directory / "config.json", _config(header))
    _write_json(
        directory / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    )
    weights = directory / "model.safetensors"
    # transformers refuses a file without this entry
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o666 & ~mask)


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
