"""A checkpoint as a GGUF file for llama.cpp: the same integers, where a type of GGUF holds them.

:mod:`shrinkc.importer.gguf_model` reads such files, and says what llama.cpp does with names, order of rows and
norm weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from shrinkc.core.errors import UnsupportedModel
from shrinkc.core.output import new_file
from shrinkc.export.gguf_blocks import BLOCK, TYPES, misfit, to_blocks, type_for
from shrinkc.export.gguf_tokenizer import tokenizer_metadata
from shrinkc.importer.gguf_blocks import read_tensor
from shrinkc.importer.gguf_model import ROPE_FACTORS, tensor_name
from shrinkc.importer.gguf_reader import GgufTensor
from shrinkc.importer.model import FloatModel, QuantizedWeight, Weight, dense
from shrinkc.importer.rope import half_order, inverse_frequencies
from shrinkc.importer.weight_checks import listing
from shrinkc.model import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LinearRopeScaling,
    Llama3RopeScaling,
    family_of,
)

_FLOAT = "F16"
_QUANTIZATION_VERSION = 2  # of the blocks' layout


@dataclass
class Tensors:
    """Tensors of one type of the file and one kind of the checkpoint.

    ``error``: root mean square of the difference of all weights ÷ that of the weights; ``steps``: largest difference
    in quantisation steps, None for floats.
    """

    stored: str
    type: str
    count: int = 0
    weights: int = 0
    bytes: int = 0
    steps: float | None = None
    squares: tuple[float, float] = (0.0, 0.0)

    @property
    def error(self) -> float:
        difference, total = self.squares
        return float(np.sqrt(difference / total)) if total else 0.0


@dataclass
class Written:
    """Contents of the file.  ``kinds``: by kind and type.  ``notes``: how llama.cpp's model differs."""

    kinds: list[Tensors] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_gguf(
    model: FloatModel, output: Path, license_name: str = "", *, compact: bool = False
) -> Written:
    """Write ``model`` to the file ``output``, completely or not at all.

    Integers of the layers keep their values, or the model is refused.  Embedding and LM head become float16 if no
    type holds their integers.  Raises UnsupportedModel with every reason.
    ``compact``: see :func:`~shrinkc.export.gguf_blocks.type_for`.
    """
    _check(model)
    written, family = Written(), family_of(model.config)
    writer = _Writer(None, family.gguf)
    for key, value in _metadata(model, license_name).items():
        _add(writer, key, value)
    kinds: dict[tuple[str, str], Tensors] = {}
    for module, weight in _modules(model):
        name = tensor_name(model.config, module)
        if len(weight.shape) == 1:  # norms and biases
            writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
            continue
        stored, kind, raw, restored = _stored(name, weight, compact)
        group = kinds.setdefault((stored, kind), Tensors(stored, kind))
        _count(group, weight, restored, raw.nbytes)
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[kind])
    scaling = model.config.rope_scaling
    if isinstance(scaling, Llama3RopeScaling):
        plain = inverse_frequencies(dataclasses.replace(model.config, rope_scaling=None))
        factors = plain / inverse_frequencies(model.config)
        writer.add_tensor(ROPE_FACTORS, factors.astype(np.float32))
    with new_file(output) as file:
        writer.write_to(file)
    written.kinds = list(kinds.values())
    window = model.config.sliding_window
    if window is not None and family.global_every is None:
        written.notes.append(
            f"llama.cpp knows no sliding window of this family: texts of more than {window} tokens differ"
        )
    return written


class _Writer(GGUFWriter):
    """Writer of the package into an open file, so that an incomplete file never has the name of a whole one."""

    def write_to(self, file: BinaryIO) -> None:
        self.fout, self.state = [file], WriterState.EMPTY  # type: ignore[list-item]
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_tensors_to_file()


def _check(model: FloatModel) -> None:
    """Raise UnsupportedModel, naming all that a GGUF file or llama.cpp cannot have."""
    config, family = model.config, family_of(model.config)
    faults = []
    if any(layer.adapters for layer in model.layers):
        faults.append("it has a low-rank adapter; export the step before eora")
    if config.biased and family.name not in ("llama", "qwen2"):
        faults.append(f"biases of {family.name} are unknown to llama.cpp")
    every = family.global_every
    if every and config.sliding_window:
        usual = tuple(i for i in range(config.num_layers) if (i + 1) % every == 0)
        if config.global_layers != usual:
            faults.append(
                f"layers {list(config.global_layers)} attend to all tokens; in llama.cpp these are "
                f"every {every}th, {list(usual)}"
            )
    if config.query_scalar not in (None, config.head_dim):
        faults.append(f"query_pre_attn_scalar = {config.query_scalar}, not {config.head_dim}")
    refused: dict[str, list[str]] = {}
    for module, weight in _modules(model):
        if isinstance(weight, QuantizedWeight) and module not in (EMBEDDING, HEAD):
            why = misfit(weight)
            if why is None and type_for(weight) is None:
                why = f"{weight.bits} bit with these zero points"
            if why is not None:
                refused.setdefault(why, []).append(module)
    faults += [f"{listing(names, 'matrices')}: {why}" for why, names in refused.items()]
    if faults:
        raise UnsupportedModel(
            f"{model.source} cannot be written as GGUF: {'; '.join(faults)}.",
            f"group sizes that are multiples of {BLOCK}, 2 to 4 bit, or 8 bit with sym = true, can.",
        )


