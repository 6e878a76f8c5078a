"""One way in for every kind of checkpoint: Hugging Face, GPTQModel and GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shrinkc.core.errors import BadConfig, ModelNotFound
from shrinkc.core.shell import name_of
from shrinkc.importer import config as hf_config
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_model import gguf_formats, load_gguf, load_gguf_config
from shrinkc.importer.gguf_tokenizer import load_tokenizer
from shrinkc.importer.gptq import (
    gptq_formats,
    gptq_formats_by_rules,
    load_gptq,
    load_gptq_llama_config,
)
from shrinkc.importer.gptq_config import is_quantized, load_gptq_config, parse_gptq_config
from shrinkc.importer.hf import Progress, check_directory, load_hf, open_hf
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.importer.model import FloatModel, LlamaConfig
from shrinkc.importer.tokenizer import Tokenizer, has_tokenizer
from shrinkc.importer.weight_files import has_weights

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
    with _reading(Path(path)):
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


@dataclass(frozen=True)
class Outline:
    """What a checkpoint says of itself before its weights are read.

    ``tokenizer`` is None where there is none, which ``notes`` say, as they do of missing weights.
    """

    name: str
    config: LlamaConfig
    formats: Formats | None
    tokenizer: Tokenizer | None
    notes: tuple[str, ...] = ()


def read_outline(path: Path, *, whole: bool) -> Outline:
    """Read configuration, tokenizer and headers, and check everything that needs no values.

    Unless it has to be ``whole``, a ``config.json`` alone will do, or a directory without weights;
    the tokenizer may then be missing too.  Errors as of :func:`load_hf`.
    """
    with _reading(Path(path)):
        return _outline(Path(path), whole)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever the file system refuses meanwhile is a model that cannot be read."""
    try:
        yield
    except OSError as error:
        raise ModelNotFound(
            f"{error.filename or path} cannot be read: {error.strerror}.",
            hint="check the path of the model and its rights.",
        ) from error


def _outline(path: Path, whole: bool) -> Outline:
    if not whole and path.is_file() and path.suffix == ".json":
        return _bare(path)
    kind = _kind(path)
    config = load_config(path)
    name = name_of(path)
    if kind == "gguf":
        return Outline(
            name, config, formats(path), load_tokenizer(GgufFile(path), config.vocab_size)
        )
    if whole or has_weights(path):
        tokenizer = Tokenizer.from_dir(path, config.vocab_size, config.bos_id)
        if kind == "hf":
            open_hf(path, config)  # GPTQ's formats come with the same checks
        return Outline(name, config, formats(path), tokenizer)
    notes = [_NO_WEIGHTS.format(path)]
    found = None
    if kind == "gptq":
        found = gptq_formats_by_rules(load_gptq_config(path), config)
        notes.append(_NO_INTEGERS)
    if not has_tokenizer(path):
        return Outline(name, config, found, None, (*notes, _NO_TOKENIZER.format(path)))
    tokenizer = Tokenizer.from_dir(path, config.vocab_size, config.bos_id)
    return Outline(name, config, found, tokenizer, tuple(notes))


def _bare(path: Path) -> Outline:
    """Of a configuration file, whatever lies beside it."""
    raw = read_json_object(path, BadConfig)
    section = raw.pop("quantization_config", None)
    config = hf_config.parse_config(raw, source=str(path))
    notes, found = [f"only {path} was read; there are no weights to check"], None
    if section is not None:
        gptq = parse_gptq_config(section, f"{path}: quantization_config")
        found = gptq_formats_by_rules(gptq, config)
        notes.append(_NO_INTEGERS)
    name = name_of(path.parent if path.name == "config.json" else path.with_suffix(""))
    return Outline(name, config, found, None, (*notes, _NO_TOKENIZER.format(path)))


_NO_WEIGHTS = "{} holds no weights; the sizes of config.json could not be checked against them"
_NO_INTEGERS = "all matrices of the layers are taken as quantised, as the configuration's rules say"
_NO_TOKENIZER = "{} comes without a tokenizer.json"


def _kind(path: Path) -> str:
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    check_directory(path)
    return "gptq" if is_quantized(path) else "hf"
