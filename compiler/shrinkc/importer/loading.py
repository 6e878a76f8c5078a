"""One way in for every kind of checkpoint: Hugging Face, GPTQModel and GGUF."""

from __future__ import annotations

from pathlib import Path

from shrinkc.importer import config as hf_config
from shrinkc.importer.gguf_model import gguf_formats, load_gguf, load_gguf_config
from shrinkc.importer.gptq import gptq_formats, load_gptq, load_gptq_llama_config
from shrinkc.importer.gptq_config import is_quantized
from shrinkc.importer.hf import Progress, check_directory, load_hf
from shrinkc.importer.model import FloatModel, LlamaConfig

Formats = dict[str, tuple[int, int, bool]]
"""Module name -> (bits, inputs per scale, asymmetric) of the matrices stored as integers."""


def load_model(
    path: Path, adapter: Path | None = None, progress: Progress | None = None
) -> FloatModel:
    """Read a Hugging Face or GPTQModel directory or a ``.gguf`` file, and a LoRA if given.

    Matrices that the checkpoint stores as integers become QuantizedWeights.  ``adapter`` takes
    the place of one that comes with a GPTQModel directory.  ``progress`` is called with bytes
    done and in total.  Errors as of :func:`load_hf`.
    """
    return {"hf": load_hf, "gptq": load_gptq, "gguf": load_gguf}[_kind(Path(path))](
        Path(path), adapter, progress
    )


def load_config(path: Path) -> LlamaConfig:
    """Return what :func:`load_model` puts in ``FloatModel.config``, without reading weights.

    Raises ModelNotFound, BadConfig, UnsupportedModel, or BadWeights (a damaged GGUF file).
    """
    load = {
        "hf": hf_config.load_config,
        "gptq": load_gptq_llama_config,
        "gguf": load_gguf_config,
    }
    return load[_kind(Path(path))](Path(path))


def formats(path: Path) -> Formats | None:
    """Return how the matrices of ``path`` are stored, or None if all of them are floats.

    Keys are names such as "model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head";
    a matrix that is not there is float.  Reads configuration and headers only.  ``asymmetric``
    is False where the zero point of every group is the middle of the range.
    """
    kind = _kind(Path(path))
    if kind == "hf":
        return None
    return (gptq_formats if kind == "gptq" else gguf_formats)(Path(path)) or None


def _kind(path: Path) -> str:
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    check_directory(path)
    return "gptq" if is_quantized(path) else "hf"
