"""Import of Hugging Face checkpoints, with an optional LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, ModelNotFound
from shrinkc.importer.assembly import assemble, check_float, check_names_and_shapes
from shrinkc.importer.model import FloatModel
from shrinkc.importer.safetensors_file import Tensor, open_weights
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

Progress = Callable[[int, int], None]


def read_hf(
    path: Path,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    opened: tuple[dict[str, Tensor], list[str]],
    progress: Progress | None = None,
) -> FloatModel:
    """Read the values of tensors opened by :func:`open_hf`.  Raises BadWeights or ShapeMismatch."""
    weights, matrices = opened
    norms, biases = norm_shapes(config), bias_shapes(config)

    faults: list[str] = []
    wanted = [f"{name}.weight" for name in (*matrices, *norms)]
    wanted += [f"{name}.bias" for name in biases]
    advance = meter(progress, sum(weights[name].nbytes for name in wanted))
    read_norms = read_floats(weights, norms, advance, faults)
    read_matrices = read_floats(weights, matrices, advance, faults)
    read_biases = read_floats(weights, biases, advance, faults, "bias")
    refuse_faults(path, faults)
    return assemble(
        path,
        config,
        read_norms,
        read_matrices,
        tokenizer,
        read_biases,
        family_of(config).norm_offset,
    )


def open_hf(path: Path, config: LlamaConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Open the weights of the directory ``path`` and return them with the names of all matrices.

    Names, shapes and types are checked against ``config``; no values are read.  Raises
    ModelNotFound, BadWeights or ShapeMismatch.
    """
    weights = open_weights(path)
    matrices = matrix_shapes(config)
    if config.tie_embeddings and f"{HEAD}.weight" in weights:
        # some tools also save a tied head; assemble checks that it equals the embedding
        matrices[HEAD] = matrices[EMBEDDING]
    wanted: dict[str, tuple[int, ...]] = {f"{n}.weight": s for n, s in matrices.items()}
    wanted.update({f"{name}.weight": shape for name, shape in norm_shapes(config).items()})
    wanted.update({f"{name}.bias": shape for name, shape in bias_shapes(config).items()})
    check_names_and_shapes(path, {n: t.shape for n, t in weights.items()}, wanted)
    check_float(path, weights, wanted)
    return weights, list(matrices)


def check_directory(path: Path) -> None:
    """Raise ModelNotFound with a hint unless ``path`` is a directory."""
    if path.is_dir():
        return
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist.", hint="check the path of the model.")
    hint = (
        "give a Hugging Face or GPTQModel directory, or a .gguf file; to plan alone, a .json file."
    )
    if path.suffix == ".json":
        hint = "give the directory with its weights; 'shrinkc plan' takes a config.json alone."
    elif path.suffix == ".bin":
        hint = "examples/convert_llama2c.py makes a directory of a llama2.c checkpoint."
    raise ModelNotFound(f"{path} is a file, not a model directory.", hint=hint)


def meter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Return a function to call with the number of bytes read since its last call."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    return advance


def read_floats(
    weights: Mapping[str, Tensor],
    modules: Iterable[str],
    advance: Callable[[int], None],
    faults: list[str],
    part: str = "weight",
) -> dict[str, NDArray[np.float32]]:
    """Return ``<module>.<part>`` of every module; NaN and infinity are added to ``faults``."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for module in modules:
        name = f"{module}.{part}"
        tensors[module] = weights[name].read()
        fault = non_finite(name, tensors[module])
        if fault:
            faults.append(fault)
        advance(weights[name].nbytes)
    return tensors


def refuse_faults(path: Path, faults: list[str]) -> None:
    """Raise BadWeights if ``faults`` is not empty."""
    if faults:
        raise BadWeights(
            f"{path}: {listing(faults)}.", hint="the checkpoint is damaged or training diverged."
        )
