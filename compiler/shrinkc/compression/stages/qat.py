"""Stage ``qat``: quantisation-aware training of integers, scales and RMSNorm weights.

Each weight has a latent value in quantisation steps, which the forward pass rounds to the nearest integer.  The
backward pass ignores the rounding where the latent lies within the grid (straight-through estimator, Bengio et al.
2013).  Scales are trained as in LSQ (Esser et al. 2020); the loss is the divergence from the uncompressed model (Liu
et al. 2023, "LLM-QAT").  Zero points, groups and the order of inputs stay, so the result has the same format and
size.  Embedding and LM head are trained like other matrices; a tied one gets both gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np

from shrinkc.checkpoints import family_of_torch, is_packed
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Share
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import train_norms
from shrinkc.compression.rounding import (
    FACTOR_MIN,
    ROUNDING_PASSES,
    nearest,
    rounded,
    rounded_embedding,
)
from shrinkc.compression.stages import finetune_scales
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.training import (
    ADAM_PASSES,
    Training,
    TrainingSettings,
    check_texts,
    state_bytes,
)
from shrinkc.importer.embedding_sidecar import EMBEDDING_FILES, write_embedding
from shrinkc.importer.model import QuantizedWeight, dense
from shrinkc.model import EMBEDDING, HEAD


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Settings of quantisation-aware training."""

    learning_rate: Annotated[float, Between(1e-8, 0.5)] = 1e-3
    """Highest learning rate of the scales, as a fraction of each scale."""
    weight_rate: Share = 3e-3
    """Highest learning rate of the weights, in quantisation steps.  At 2 bits, or with few steps, 0.01 is
    worth a try; at 4 bits in groups, take about ``learning_rate``."""
    embeddings: bool = True
    """Train embedding and LM head too, if they are quantised."""
    train_norms: bool = True
    """Train RMSNorm weights too.  Their learning rate is a fraction of each weight."""
    distill: Share = 1.0
    """Weight of the KL divergence from the uncompressed model; the rest of the loss is on the
    text."""


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work: training, and for each batch AdamW's passes over the latents."""
    integers = finetune_scales.integers_and_scales(facts, embeddings=settings.embeddings)[0]
    passes = ROUNDING_PASSES + ADAM_PASSES * settings.micro_batch // settings.batch
    return finetune_scales.work_of_training(settings, "qat", integers, passes, calibration)


def kept(settings: Settings, facts: ModelFacts) -> int:
    return state_bytes(
        sum(finetune_scales.integers_and_scales(facts, embeddings=settings.embeddings))
    )


def run(settings: Settings, step: StepContext) -> StepReport:
    """Train, and write the checkpoint with its new integers, scales and RMSNorm weights."""
    import torch

    before = finetune_scales.quantised_matrices(step, settings.embeddings)
    embeddings = {name: before[name] for name in EMBEDDING_FILES if name in before}
    weights = {name: weight for name, weight in before.items() if name not in embeddings}
    floats = _float_matrices(step)

    def prepare(model: Any) -> None:
        for name, weight in weights.items():
            bias = model.get_submodule(name).bias
            layer = rounded(weight, floats.pop(name, None), settings.dtype, step.device, bias=bias)
            model.set_submodule(name, layer)
        family = family_of_torch(model)
        factor = model.config.hidden_size**0.5 if family.embedding_scaled else 1.0
        for name, weight in embeddings.items():
            given = floats.pop(name, None)
            matrix = rounded_embedding(weight, given, settings.dtype, step.device, factor)
            model.set_submodule(name, matrix)
            if name == EMBEDDING and HEAD not in embeddings and model.config.tie_word_embeddings:
                model.lm_head = matrix
        floats.clear()
        if settings.train_norms:
            train_norms(model, family)

    teacher = step.teacher or step.unquantized
    rates = {"latent": settings.weight_rate / settings.learning_rate}
    facts, trained = Training(settings, step, "qat", prepare, teacher, rates).train()
    integers = {}
    for name in [name for name in trained if name.endswith(".latent")]:
        module = name.removesuffix(".latent")
        integers[module] = nearest(trained.pop(name), before[module].bits).numpy().astype(np.uint8)
    moved = sum(int(np.count_nonzero(q != before[name].q)) for name, q in integers.items())
    facts["integers_changed"] = round(moved / sum(q.size for q in integers.values()), 6)
    new = {
        name: changed_embedding(matrix, integers[name], trained.pop(f"{name}.change"))
        for name, matrix in embeddings.items()
    }
    if not is_packed(step.source):  # written before steps were packed: with a float copy
        for name, matrix in new.items():
            trained[f"{name}.weight"] = torch.from_numpy(matrix.dequantized())
    finetune_scales.write_checkpoint(step, trained, {n: (weights[n], integers[n]) for n in weights})
    for name, matrix in new.items():
        write_embedding(step.out / EMBEDDING_FILES[name], matrix)
    finetune_scales.check_checkpoint(step, "qat", integers)
    return StepReport(facts)


def changed_embedding(matrix: QuantizedWeight, q: np.ndarray, change: Any) -> QuantizedWeight:
    """Return ``matrix`` with integers ``q`` and scales times 1 + ``change`` [vocab, groups], in the file's types."""
    scale = matrix.scale * (1 + change.numpy()).clip(min=FACTOR_MIN)
    least, most = np.finfo(np.float16).tiny, np.finfo(np.float16).max
    scale = scale.clip(min(least, matrix.scale.min()), most).astype(np.float16).astype(np.float32)
    # from the stored scale: keeps a symmetric matrix symmetric, and zero points unchanged
    zero = matrix.zero_points
    if zero is None:
        offset = (matrix.offset / matrix.scale * scale).astype(np.float16).astype(np.float32)
    else:
        offset = -zero * scale
    return replace(matrix, q=q, scale=scale, offset=offset)


def _float_matrices(step: StepContext) -> dict[str, np.ndarray]:
    """Return the float weights from before quantisation, by module; {} if they are not known."""
    from shrinkc.importer import load_model
    from shrinkc.model import FIELDS, module_name

    if step.unquantized is None or step.unquantized == step.source:
        return {}
    model = load_model(step.unquantized)
    embeddings = {EMBEDDING: model.embedding, HEAD: model.head}
    return {name: dense(matrix) for name, matrix in embeddings.items() if matrix is not None} | {
        module_name(index, module): dense(getattr(layer, field))
        for index, layer in enumerate(model.layers)
        for module, field in FIELDS.items()
    }


QAT = StageKind(
    name="qat",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=36,
    on_quantised=True,
    child_seconds=7.0,
    preflight=partial(finetune_scales.quantised_problems, stage="qat"),
    check_data=partial(check_texts, kind="qat"),
    kept=kept,
)
