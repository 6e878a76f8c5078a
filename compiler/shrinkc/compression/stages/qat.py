"""Stage ``qat``: training through the rounding: integers, scales and norm gains of a quantised model.

Each weight has a latent value in steps of its grid, whose nearest integer the forward pass takes; the
gradient goes through the rounding as if it was none, where the latent lies within the grid (the
straight-through estimator, Bengio et al. 2013).  Scales learn as in Esser et al. 2020 ("LSQ"), the loss is
the divergence to MODEL (Liu et al. 2023, "LLM-QAT").  Zero points, groups and the order of inputs
stay, so what comes out is stored and compiled as what went in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import between
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.stages import scales
from shrinkc.compression.stages.context import StepContext, StepReport
from shrinkc.compression.training import (
    Training,
    TrainingSettings,
    check_texts,
    text_hashes,
    train_norms,
)
from shrinkc.importer.model import QuantizedWeight, dense

# How far from its integer a latent begins at most: the model begins as it was quantised, whatever the
# rounding of its neighbours was made up for in a weight.
BEGIN_MAX = 0.45


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """As :class:`~shrinkc.compression.training.TrainingSettings`; ``learning_rate`` is relative to a
    scale, ``weight_rate`` that of the weights in steps of their grid.  The teacher of ``distill`` is the
    uncompressed model.
    """

    learning_rate: float = 1e-3
    weight_rate: float = 3e-3
    train_norms: bool = True
    distill: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        between("learning_rate", self.learning_rate, 1e-8, 0.5)
        between("weight_rate", self.weight_rate, 0, 1)


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    return scales.quantised_problems(settings, facts, "qat")


def inputs(settings: Settings) -> dict[str, str]:
    """Hashes of the texts.  Raises BadData when one cannot be read."""
    return text_hashes(settings, "qat")


def check_data(settings: Settings, calibration: Calibration, tokenizer: Any) -> list[str]:
    """Notes on the text; BadData when it is too short or repeats itself."""
    return check_texts(settings, "qat", calibration, tokenizer)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> float:
    return scales.tokens_of_training(settings, "qat", calibration)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Trains, and writes the checkpoint with its new integers, scales and gains."""
    import torch

    torch.manual_seed(step.seed)
    weights = scales.quantised_matrices(step)
    floats = _float_matrices(step)

    def prepare(model: Any) -> None:
        for name, weight in weights.items():
            parent, _, child = name.rpartition(".")
            layer = rounded(weight, floats.pop(name, None), settings.dtype, step.device)
            setattr(model.get_submodule(parent), child, layer)
        if settings.train_norms:
            train_norms(model)

    training = Training(
        settings, step, "qat", prepare, step.teacher or step.unquantized, _rate(settings)
    )
    facts = training.train()
    trained = training.trained_tensors()
    del training
    integers = {}
    for name in [name for name in trained if name.endswith(".latent")]:
        module = name.removesuffix(".latent")
        integers[module] = (
            _integers(trained.pop(name), weights[module].bits).numpy().astype(np.uint8)
        )
    moved = sum(int(np.count_nonzero(q != weights[name].q)) for name, q in integers.items())
    facts["integers_changed"] = round(moved / sum(q.size for q in integers.values()), 6)
    scales.write_checkpoint(step, trained, {n: (weights[n], q) for n, q in integers.items()})
    scales.check_checkpoint(step, "qat", integers)
    return StepReport(facts)


def _rate(settings: Settings) -> Any:
    """name -> how many times as fast as the scales a tensor learns."""

    def share(name: str) -> float:
        return settings.weight_rate / settings.learning_rate if name.endswith(".latent") else 1.0

    return share


def _float_matrices(step: StepContext) -> dict[str, np.ndarray]:
    """The float weights that were quantised, by module; {} when they are not known."""
    from shrinkc.importer import load_model
    from shrinkc.model import FIELDS, module_name

    if step.unquantized is None or step.unquantized == step.source:
        return {}
    model = load_model(step.unquantized)
    return {
        module_name(index, module): dense(getattr(layer, field))
        for index, layer in enumerate(model.layers)
        for module, field in FIELDS.items()
    }


def _integers(latent: Any, bits: int) -> Any:
    return latent.round().clamp_(0, 2**bits - 1)


def rounded(weight: QuantizedWeight, floats: np.ndarray | None, dtype: str, device: str) -> Any:
    """A linear layer [out, in] whose integers and scales are trained; at first it is ``weight``.

    ``floats`` [out, in], what it was quantised from, says on which side of its integer a latent begins.
    """
    import torch

    from shrinkc.checkpoints import torch_dtype

    top, group, inputs = 2**weight.bits - 1, weight.group, weight.q.shape[1]
    compute = torch_dtype(dtype)

    def spread(per_group: Any) -> Any:
        return per_group.repeat_interleave(group, 1)[:, :inputs]

    scale = torch.from_numpy(weight.scale).to(device)
    zero = torch.from_numpy(-weight.offset / weight.scale).round().to(device)
    begin = torch.from_numpy(weight.q).float().to(device)
    order = None
    if weight.order is not None:
        order = torch.from_numpy(weight.order.astype("int64")).to(device)
    if floats is not None:
        given = torch.from_numpy(np.ascontiguousarray(floats)).float().to(device)
        given = given if order is None else given[:, order]
        begin += (given / spread(scale) + spread(zero) - begin).clamp_(-BEGIN_MAX, BEGIN_MAX)

    def codes(latent: Any) -> Any:
        return _integers(latent.detach(), weight.bits).sub_(spread(zero))

    def factor(change: Any) -> Any:
        return (1 + change).clamp_min(scales.FACTOR_MIN)

    class Product(torch.autograd.Function):  # type: ignore[misc]
        """x · Wᵀ.  W is made again on the way back: kept, it would be as large as the model."""

        @staticmethod
        def forward(ctx: Any, x: Any, latent: Any, change: Any) -> Any:
            ctx.save_for_backward(x, latent, change)
            return x @ (codes(latent) * spread(scale * factor(change))).to(compute).T

        @staticmethod
        def backward(ctx: Any, slope: Any) -> Any:
            x, latent, change = ctx.saved_tensors
            wide, whole = spread(scale * factor(change)), codes(latent)
            to_x = slope @ (whole * wide).to(compute)
            to_w = (slope.flatten(0, -2).T @ x.flatten(0, -2)).float()
            padded = torch.nn.functional.pad(whole.mul_(to_w), (0, -inputs % group))
            to_change = padded.view(len(padded), -1, group).sum(2) * scale
            to_change *= (change > scales.FACTOR_MIN - 1).float()
            inside = (latent >= 0).logical_and_(
                latent <= top
            )  # beyond it the integer cannot change
            return to_x, to_w.mul_(wide).mul_(inside), to_change

    class Rounded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.latent = torch.nn.Parameter(begin)
            self.change = torch.nn.Parameter(torch.zeros_like(scale))

        def forward(self, x: Any) -> Any:
            x = x.to(compute)
            # the columns lie in stored order
            return Product.apply(x if order is None else x[..., order], self.latent, self.change)

    return Rounded()
