"""Stage ``finetune_scales``: trains the scales of a quantised model; no integer changes.

The scales of all groups and the RMSNorm weights are trained on text (Kim et al. 2023, "PEQA"; Chen et al. 2024,
"EfficientQAT", second phase).  The model keeps its size and needs no low-rank adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np

from shrinkc.checkpoints import family_of_torch, link_files, load, weights_file
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import train_norms
from shrinkc.compression.rounding import FACTOR_MIN, ROUNDING_PASSES, rounded
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.gptq import GROUP_MIN, GROUPS, run_worker
from shrinkc.compression.training import (
    StepSettings,
    Training,
    TrainingSettings,
    check_texts,
    samples_to_train,
    state_bytes,
)
from shrinkc.core.errors import StageFailed, UnsupportedModel
from shrinkc.importer.embedding_sidecar import EMBEDDING_FILES
from shrinkc.importer.gptq import find_adapter, read_gptq
from shrinkc.importer.model import QuantizedWeight
from shrinkc.importer.packed_words import pack
from shrinkc.model import matrix_shapes


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Settings of scale fine-tuning."""

    learning_rate: Annotated[float, Between(1e-8, 0.5)] = 1e-3
    """Highest learning rate of the scales, as a fraction of each scale."""
    train_norms: bool = True
    """Train RMSNorm weights too.  Their learning rate is a fraction of each weight."""


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    integers = integers_and_scales(facts, embeddings=False)[0]
    return work_of_training(settings, "finetune_scales", integers, ROUNDING_PASSES, calibration)


def kept(settings: Settings, facts: ModelFacts) -> int:
    return state_bytes(integers_and_scales(facts, embeddings=False)[1])


def integers_and_scales(facts: ModelFacts, *, embeddings: bool) -> tuple[int, int]:
    """Return the number of integers of a quantised model (with ``embeddings``, embedding and LM head included), and the
    number of scales with the smallest group size."""
    shapes = matrix_shapes(facts.config)
    integers = sum(
        math.prod(shapes[n]) for n in facts.bits if embeddings or n not in EMBEDDING_FILES
    )
    return integers, integers // min(GROUP_MIN, *(g for g in GROUPS if g > 0))


def run(settings: Settings, step: StepContext) -> StepReport:
    """Train, and write the checkpoint with its new scales and RMSNorm weights."""
    weights = quantised_matrices(step)

    def prepare(model: Any) -> None:
        for name, weight in weights.items():
            bias = model.get_submodule(name).bias
            layer = rounded(weight, None, settings.dtype, step.device, integers=False, bias=bias)
            model.set_submodule(name, layer)
        if settings.train_norms:
            train_norms(model, family_of_torch(model))

    teacher = step.teacher or step.unquantized
    facts, trained = Training(settings, step, "finetune_scales", prepare, teacher).train()
    write_checkpoint(step, trained)
    check_checkpoint(step, "finetune_scales", {name: weight.q for name, weight in weights.items()})
    return StepReport(facts)


def quantised_problems(settings: StepSettings, facts: ModelFacts, stage: str) -> list[str]:
    """Return problems: a model that is not quantised, windows longer than the model's context."""
    problems = settings.length_problems(facts)
    if not facts.quantized:
        problems.append(f"{stage} needs a quantised model; put a stage gptq before it")
    return problems


def work_of_training(
    settings: TrainingSettings, stage: str, numbers: int, passes: int, calibration: Calibration
) -> Work:
    """Return the work: tokens through the model for forward, backward with weight gradients, and the teacher.

    Each micro-batch adds ``passes`` over ``numbers``: weights are computed from integers, and the gradients of both."""
    samples = samples_to_train(settings, stage, calibration)
    tokens = samples * settings.length * (4.0 if settings.distill else 3.0)
    return Work(tokens, numbers * passes * samples / settings.micro_batch)


def quantised_matrices(step: StepContext, embeddings: bool = False) -> dict[str, QuantizedWeight]:
    """Return the quantised matrices of the layers by module; with ``embeddings``, embedding and LM head too if they are
    quantised.  Raises UnsupportedModel if the model has a low-rank adapter."""
    if find_adapter(step.source) is not None:
        raise UnsupportedModel(
            f"{step.source} has a low-rank adapter, which fits the present scales only.",
            "put the stage eora after reconstruct, finetune_scales and qat.",
        )
    found = read_gptq(step.source)
    return {
        name: weight
        for name, weight in found.items()
        if name.startswith("model.layers.")
        or (
            embeddings
            and name in EMBEDDING_FILES
            and (step.source / EMBEDDING_FILES[name]).is_file()
        )
    }


def write_checkpoint(
    step: StepContext,
    trained: dict[str, Any],
    integers: Mapping[str, tuple[QuantizedWeight, np.ndarray]] = MappingProxyType({}),
) -> None:
    """Write the files of the source with the trained scales and RMSNorm weights in their stored types.

    ``integers``: module -> the old matrix and its new integers, in the same stored order.
    """
    import torch
    from safetensors.torch import load_file, save_file

    link_files(step.source, step.out)
    tensors = load_file(weights_file(step.source))
    for name, value in trained.items():
        module, _, kind = name.rpartition(".")
        if kind == "change":  # [out, groups], stored [groups, out]
            old = tensors[f"{module}.scales"]
            new = old.float() * (1 + value.T).clamp_min(FACTOR_MIN)
            tensors[f"{module}.scales"] = new.to(old.dtype).contiguous()
        else:
            tensors[name] = value.to(tensors[name].dtype)
    for module, (weight, q) in integers.items():
        if weight.order is not None:  # the file has them in the model's order
            q = q[:, np.argsort(weight.order)]
        words = torch.from_numpy(pack(q, weight.bits).view(np.int32).T.copy())
        assert words.shape == tensors[f"{module}.qweight"].shape
        tensors[f"{module}.qweight"] = words
    file = weights_file(step.out)
    mode = file.stat().st_mode
    file.unlink()  # a hard link: the source's file must not change
    save_file(tensors, file, {"format": "pt"})
    file.chmod(mode)


def check_checkpoint(step: StepContext, kind: str, integers: Mapping[str, np.ndarray]) -> None:
    """Raise StageFailed unless the directory loads and has these integers."""
    after = read_gptq(step.out)
    wrong = [name for name, q in integers.items() if not np.array_equal(q, after[name].q)]
    if wrong:
        raise StageFailed(
            f"{kind}: the integers of {wrong[0]} differ from those that were written."
        )
    run_worker(step, "check", f"{kind}: loading", {})
    load(step.out)


FINETUNE_SCALES = StageKind(
    name="finetune_scales",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=16,
    on_quantised=True,
    child_seconds=7.0,
    preflight=partial(quantised_problems, stage="finetune_scales"),
    check_data=partial(check_texts, kind="finetune_scales"),
    kept=kept,
)
