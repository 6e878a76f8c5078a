"""Import of GPTQModel (or AutoGPTQ) checkpoints.  The integers are not changed.

A quantised Linear [out, in] is stored as (GPTQModel, ``qlinear/__init__.py``, ``pack_original``
and ``dequantize_weight``)

* ``qweight`` int32 [in · bits / 32, out]: a column is a bit stream of values, lowest bits first;
  3-bit values cross word borders, 32 of them in 3 words
* ``qzeros`` int32 [groups, out · bits / 32], packed like ``qweight`` but along ``out``; format
  "gptq" stores ``zero - 1``, subtracted from whole words, "gptq_v2" stores ``zero``
* ``scales`` [groups, out], of a float type
* ``g_idx`` int32 [in]: the group of every input, out of order after act-order

A packed step of shrinkc has the same tensors, except ``qzeros`` of symmetric matrices and ``g_idx`` in order, and
embedding and LM head in files of their own (:mod:`shrinkc.importer.embedding_sidecar`).

and ``weight[o, k] = scales[g, o] * (q - zeros[g, o])`` with ``g = g_idx[k]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadConfig, ShapeMismatch, UnsupportedModel
from shrinkc.importer.assembly import assemble, check_float, check_names_and_shapes
from shrinkc.importer.config import parse_config, read_config
from shrinkc.importer.embedding_sidecar import (
    EMBEDDING_FILES,
    check_agreement,
    embedding_format,
    read_embedding,
)
from shrinkc.importer.gptq_config import GptqConfig, ModuleFormat, gptq_config_of
from shrinkc.importer.hf import (
    Progress,
    check_directory,
    meter,
    read_floats,
    refuse_faults,
)
from shrinkc.importer.model import FloatModel, Formats, QuantizedWeight, Weight, dense
from shrinkc.importer.packed_words import unpack, words_for
from shrinkc.importer.safetensors_file import FLOAT_DTYPES, Tensor, open_weights
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing, non_finite
from shrinkc.model import (
    EMBEDDING,
    HEAD,
    LlamaConfig,
    bias_shapes,
    family_of,
    matrix_shapes,
    norm_shapes,
)

ADAPTER_FOLDER = "eora"
ADAPTER = "adapter_config.json"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_INTEGER_PARTS = ("qweight", "qzeros", "g_idx")
# times the largest integer, a scale is still finite in float32
_SCALE_MAX = 1e36
# bits -> a word with 1 in every field
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def load_gptq(
    checkpoint: GptqFiles, tokenizer: Tokenizer, progress: Progress | None = None
) -> FloatModel:
    """Read an opened GPTQModel directory.  Quantised matrices become QuantizedWeights.

    Raises BadWeights or ShapeMismatch.
    """
    config = checkpoint.config
    total = sum(checkpoint.nbytes(name) for name in checkpoint.names())
    total += sum(checkpoint.weights[f"{name}.bias"].nbytes for name in bias_shapes(config))
    advance = meter(progress, total)
    faults: list[str] = []
    norms = read_floats(checkpoint.weights, norm_shapes(config), advance, faults)
    biases = read_floats(checkpoint.weights, bias_shapes(config), advance, faults, "bias")
    matrices: dict[str, Weight] = {}
    stored = [name for name in checkpoint.floats if f"{name}.weight" in checkpoint.weights]
    matrices.update(read_floats(checkpoint.weights, stored, advance, faults))
    matrices.update(checkpoint.read_quantized(advance, faults))
    refuse_faults(checkpoint.path, faults)
    for name, sidecar in checkpoint.sidecars.items():
        table = read_embedding(sidecar)
        if name in matrices:  # written before steps were packed
            dtype = checkpoint.weights[f"{name}.weight"].dtype
            check_agreement(sidecar, table, dense(matrices[name]), dtype)
        matrices[name] = table
    return assemble(
        checkpoint.path, config, norms, matrices, tokenizer, biases, family_of(config).norm_offset
    )


def read_gptq(directory: Path) -> dict[str, QuantizedWeight]:
    """Return the quantised matrices by name, such as "model.layers.0.mlp.up_proj".

    The embedding of a sidecar file is "model.embed_tokens", its head "lm_head".  Checks names, shapes and types of
    the whole checkpoint, but needs no tokenizer.  Raises the errors of :func:`load_gptq`.
    """
    directory = Path(directory)
    check_directory(directory)
    raw, generation = read_config(directory)
    gptq = gptq_config_of(directory, raw)
    if gptq is None:
        raise BadConfig(f"{directory} is not quantised.")
    checkpoint = GptqFiles.open(directory, gptq_llama_config(directory, raw, generation), gptq)
    faults: list[str] = []
    found = checkpoint.read_quantized(meter(None, 0), faults)
    refuse_faults(checkpoint.path, faults)
    for name, sidecar in checkpoint.sidecars.items():
        found[name] = read_embedding(sidecar)
    return found


def gptq_formats(checkpoint: GptqFiles) -> Formats:
    """Return module -> (bits, inputs per scale, kind of zero point), from configuration and headers."""
    formats = {
        name: (fmt.bits, fmt.group(checkpoint.shapes[name][1]), fmt.zero)
        for name, fmt in checkpoint.quantized.items()
    }
    for name, sidecar in checkpoint.sidecars.items():
        formats[name] = embedding_format(sidecar, checkpoint.shapes[name])
    return formats


def gptq_formats_by_rules(gptq: GptqConfig, config: LlamaConfig) -> Formats:
    """Return :func:`gptq_formats` of a checkpoint without weights: all matrices of the layers that no
    rule excludes."""
    return {
        name: (fmt.bits, fmt.group(shape[1]), fmt.zero)
        for name, shape in matrix_shapes(config).items()
        if name not in (EMBEDDING, HEAD) and (fmt := gptq.format_of(name)) is not None
    }


def permuted_by_rules(gptq: GptqConfig, config: LlamaConfig) -> frozenset[str]:
    """Return all modules that :meth:`GptqFiles.permuted` could return, without reading weights."""
    formats = gptq_formats_by_rules(gptq, config) if gptq.desc_act else {}
    shapes = matrix_shapes(config)
    return frozenset(name for name, (_, group, _) in formats.items() if group < shapes[name][1])


def gptq_llama_config(
    directory: Path, raw: Mapping[str, Any], generation: Mapping[str, Any]
) -> LlamaConfig:
    """Return the LlamaConfig of ``read_config(directory)``.  Raises the errors of ``parse_config``."""
    fields = {name: value for name, value in raw.items() if name != "quantization_config"}
    return parse_config(fields, generation, source=str(directory / "config.json"))


def find_adapter(directory: Path) -> Path | None:
    """Return the directory of the adapter that belongs to a quantised checkpoint, or None.

    It is in the folder ``eora`` or next to the weights.  Raises BadConfig, which names both, if there
    are two.
    """
    places = [directory / ADAPTER_FOLDER, directory]
    found = [place for place in places if (place / ADAPTER).is_file()]
    if len(found) > 1:
        raise BadConfig(
            f"{directory} holds two adapters, and which one belongs to it is not known: "
            f"{' and '.join(str(place / ADAPTER) for place in found)}.",
            hint="remove one of them; 'shrinkc plan' and 'shrinkc compile' also take the one that "
            "--adapter names.",
        )
    return found[0] if found else None


@dataclass(frozen=True)
class GptqFiles:
    """Opened directory; names, shapes and types of its tensors agree with the configuration."""

    path: Path
    config: LlamaConfig
    zero_shift: int
    weights: dict[str, Tensor]
    shapes: dict[str, tuple[int, int]]  # of all matrices
    quantized: dict[str, ModuleFormat]
    floats: list[str]  # the other matrices
    sidecars: dict[str, Path]  # of embedding and head

    @classmethod
    def open(cls, path: Path, config: LlamaConfig, gptq: GptqConfig) -> GptqFiles:
        """Open the directory ``path`` and check the headers of its weights against the configurations."""
        weights = open_weights(path)
        shapes = matrix_shapes(config)
        quantized = _quantized(path, gptq, weights, shapes)
        floats = [name for name in shapes if name not in quantized]
        sidecars = {
            name: path / file
            for name, file in EMBEDDING_FILES.items()
            if name in floats and (path / file).is_file()
        }
        stored = [name for name in floats if not (gptq.packed and name in sidecars)]
        wanted: dict[str, tuple[int, ...]] = {f"{n}.weight": shapes[n] for n in stored}
        wanted.update({f"{name}.weight": shape for name, shape in norm_shapes(config).items()})
        wanted.update({f"{name}.bias": shape for name, shape in bias_shapes(config).items()})
        float_names = list(wanted)
        for name, fmt in quantized.items():
            parts = _stored_shapes(name, fmt, shapes[name])
            if gptq.packed:
                implied = (f"{name}.qzeros",) if fmt.sym else ()
                for part in (*implied, f"{name}.g_idx"):
                    if part not in weights:
                        del parts[part]
            wanted.update(parts)
            if f"{name}.bias" in weights:  # AutoGPTQ stores zeros for a missing bias
                wanted[f"{name}.bias"] = shapes[name][:1]
        check_names_and_shapes(path, {n: t.shape for n, t in weights.items()}, wanted)
        check_float(path, weights, float_names)
        _check_dtypes(path, weights, quantized)
        return cls(path, config, gptq.zero_shift, weights, shapes, quantized, floats, sidecars)

    def names(self) -> list[str]:
        """Return all modules that hold tensors."""
        return [*norm_shapes(self.config), *self.shapes]

    def nbytes(self, module: str) -> int:
        """Return the stored bytes of ``module``."""
        parts = _PARTS if module in self.quantized else ("weight",)
        names = (f"{module}.{part}" for part in parts)
        return sum(self.weights[name].nbytes for name in names if name in self.weights)

    def permuted(self) -> frozenset[str]:
        """Return the quantised modules whose columns are not stored in the order of inputs.

        Reads only g_idx; ``read_quantized`` refuses a damaged one.
        """
        return frozenset(
            name
            for name, fmt in self.quantized.items()
            if f"{name}.g_idx" in self.weights
            and _order(
                name,
                self.weights[f"{name}.g_idx"].read_integers(),
                fmt.group(self.shapes[name][1]),
                [],
            )
            is not None
        )

    def read_quantized(
        self, advance: Callable[[int], None], faults: list[str]
    ) -> dict[str, QuantizedWeight]:
        """Return the quantised matrices; invalid values are described in ``faults``."""
        found = {}
        biases = []
        own = bias_shapes(self.config)
        for name, fmt in self.quantized.items():
            if (
                name not in own
                and f"{name}.bias" in self.weights
                and self.weights[f"{name}.bias"].read().any()
            ):
                biases.append(f"{name}.bias")
            weight = _read_module(
                self.weights, name, fmt, self.shapes[name], self.zero_shift, faults
            )
            if weight is not None:
                found[name] = weight
            advance(self.nbytes(name))
        if biases:
            raise UnsupportedModel(
                f"{self.path}: {listing(biases, 'tensors')}: biases that are not zero are not supported.",
                hint="models of this family have no biases there.",
            )
        return found


def _quantized(
    path: Path, gptq: GptqConfig, weights: dict[str, Tensor], shapes: dict[str, tuple[int, int]]
) -> dict[str, ModuleFormat]:
    """Return the modules that are stored as integers, with their format in the configuration."""
    found: dict[str, ModuleFormat] = {}
    excluded = []
    for name in shapes:
        if f"{name}.qweight" not in weights:
            continue
        fmt = gptq.format_of(name)
        if fmt is None:
            excluded.append(name)
        elif name != EMBEDDING:
            # a quantised embedding has groups along the vocabulary: refused as unexpected
            found[name] = fmt
    if excluded:
        raise ShapeMismatch(
            f"{path}: excluded from quantisation by a rule of `dynamic`, but stored as integers: "
            f"{listing(excluded, 'modules')}.",
            hint="configuration and weight files have to come from the same quantisation.",
        )
    return found


def _stored_shapes(
    name: str, fmt: ModuleFormat, shape: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    outputs, inputs = shape
    groups = -(-inputs // fmt.group(inputs))
    return {
        f"{name}.qweight": (words_for(inputs, fmt.bits), outputs),
        f"{name}.qzeros": (groups, words_for(outputs, fmt.bits)),
        f"{name}.scales": (groups, outputs),
        f"{name}.g_idx": (inputs,),
    }


def _check_dtypes(path: Path, weights: dict[str, Tensor], modules: dict[str, ModuleFormat]) -> None:
    faults = []
    for module in modules:
        for part in _PARTS:
            name, allowed = f"{module}.{part}", ("I32",) if part in _INTEGER_PARTS else FLOAT_DTYPES
            dtype = weights[name].dtype if name in weights else allowed[0]
            if dtype not in allowed:
                faults.append(f"{name} is {dtype}, not {' or '.join(allowed)}")
    refuse_faults(path, faults)


def _read_module(
    weights: dict[str, Tensor],
    name: str,
    fmt: ModuleFormat,
    shape: tuple[int, int],
    zero_shift: int,
    faults: list[str],
) -> QuantizedWeight | None:
    outputs, inputs = shape
    bits, group = fmt.bits, fmt.group(inputs)
    before = len(faults)
    scale = np.ascontiguousarray(weights[f"{name}.scales"].read().T)
    middle = 1 << (bits - 1)
    zero = np.full(scale.shape, middle, np.uint8)
    if f"{name}.qzeros" in weights:
        zero = _zeros(weights[f"{name}.qzeros"].read_integers(), bits, outputs, zero_shift).T
    order = None
    if f"{name}.g_idx" in weights:
        order = _order(f"{name}.g_idx", weights[f"{name}.g_idx"].read_integers(), group, faults)
    fault = non_finite(f"{name}.scales", scale)
    if fault:
        faults.append(fault)
    elif (scale < 0).any():
        faults.append(f"{name}.scales holds {int((scale < 0).sum())} negative values")
    elif (largest := float(scale.max())) > _SCALE_MAX:
        faults.append(
            f"{name}.scales holds values up to {largest:.3g}; at most {_SCALE_MAX:.3g} is allowed"
        )
    if fmt.sym and (zero != middle).any():
        faults.append(
            f"{name}.qzeros holds {int((zero != middle).sum())} zero points other than {middle}, "
            "but sym is true"
        )
    if len(faults) > before:
        return None
    q = unpack(weights[f"{name}.qweight"].read_integers().T, bits, inputs)
    if order is not None:
        q = q[:, order]
    _replace_zero_scales(q, scale, zero, group)
    return QuantizedWeight(bits, group, q, scale, -(scale * zero.astype(np.float32)), order)


def _zeros(words: NDArray[np.integer], bits: int, outputs: int, shift: int) -> NDArray[np.uint8]:
    """Return zero points [groups, outputs]; ``shift`` 1 undoes the subtraction of format gptq.

    The subtraction was done on whole words, so adding 1 to whole words restores borrowed bits.  Only
    3-bit fields, which can cross words, were wrapped one by one.
    """
    if shift and bits in _ONES:
        words = words.view(np.uint32) + np.uint32(_ONES[bits])
        shift = 0
    zeros = unpack(words, bits, outputs)
    return (zeros + np.uint8(shift)) & np.uint8((1 << bits) - 1)


def _order(
    name: str, group_of: NDArray[np.integer], group: int, faults: list[str]
) -> NDArray[np.int64] | None:
    """Return the inputs sorted by group; None if they are in that order already, or after noting a fault."""
    inputs = len(group_of)
    # after sorting, column j must be in group j // group
    expected = np.arange(inputs) // group
    order = np.argsort(group_of, kind="stable")
    differing = group_of[order] != expected
    if differing.any():
        first = int(expected[np.argmax(differing)])
        faults.append(
            f"{name} gives {int((group_of == first).sum())} inputs to group {first}, "
            f"{int((expected == first).sum())} are needed"
        )
        return None
    return None if np.array_equal(group_of, expected) else order


def _replace_zero_scales(
    q: NDArray[np.uint8], scale: NDArray[np.float32], zero: NDArray[np.uint8], group: int
) -> None:
    """Replace scales of 0 (underflow in fp16) by 1 and their q by the zero point: the weights remain 0."""
    for row, g in np.argwhere(scale == 0):
        q[row, g * group : (g + 1) * group] = zero[row, g]
        scale[row, g] = 1
