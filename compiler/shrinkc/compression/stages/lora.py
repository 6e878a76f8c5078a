"""Stage ``lora``: recovery by training low-rank adapters with PEFT, which are then merged into the weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from shrinkc.checkpoints import family_of_torch, load, need, save, stored_dtype, torch_dtype
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, NotEmpty, OneOf
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import train_norms
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.gptq import module_shapes
from shrinkc.compression.training import (
    Training,
    TrainingSettings,
    check_texts,
    samples_to_train,
    state_bytes,
)
from shrinkc.core.errors import StageFailed
from shrinkc.model import NAMES, SLOT_MODULES, norm_shapes

MODULES = tuple(NAMES)
ALL = "all"
Target = Annotated[str, OneOf(*MODULES, ALL)]
_GPTQMODEL_CHECK = "is_gptqmodel_available"


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Adapters, and how they are trained."""

    rank: Annotated[int, Between(1, 4096)] = 8
    """Rank of each adapter."""
    alpha: Annotated[float, Between(1e-6)] = 16.0
    """The adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Between(0, 0.9)] = 0.1
    """Dropout of the training."""
    targets: Annotated[tuple[Target, ...], NotEmpty()] = (*SLOT_MODULES["qkv"], *SLOT_MODULES["o"])
    """Modules that get an adapter, such as ``"gate_proj"``, or ``"all"`` for all seven."""

    @property
    def modules(self) -> list[str]:
        return [m for m in MODULES if ALL in self.targets or m in self.targets]


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return problems: windows longer than the model's context, a rank larger than a matrix."""
    c, problems = facts.config, settings.length_problems(facts)
    narrowest = min(c.hidden_size, c.num_kv_heads * c.head_dim)
    if settings.rank > narrowest:
        problems.append(
            f"rank = {settings.rank}: the narrowest matrix has {narrowest} rows or columns"
        )
    return problems


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work in tokens through the model: forward, backward without weight gradients, and the teacher.

    The adapters' share of the time is their share of the parameters.
    """
    samples = samples_to_train(settings, "lora", calibration)
    passes = 2.0 * (1 + adapters(settings, facts) / facts.parameters)
    return Work(samples * settings.length * (passes + (1.0 if settings.distill else 0)))


def adapters(settings: Settings, facts: ModelFacts) -> int:
    shapes = module_shapes(facts.config).items()
    sides = sum(n + k for name, (n, k) in shapes if name.rpartition(".")[2] in settings.modules)
    return settings.rank * sides


def kept(settings: Settings, facts: ModelFacts) -> int:
    norm_weights = (
        sum(n for (n,) in norm_shapes(facts.config).values()) if settings.train_norms else 0
    )
    return state_bytes(adapters(settings, facts) + norm_weights)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Train and merge; ``parameters`` of the report has the loss curve in nats per token."""
    need("peft")
    training = start(settings, step)
    facts, trained = training.train()
    save(_merge(settings, step, trained), training.tokenizer, step.out)
    return StepReport(facts)


def start(settings: Settings, step: StepContext) -> Training:
    """Prepare the training of the adapters."""

    def prepare(model: Any) -> None:
        _add_adapters(settings, model)
        if settings.train_norms:
            train_norms(model, family_of_torch(model))

    return Training(settings, step, "lora", prepare, step.teacher)


def _add_adapters(settings: Settings, model: Any) -> Any:
    """Insert PEFT's adapters, float32, into ``model``, and return PEFT's wrapper around it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with _without_gptqmodel():
        return get_peft_model(model, config)


@contextmanager
def _without_gptqmodel() -> Iterator[None]:
    """Keep PEFT from looking for GPTQModel's layers within the context: the import takes 15 s and prints a banner on
    stdout."""
    importlib.import_module("peft")
    asking = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("peft.") and hasattr(module, _GPTQMODEL_CHECK)
    ]
    before = [getattr(module, _GPTQMODEL_CHECK) for module in asking]
    for module in asking:
        setattr(module, _GPTQMODEL_CHECK, lambda: False)
    try:
        yield
    finally:
        for module, function in zip(asking, before, strict=True):
            setattr(module, _GPTQMODEL_CHECK, function)


def _merge(settings: Settings, step: StepContext, trained: dict[str, Any]) -> Any:
    """Return the source model plus scale · B · A, computed in float32 and converted to its stored dtype."""
    model = load(step.source, dtype="float32").model
    wrapped = _add_adapters(settings, model)
    missing = set(trained) - set(model.state_dict())
    if missing:
        raise StageFailed(f"lora: {len(missing)} trained tensors have no place in the model.")
    model.load_state_dict(trained, strict=False)
    with _without_gptqmodel():
        merged = wrapped.merge_and_unload()
    return merged.to(torch_dtype(stored_dtype(step.source)))


LORA = StageKind(
    name="lora",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=12,
    preflight=preflight,
    check_data=partial(check_texts, kind="lora"),
    kept=kept,
)