def _modules(model: FloatModel) -> Iterator[tuple[str, Weight]]:
    """Yield names with weights in the file's order of rows; "<module>.bias" is the name of a bias."""
    family = family_of(model.config)
    yield EMBEDDING, model.embedding
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        for norm in family.norms:
            yield prefix + norm.name, getattr(layer, norm.field)
        for module in family.modules:
            weight = getattr(layer, module.field)
            bias = layer.biases.get(module.short)
            if module.rotated and family.gguf_interleaved:
                order = np.argsort(half_order(weight.shape[0], model.config.head_dim))
                weight = _rows(weight, order)
                bias = None if bias is None else bias[order]
            yield prefix + module.name, weight
            if bias is not None:
                yield f"{prefix}{module.name}.bias", bias
    yield FINAL_NORM, model.final_norm
    if model.head is not None:
        yield HEAD, model.head


def _rows(weight: Weight, order: NDArray[np.int64]) -> Weight:
    if not isinstance(weight, QuantizedWeight):
        return weight[order]
    return dataclasses.replace(
        weight, q=weight.q[order], scale=weight.scale[order], offset=weight.offset[order]
    )


def _stored(
    name: str, weight: Weight, compact: bool
) -> tuple[str, str, NDArray[Any], NDArray[np.float32]]:
    """Return how the checkpoint stores ``weight``, its type in the file, its data there, and the weights that
    these data mean."""
    chosen = type_for(weight, compact=compact) if isinstance(weight, QuantizedWeight) else None
    stored = "floats"
    if isinstance(weight, QuantizedWeight):
        stored = f"{weight.bits} bit, group size {weight.group}"
    if chosen is None or not isinstance(weight, QuantizedWeight):
        with np.errstate(over="ignore"):
            halves = dense(weight).astype(np.float16)
        if not np.isfinite(halves).all():
            raise UnsupportedModel(f"{name} holds values beyond float16.")
        return stored, _FLOAT, halves, halves.astype(np.float32)
    raw = to_blocks(weight, chosen)
    block = (BLOCK, TYPES[chosen].nbytes)
    tensor, faults = GgufTensor(chosen, weight.shape, block, 0), list[str]()
    again = read_tensor(name, tensor, raw.reshape(len(raw), -1, block[1]), faults)
    assert not faults and isinstance(again, QuantizedWeight)
    return stored, chosen, raw, again.dequantized()


def _count(found: Tensors, weight: Weight, restored: NDArray[np.float32], nbytes: int) -> None:
    exact = dense(weight)
    difference = restored - exact
    found.count, found.weights = found.count + 1, found.weights + exact.size
    found.bytes += nbytes
    added = (float(np.square(part, dtype=np.float64).sum()) for part in (difference, exact))
    found.squares = (found.squares[0] + next(added), found.squares[1] + next(added))
    if isinstance(weight, QuantizedWeight):
        group_of = np.arange(weight.shape[1]) // weight.group
        if weight.order is not None:
            group_of[weight.order] = group_of.copy()
        steps = float(np.abs(difference / weight.scale[:, group_of]).max())
        found.steps = max(found.steps or 0.0, steps)


def _metadata(model: FloatModel, license_name: str) -> dict[str, Any]:
    c, family = model.config, family_of(model.config)
    own: dict[str, Any] = {
        "context_length": c.max_position,
        "embedding_length": c.hidden_size,
        "block_count": c.num_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": float(c.rope_theta),
        "vocab_size": c.vocab_size,
    }
    if c.sliding_window is not None:
        own["attention.sliding_window"] = c.sliding_window
    if c.local_rope_theta is not None:
        own["rope.freq_base_swa"] = float(c.local_rope_theta)
    if isinstance(c.rope_scaling, LinearRopeScaling):
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(c.rope_scaling.factor)}
    general = {"type": "model", "name": model.source, "license": license_name}
    return {
        **{f"general.{key}": value for key, value in general.items() if value},
        "general.quantization_version": _QUANTIZATION_VERSION,
        **{f"{family.gguf}.{key}": value for key, value in own.items()},
        **tokenizer_metadata(model.tokenizer, c),
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
