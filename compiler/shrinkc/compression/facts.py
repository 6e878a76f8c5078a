"""Sizes of a model directory, and how many bytes it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.importer import FloatModel, LlamaConfig, load_config, load_model
from shrinkc.importer.gptq import find_adapter
from shrinkc.importer.model import QuantizedWeight, Weight
from shrinkc.model import (
    EMBEDDING,
    FIELDS,
    HEAD,
    bias_shapes,
    family_of,
    matrix_shapes,
    module_name,
    norm_shapes,
)

FLOAT_BYTES = 2  # floats count as 16 bits, even if the file stores 32


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model.

    ``parameters`` counts a tied embedding once and includes low-rank adapters, but no scales.
    ``packed_bytes``: integers at their width, their scales (16 bits) and zero points, all other
    numbers at 16 bits; zeros count like any other weight.  ``bits``:
    module -> bits per weight, for the matrices that are integers.
    """

    config: LlamaConfig
    quantized: bool
    parameters: int
    non_zeros: int
    bytes_on_disk: int
    packed_bytes: int
    bits: dict[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        c = self.config
        return {
            "layers": c.num_layers,
            "hidden": c.hidden_size,
            "intermediate": c.intermediate_size,
            "heads": c.num_heads,
            "kv_heads": c.num_kv_heads,
            "vocabulary": c.vocab_size,
            "parameters": self.parameters,
            "non_zeros": self.non_zeros,
            "bytes_on_disk": self.bytes_on_disk,
            "packed_bytes": self.packed_bytes,
        }


def facts_of(directory: Path) -> ModelFacts:
    """Return the facts of a Hugging Face or GPTQModel directory, with its adapter if it has one.

    Reads all weights, without torch.  Raises the errors of :func:`shrinkc.importer.load_model`.
    """
    model = load_model(directory, adapter=find_adapter(directory))
    count = non_zero = packed = 0
    for weight in _every(model):
        if isinstance(weight, QuantizedWeight):
            count += weight.q.size
            # count dequantised weights, because the integer that means zero differs between groups
            non_zero += int(np.count_nonzero(weight.dequantized()))
            packed += integer_bytes(weight)
        else:
            count += weight.size
            non_zero += int(np.count_nonzero(weight))
            packed += weight.size * FLOAT_BYTES
    bits = _bits(model)
    return ModelFacts(
        config=model.config,
        quantized=bool(bits),
        parameters=count,
        non_zeros=non_zero,
        bytes_on_disk=sum(f.stat().st_size for f in directory.rglob("*") if f.is_file()),
        packed_bytes=packed,
        bits=bits,
    )


def float_facts(config: LlamaConfig) -> ModelFacts:
    """Return the facts of a model with that config, stored in float32."""
    count = parameters_of(config)
    return ModelFacts(config, False, count, count, 4 * count, FLOAT_BYTES * count)


def facts_before(source: Path) -> ModelFacts:
    """Return the facts of a model; for a GGUF file, of the directory that it will be converted to."""
    return float_facts(load_config(source)) if source.is_file() else facts_of(source)


def predicted(facts: ModelFacts, **changes: Any) -> ModelFacts:
    """Return the facts of the float model after ``changes`` of its config."""
    config = replace(facts.config, **changes)
    count = parameters_of(config)
    return replace(
        facts,
        config=config,
        parameters=count,
        non_zeros=count,
        bytes_on_disk=round(facts.bytes_on_disk * count / facts.parameters),
        packed_bytes=count * FLOAT_BYTES,
    )


def parameters_of(config: LlamaConfig) -> int:
    """Return the number of weights of a float model; a tied embedding counts once."""
    return sum(n * k for n, k in matrix_shapes(config).values()) + vector_values(config)


def vector_values(config: LlamaConfig) -> int:
    """Return the number of weights that are in no matrix: RMSNorm weights and biases."""
    return sum(n for shapes in (norm_shapes, bias_shapes) for (n,) in shapes(config).values())


def integer_bytes(weight: QuantizedWeight) -> int:
    """Return the bytes of integers, 16-bit scales, and of zero points and an input order if there are any."""
    rows, inputs = weight.q.shape
    total = -(-rows * inputs * weight.bits // 8) + weight.scale.size * 2
    middle = -(2.0 ** (weight.bits - 1)) * weight.scale
    if not np.array_equal(weight.offset, middle):
        # GPTQ's zero points are as wide as the weights, GGUF's offsets are 16-bit floats
        zeros = weight.offset / weight.scale
        integers = np.array_equal(np.rint(zeros) * weight.scale, weight.offset)
        total += -(-weight.scale.size * (weight.bits if integers else 16) // 8)
    if weight.order is not None:
        total += inputs * 2
    return total


def _every(model: FloatModel) -> Iterator[Weight]:
    """Yield every tensor once, low-rank adapters included."""
    yield model.embedding
    yield model.final_norm
    if model.head is not None:
        yield model.head
    for layer in model.layers:
        for norm in family_of(model.config).norms:
            yield getattr(layer, norm.field)
        yield from layer.biases.values()
        for name in FIELDS.values():
            yield getattr(layer, name)
        for adapter in layer.adapters.values():
            yield adapter.a
            yield adapter.b


def _bits(model: FloatModel) -> dict[str, int]:
    named: dict[str, Weight | None] = {
        EMBEDDING: model.embedding,
        HEAD: model.head,
    }
    for index, layer in enumerate(model.layers):
        named |= {module_name(index, m): getattr(layer, field) for m, field in FIELDS.items()}
    return {name: w.bits for name, w in named.items() if isinstance(w, QuantizedWeight)}
