"""Packed steps: GPTQ checkpoints whose embedding and LM head are integers too.

No other library reads such a directory, so its weights lie in ``packed.safetensors``, and its ``quant_method`` is
"shrinkc": transformers, GPTQModel and vLLM refuse it instead of starting from a random embedding.
:func:`write_gptq` makes a checkpoint that they read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.importer.embedding_sidecar import EMBEDDING_FILES, read_embedding, write_embedding
from shrinkc.importer.gptq import find_adapter
from shrinkc.importer.gptq_config import PACKED_METHOD, QUANTIZE_CONFIG, load_gptq_config
from shrinkc.importer.model import QuantizedWeight
from shrinkc.importer.packed_words import pack
from shrinkc.importer.safetensors_file import PACKED

PLAIN = "model.safetensors"
NOT_WEIGHTS = ("step.json", "README.md")
_METHOD = "gptq"


def weights_file(directory: Path) -> Path:
    """Return the file with the weights of a quantised step."""
    return directory / (PACKED if (directory / PACKED).is_file() else PLAIN)


def is_packed(directory: Path) -> bool:
    """Return whether embedding or LM head of a step are stored as integers."""
    return (directory / PACKED).is_file()


def link_files(
    source: Path, out: Path, without: tuple[str, ...] = NOT_WEIGHTS, *, copy: bool = False
) -> None:
    """Link the files of the folder ``source`` into ``out``; copy them if asked, and across file systems."""
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.name in without:
            continue
        if copy:
            shutil.copy2(file, out / file.name)
            continue
        try:
            os.link(file, out / file.name)
        except OSError:
            shutil.copy2(file, out / file.name)


def pack_step(directory: Path, embeddings: Mapping[str, QuantizedWeight]) -> None:
    """Replace the float embedding, and LM head, of the GPTQModel directory ``directory`` by ``embeddings``, a file name
    -> matrix, and leave out zero points and orders that the configuration implies."""
    from safetensors.numpy import load_file, save_file

    gptq = load_gptq_config(directory)
    tensors = load_file(directory / PLAIN)
    for name in EMBEDDING_FILES:  # both, or the only one and its copy of a tied model
        tensors.pop(f"{name}.weight", None)
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        order, module = tensors[name], name.removesuffix(".g_idx")
        groups = tensors[f"{module}.scales"].shape[0]
        if np.array_equal(order, np.arange(len(order)) // -(-len(order) // groups)):
            del tensors[name]
        form = gptq.format_of(module)
        if form is not None and form.sym:
            del tensors[f"{module}.qzeros"]
    save_file(tensors, directory / PACKED, {"format": "pt"})
    (directory / PACKED).chmod((directory / "config.json").stat().st_mode)
    (directory / PLAIN).unlink()
    for file, matrix in embeddings.items():
        write_embedding(directory / file, matrix)
    _set_method(directory / "config.json", directory / "config.json", PACKED_METHOD)
    (directory / QUANTIZE_CONFIG).unlink(missing_ok=True)


def write_gptq(directory: Path, out: Path, *, copy: bool = False) -> None:
    """Fill the empty folder ``out`` with the standard GPTQ checkpoint of a quantised step: the same integers, embedding
    and LM head as float16.  A low-rank adapter comes along.  Unless ``copy``, unchanged files are hard links."""
    from safetensors.numpy import load_file, save_file

    adapter = find_adapter(directory)
    if adapter is not None and adapter != directory:
        shutil.copytree(adapter, out / adapter.name)
    if not is_packed(directory):
        link_files(directory, out, copy=copy)
        return
    changed = (PACKED, "config.json", *EMBEDDING_FILES.values())
    link_files(directory, out, (*NOT_WEIGHTS, *changed), copy=copy)
    gptq = load_gptq_config(directory)
    tensors = load_file(directory / PACKED)
    for module in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        form = gptq.format_of(module)
        assert form is not None  # the importer has checked it
        groups, outputs = tensors[f"{module}.scales"].shape
        inputs = tensors[f"{module}.qweight"].shape[0] * 32 // form.bits
        order = (np.arange(inputs) // form.group(inputs)).astype(np.int32)
        tensors.setdefault(f"{module}.g_idx", order)
        middle = np.full((groups, outputs), (1 << (form.bits - 1)) - gptq.zero_shift, np.uint8)
        if f"{module}.qzeros" not in tensors:
            tensors[f"{module}.qzeros"] = pack(middle, form.bits).view(np.int32)
    for name, file in EMBEDDING_FILES.items():
        if (directory / file).is_file():
            tensors[f"{name}.weight"] = read_embedding(directory / file).dequantized().astype("f2")
    save_file(tensors, out / PLAIN, {"format": "pt"})
    section = _set_method(directory / "config.json", out / "config.json", _METHOD)
    _write_json(out / QUANTIZE_CONFIG, section)
    (out / PLAIN).chmod((directory / "config.json").stat().st_mode)


def _set_method(source: Path, out: Path, method: str) -> dict[str, Any]:
    fields = json.loads(source.read_text(encoding="utf-8"))
    fields["quantization_config"]["quant_method"] = method
    _write_json(out, fields)
    section: dict[str, Any] = fields["quantization_config"]
    return section


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
