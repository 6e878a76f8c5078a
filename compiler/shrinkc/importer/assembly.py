"""Checks of tensor names, shapes and types, and assembly of the FloatModel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from shrinkc.core.errors import BadWeights, ShapeMismatch
from shrinkc.core.shell import name_of
from shrinkc.importer.model import (
    FloatLayer,
    FloatModel,
    Weight,
    dense,
)
from shrinkc.importer.safetensors_file import FLOAT_DTYPES, Tensor
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.weight_checks import listing
from shrinkc.model import EMBEDDING, FINAL_NORM, HEAD, LlamaConfig, family_of

# buffers saved by old versions of transformers; they can be computed from the config
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


def check_names_and_shapes(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    hint: str = "config.json and the weight files have to come from the same model.",
) -> None:
    """Raise ShapeMismatch, naming every tensor that is missing, unknown or not of its ``wanted`` shape."""
    missing = [name for name in wanted if name not in found]
    wrong = [name for name, shape in wanted.items() if found.get(name, shape) != shape]
    unexpected = [n for n in found if n not in wanted and not n.endswith(_IGNORED_SUFFIX)]
    faults = [
        listing([f"{n} {list(wanted[n])}" for n in missing], "tensors are missing", "missing {}"),
        listing(
            [f"{n} is {list(found[n])}, the config says {list(wanted[n])}" for n in wrong],
            "tensors are of other shapes",
        ),
        listing(
            [f"{n} {list(found[n])}" for n in unexpected], "tensors are unexpected", "unexpected {}"
        ),
    ]
    if any(faults):
        if any("lora_" in name for name in unexpected) and not any("lora_" in n for n in wanted):
            hint = "this looks like a LoRA adapter; give it beside its base model."
        elif (missing, wrong, unexpected) == ([f"{HEAD}.weight"], [], []):
            hint = "if the model has no own head, set tie_word_embeddings to true in config.json."
        raise ShapeMismatch(f"{path}: {'; '.join(filter(None, faults))}.", hint=hint)


def check_float(
    path: Path,
    weights: Mapping[str, Tensor],
    names: Iterable[str],
    hint: str = "use the float version of the model, or quantise it with GPTQ.",
) -> None:
    """Raise BadWeights, naming every tensor of ``names`` that is not of a float type."""
    faults = [
        f"{name} is {weights[name].dtype}"
        for name in names
        if weights[name].dtype not in FLOAT_DTYPES
    ]
    if faults:
        raise BadWeights(
            f"{path}: {listing(faults, 'tensors')}; {', '.join(FLOAT_DTYPES)} are supported.",
            hint=hint,
        )


def assemble(
    path: Path,
    config: LlamaConfig,
    norms: Mapping[str, np.ndarray],
    matrices: Mapping[str, Weight],
    tokenizer: Tokenizer,
    biases: Mapping[str, np.ndarray],
    norm_offset: float = 0.0,
) -> FloatModel:
    """Return the FloatModel of the given parts; keys of the maps are module names.

    ``norm_offset`` is added to all norm weights.

    Raises ShapeMismatch if the embedding is tied and the file has a head that differs from it.
    """
    embedding, head = matrices[EMBEDDING], matrices.get(HEAD)
    if config.tie_embeddings and head is not None:
        differing = int(np.count_nonzero(dense(head) != dense(embedding)))
        if differing:
            raise ShapeMismatch(
                f"{path}: tie_word_embeddings is true, but {HEAD}.weight and {EMBEDDING}.weight "
                f"differ in {differing} of {config.vocab_size * config.hidden_size} values.",
                hint="set tie_word_embeddings to false in config.json if the model was trained "
                f"with its own head, or remove {HEAD}.weight.",
            )
        head = None

    family = family_of(config)
    if norm_offset:
        norms = {name: weights + np.float32(norm_offset) for name, weights in norms.items()}

    def layer(index: int) -> FloatLayer:
        prefix = f"model.layers.{index}."
        return FloatLayer(
            **{m.field: matrices[prefix + m.name] for m in family.modules},  # type: ignore[arg-type]
            **{n.field: norms[prefix + n.name] for n in family.norms},  # type: ignore[arg-type]
            biases={
                m.short: biases[prefix + m.name]
                for m in family.modules
                if prefix + m.name in biases
            },
        )

    return FloatModel(
        config=config,
        embedding=embedding,
        layers=[layer(index) for index in range(config.num_layers)],
        final_norm=norms[FINAL_NORM],
        head=head,
        tokenizer=tokenizer,
        # only the name: generated files must not contain absolute paths
        source=name_of(path),
    )
