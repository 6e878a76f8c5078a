"""Stage ``eora``: adds low-rank adapters that correct the quantisation error (EoRA, Liu et al. 2024).

GPTQModel computes the adapter from the float model and its quantised form.  It is stored beside the packed weights,
which do not change; peft finds it there for ``from_pretrained``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from shrinkc.checkpoints import link_files
from shrinkc.compression.checks import Between, Checked
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.gptq import module_shapes, run_worker, saved_windows
from shrinkc.core.errors import BadData, UnsupportedModel
from shrinkc.importer.gptq_config import is_quantized

if TYPE_CHECKING:
    from shrinkc.compression.calibration import Calibration
    from shrinkc.compression.facts import ModelFacts


@dataclass(frozen=True)
class Settings(Checked):
    """The adapters."""

    rank: Annotated[int, Between(1, 1024)] = 32
    """Rank of each adapter."""
    samples: Annotated[int, Between(2)] | None = None
    """Calibration windows to use.  Default: all."""


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return problems: a model that is not quantised, a rank that saves nothing."""
    if not facts.quantized:
        return ["eora needs a quantised model; put a stage gptq before it"]
    smallest = min(min(shape) for shape in module_shapes(facts.config).values())
    if settings.rank >= smallest:
        return [f"rank = {settings.rank}; less than the smallest side of a matrix, {smallest}"]
    return []


def check_data(settings: Settings, calibration: Calibration, tokenizer: Any) -> Iterator[str]:
    """Raise BadData if there are fewer windows than ``samples``."""
    if settings.samples is not None and settings.samples > calibration.samples:
        raise BadData(
            f"eora.samples = {settings.samples}, but calibration.samples = {calibration.samples}.",
            "raise calibration.samples, or leave eora.samples out.",
        )
    return iter(())


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """Return the facts with the adapters' 16-bit numbers."""
    numbers = sum(settings.rank * (n + k) for n, k in module_shapes(facts.config).values())
    return replace(
        facts,
        parameters=facts.parameters + numbers,
        non_zeros=facts.non_zeros + numbers,
        packed_bytes=facts.packed_bytes + 2 * numbers,
    )


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work in tokens: about 1.75 times the time of GPTQ on the same windows (SmolLM2, 32 short texts)."""
    return Work(7.0 * (settings.samples or calibration.samples) * calibration.length)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Fill ``step.out`` with the files of ``step.source`` and the adapter."""
    if step.unquantized is None or is_quantized(step.unquantized):
        raise UnsupportedModel(
            f"eora needs the float model that {step.source} was quantised from.",
            "begin the recipe with the float model and a stage gptq.",
        )
    windows, calibration = saved_windows(step, settings.samples)
    link_files(step.source, step.out)
    request = {
        "float": str(step.unquantized),
        "calibration": calibration,
        "rank": settings.rank,
    }
    log = run_worker(step, "eora", "eora", request)
    return StepReport({"rank": settings.rank, "calibration": windows, "log": log})


EORA = StageKind(
    name="eora",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=16,
    predict=predict,
    on_quantised=True,
    needs_floats=True,
    adds_adapters=True,
    preflight=preflight,
    check_data=check_data,
    child_seconds=14.0,
)
