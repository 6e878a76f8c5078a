"""Stage ``scales``: recovery of a quantised model by training its scales; no integer changes.

The scales of all groups, and the norm gains, are trained on text, as Kim et al. 2023 ("PEQA") and
Chen et al. 2024 ("EfficientQAT", its second phase) do.  The result has the bytes it had before, and
needs no side path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from shrinkc.checkpoints import load
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import between
from shrinkc.compression.child import run_child
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import train_norms
from shrinkc.compression.rounding import FACTOR_MIN
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.eora import link_files
from shrinkc.compression.stages.gptq import GROUP_MIN, GROUPS, WORKER
from shrinkc.compression.training import (
    StepSettings,
    Training,
    TrainingSettings,
    check_texts,
    samples_to_train,
    state_bytes,
)
from shrinkc.core.errors import StageFailed, UnsupportedModel
from shrinkc.importer.embedding_sidecar import TABLE_FILES
from shrinkc.importer.gptq import find_adapter, read_gptq
from shrinkc.importer.model import QuantizedWeight
from shrinkc.importer.packed_words import pack
from shrinkc.model import matrix_shapes

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """As :class:`~shrinkc.compression.training.TrainingSettings`; ``learning_rate`` is relative to a
    scale.  The teacher of ``distill`` is the uncompressed model.
    """

    learning_rate: float = 1e-3
    train_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        between("learning_rate", self.learning_rate, 1e-8, 0.5)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    return work_of_training(
        settings, "scales", integers_and_scales(facts, tables=False)[0], 8, calibration
    )


def kept(settings: Settings, facts: ModelFacts) -> int:
    return state_bytes(integers_and_scales(facts, tables=False)[1])


def integers_and_scales(facts: ModelFacts, *, tables: bool) -> tuple[int, int]:
    """How many integers a quantised model has, those of embedding and head with ``tables``, and how many scales at
    the most: in the smallest groups that there are."""
    shapes = matrix_shapes(facts.config)
    integers = sum(math.prod(shapes[n]) for n in facts.bits if tables or n not in TABLE_FILES)
    return integers, integers // min(GROUP_MIN, *(g for g in GROUPS if g > 0))


def run(settings: Settings, step: StepContext) -> StepReport:
    """Trains, and writes the checkpoint with its new scales and gains."""
    import torch

    torch.manual_seed(step.seed)
    weights = quantised_matrices(step)

    def prepare(model: Any) -> None:
        for name, weight in weights.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _scaled(weight, settings, step.device))
        if settings.train_norms:
            train_norms(model)

    training = Training(settings, step, "scales", prepare, step.teacher or step.unquantized)
    facts = training.train()
    trained = training.trained_tensors()
    del training
    write_checkpoint(step, trained)
    check_checkpoint(step, "scales", {name: weight.q for name, weight in weights.items()})
    return StepReport(facts)


def quantised_problems(settings: StepSettings, facts: ModelFacts, stage: str) -> list[str]:
    """No quantised model; windows that are longer than the model's context."""
    problems = settings.length_problems(facts)
    if not facts.quantized:
        problems.append(f"{stage} needs a quantised model; put a stage gptq before it")
    return problems


def work_of_training(
    settings: TrainingSettings, stage: str, numbers: int, passes: int, calibration: Calibration
) -> Work:
    """Tokens through the model: forward, backward with weight gradients, and the teacher.  Of each micro-batch
    ``passes`` over ``numbers``: weights are made of their integers, and gradients of them."""
    samples = samples_to_train(settings, stage, calibration)
    tokens = samples * settings.length * (4.0 if settings.distill else 3.0)
    return Work(tokens, numbers * passes * samples / settings.micro_batch)


def quantised_matrices(step: StepContext, tables: bool = False) -> dict[str, QuantizedWeight]:
    """Those of the layers, by module, and with ``tables`` embedding and head where they are stored as such.
    UnsupportedModel where a side path goes with them."""
    if find_adapter(step.source) is not None:
        raise UnsupportedModel(
            f"{step.source} has an adapter, which was made for the scales as they are.",
            "put the stage eora after reconstruct, scales and qat.",
        )
    found = read_gptq(step.source)
    return {
        name: weight
        for name, weight in found.items()
        if name.startswith("model.layers.")
        or (tables and name in TABLE_FILES and (step.source / TABLE_FILES[name]).is_file())
    }


def _scaled(weight: QuantizedWeight, settings: Settings, device: str) -> Any:
    """A linear layer [out, in] whose weight is integers times scales that can be trained."""
    import torch

    from shrinkc.checkpoints import torch_dtype

    class Scaled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            zero = torch.from_numpy(-weight.offset / weight.scale).round()
            codes = torch.from_numpy(weight.q).float()
            spread = zero.repeat_interleave(weight.group, 1)[:, : codes.shape[1]]
            # exact in bfloat16: integers of at most 8 bits
            self.codes = (codes - spread).to(device, torch_dtype(settings.dtype))
            self.scale = torch.from_numpy(weight.scale).to(device)
            self.back = None
            if weight.order is not None:
                order = torch.from_numpy(weight.order.astype("int64"))
                self.back = torch.argsort(order).to(device)
            self.change = torch.nn.Parameter(torch.zeros_like(self.scale))

        def forward(self, x: Any) -> Any:
            scale = self.scale * (1 + self.change).clamp_min(FACTOR_MIN)
            wide = scale.to(self.codes.dtype).repeat_interleave(weight.group, 1)
            matrix = self.codes * wide[:, : self.codes.shape[1]]
            if self.back is not None:
                matrix = matrix[:, self.back]
            return torch.nn.functional.linear(x.to(matrix.dtype), matrix)

    return Scaled()


def write_checkpoint(
    step: StepContext,
    trained: dict[str, Any],
    integers: Mapping[str, tuple[QuantizedWeight, np.ndarray]] = MappingProxyType({}),
) -> None:
    """The files of the source with the trained scales and gains in their stored types.

    ``integers``: module -> the matrix as it was, and its new integers, in the same stored order.
    """
    import torch
    from safetensors.torch import load_file, save_file

    link_files(step.source, step.out)
    tensors = load_file(step.source / WEIGHTS)
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
    file = step.out / WEIGHTS
    mode = file.stat().st_mode
    file.unlink()  # a hard link: the source's own must stay as it is
    save_file(tensors, file, {"format": "pt"})
    file.chmod(mode)


def check_checkpoint(step: StepContext, kind: str, integers: Mapping[str, np.ndarray]) -> None:
    """StageFailed unless the directory loads, and has these integers."""
    after = read_gptq(step.out)
    wrong = [name for name, q in integers.items() if not np.array_equal(q, after[name].q)]
    if wrong:
        raise StageFailed(f"{kind}: the integers of {wrong[0]} are not what was written.")
    request = {
        "task": "check", "out": str(step.out), "seed": step.seed, "threads": step.threads,
    }  # fmt: skip
    with step.reporter.stage(f"{kind}: loading") as update:
        log = step.log_dir / f"{kind}.log"
        run_child(WORKER, request, log=log, threads=step.threads, update=update)
    load(step.out)


SCALES = StageKind(
    name="scales",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=16,
    on_quantised=True,
    child_seconds=7.0,
    preflight=partial(quantised_problems, stage="scales"),
    check_data=partial(check_texts, kind="scales"),
    kept=kept,
)
