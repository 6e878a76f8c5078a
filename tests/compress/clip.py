"""Stage ``clip``: limits outlier weights, so that they do not widen the range of a quantisation group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from shrinkc.checkpoints import load, save, stored_dtype
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Checked
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.model import NAMES


@dataclass(frozen=True)
class Settings(Checked):
    """``limit``: largest magnitude of a weight, in standard deviations of its matrix.  ``layers``: how many, from 0."""

    limit: Annotated[float, Between(1)] = 4.0
    layers: Annotated[int, Between(1)] = 1

    needs_calibration = False


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return the problem that there are fewer layers, if so."""
    layers = facts.config.num_layers
    return [f"layers = {settings.layers} of {layers}"] if settings.layers > layers else []


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work: the weights are read four times, and no text."""
    return Work(numbers=4.0 * facts.parameters)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Limit the weights; ``parameters`` of the report has the number of limited weights."""
    import torch

    loaded, beyond = load(step.source, dtype=stored_dtype(step.source)), 0
    with torch.no_grad():
        for layer in loaded.model.model.layers[: settings.layers]:
            for name in NAMES.values():
                weight = layer.get_submodule(name).weight
                limit = settings.limit * float(weight.float().std())
                beyond += int((weight.abs() > limit).sum())
                weight.clamp_(-limit, limit)
    save(loaded.model, loaded.tokenizer, step.out)
    return StepReport({"beyond": beyond})


CLIP = StageKind(
    name="clip", settings=Settings, run=run, work=work, parameter_bytes=9, preflight=preflight
)
