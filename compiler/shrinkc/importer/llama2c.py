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
from shrinkc.importer.llama2c_checkpoint import BOS_ID, EOS_ID, read_checkpoint
from shrinkc.importer.llama2c_tokenizer import read_pieces, tokenizer_json, tokenizer_settings


def convert_llama2c(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write the directory ``out`` from a llama2.c ``.bin`` (float32) and its ``tokenizer.bin``.

    ``out`` must not exist.  It appears complete or not at all.  Raises ModelNotFound,
    BadWeights, BadTokenizer or OutputError.
    """
    checkpoint, tokenizer, out = Path(checkpoint), Path(tokenizer), Path(out)
    _check_output(out)  # before the reading, which may take a while
    config, tensors = read_checkpoint(checkpoint)
    tokenizer_text = tokenizer_json(read_pieces(tokenizer, config["vocab_size"]))
    with new_directory(out) as folder:
        _write(folder, config, tensors, tokenizer_text)


def _check_output(out: Path) -> None:
    # a dangling link is in the way as well
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} already exists.", hint="choose another output directory.")
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is not a directory.", hint="create it first.")
    check_directory(out)


def _write(
    directory: Path,
    config: dict[str, Any],
    tensors: dict[str, NDArray[np.float32]],
    tokenizer_text: str,
) -> None:
    (directory / "tokenizer.json").write_text(tokenizer_text, encoding="utf-8")
    _write_json(
        directory / "tokenizer_config.json", tokenizer_settings(config["max_position_embeddings"])
    )
    _write_json(directory / "config.json", config)
    _write_json(
        directory / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    )
    weights = directory / "model.safetensors"
    # transformers refuses a file without this entry
    save_file(tensors, weights, metadata={"format": "pt"})
    # the library makes a private file
    weights.chmod((directory / "config.json").stat().st_mode)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
