"""Stage ``reconstruct``: block-wise reconstruction (Li et al. 2021, "BRECQ"; Chen et al. 2024, "EfficientQAT").

One block after the other is trained to reproduce the residual stream of the float model: integers, scales and RMSNorm
weights, with :func:`~shrinkc.compression.rounding.rounded` as in ``qat``.  Its input comes from the blocks before it,
already trained, so that a block also corrects their errors.  Every channel of every token is a target, where ``qat``
has one distribution per token; that is why few steps suffice for the integers.  Zero points, groups and the order of
inputs stay; embedding and LM head are not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from shrinkc.checkpoints import family_of_torch
from shrinkc.compression.blocks import (
    Positions,
    batches,
    block,
    embed,
    norm_weight,
    positions,
    restore_block,
    save_block,
)
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Share
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import norm_weights, train_norms
from shrinkc.compression.rounding import ROUNDING_PASSES, nearest, rounded
from shrinkc.compression.stages import finetune_scales, rotate
from shrinkc.compression.stages.context import Stage, StageKind, StepContext, StepReport, Work
from shrinkc.compression.training import (
    ADAM_PASSES,
    STATE_BYTES,
    StepSettings,
    autocast,
    check_texts,
    load_to_train,
    restore_state,
    save_state,
    windows_of,
)
from shrinkc.core.errors import TrainingDiverged
from shrinkc.core.interruption import deferred
from shrinkc.core.memory import freed_memory_kept
from shrinkc.importer.model import QuantizedWeight
from shrinkc.model import Family

KIND = "reconstruct"
TINY = 1e-30  # of a mean square
_MEASURED = 32  # windows on which a block's error is measured


@dataclass(frozen=True, kw_only=True)
class Settings(StepSettings):
    """Settings of block-wise reconstruction."""

    samples: Annotated[int, Between(1)] = 256
    """Windows to train on.  Each layer is trained on all of them once."""
    batch: Annotated[int, Between(1)] = 4
    """Windows in one optimiser step."""
    learning_rate: Annotated[float, Between(1e-8, 0.5)] = 1e-3
    """Highest learning rate of scales and RMSNorm weights, as a fraction of each value."""
    weight_rate: Share = 1e-2
    """Highest learning rate of the weights, in quantisation steps."""


def advice(stage: Stage, before: Sequence[Stage], after: Sequence[Stage]) -> Iterator[str]:
    """Yield a note if a rotation before it includes outlier channels."""
    rotated = (
        s for s in before if isinstance(s.settings, rotate.Settings) and not s.settings.keep_above
    )
    first = next(rotated, None)
    if first is not None:
        yield (
            f"[{stage.name}] made SmolLM2 worse after a rotation of all channels: give "
            f"[{first.name}] keep_above = 5, or leave [{stage.name}] out"
        )


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work: forward and backward passes with weight gradients, and the streams of both models, without LM
    head; and AdamW's passes over the latents for every batch."""
    integers = finetune_scales.integers_and_scales(facts, embeddings=False)[0]
    numbers = integers * (ROUNDING_PASSES + ADAM_PASSES) * settings.samples / settings.batch
    return Work(5.0 * settings.samples * settings.length, numbers)


def memory(settings: Settings, facts: ModelFacts, calibration: Calibration) -> int:
    """Return the bytes of the residual streams of both models."""
    size = 4 if settings.dtype == "float32" else 2
    return 2 * size * settings.samples * settings.length * facts.config.hidden_size


def kept(settings: Settings, facts: ModelFacts) -> int:
    """Return the bytes of finished blocks (a byte per integer, float32 scales) and of the current block's state."""
    integers, groups = finetune_scales.integers_and_scales(facts, embeddings=False)
    return integers + 4 * groups + STATE_BYTES * (integers + groups) // facts.config.num_layers


def run(settings: Settings, step: StepContext) -> StepReport:
    """Train block after block, save each in ``scratch``, and write the checkpoint.  On an interrupt, the current
    step is finished and its state saved."""
    weights = finetune_scales.quantised_matrices(step)
    with freed_memory_kept():
        found = _all_blocks(settings, step, weights)
    moved = sum(int(np.count_nonzero(q != weights[name].q)) for name, q in found.integers.items())
    share = moved / sum(q.size for q in found.integers.values())
    integers = {name: (weights[name], q) for name, q in found.integers.items()}
    finetune_scales.write_checkpoint(step, found.trained, integers)
    finetune_scales.check_checkpoint(step, KIND, found.integers)
    return StepReport({"blocks": found.facts, "integers_changed": round(share, 6)})


@dataclass
class Found:
    """Results of all blocks.  ``trained``: name -> RMSNorm weight, or relative change of scales.  ``integers``: module
    -> [out, in] in stored order.  ``facts``: error of each block before and after."""

    trained: dict[str, Any] = field(default_factory=dict)
    integers: dict[str, np.ndarray] = field(default_factory=dict)
    facts: list[dict[str, float]] = field(default_factory=list)


def _all_blocks(
    settings: Settings, step: StepContext, weights: dict[str, QuantizedWeight]
) -> Found:
    import torch

    assert step.unquantized is not None  # the preflight asks for a float model
    loaded = load_to_train(step.source, settings, step.device)
    student, found = loaded.model, Found()
    float_model = load_to_train(step.unquantized, settings, step.device).model
    windows = windows_of(settings, step, KIND, loaded.tokenizer)
    ids = torch.stack([windows.sample(i) for i in range(settings.samples)]).to(step.device)
    streams = Streams(
        embed(student, ids), embed(float_model, ids), positions(float_model, settings.length)
    )
    steps = math.ceil(settings.samples / settings.batch)
    count = len(student.model.layers)
    with step.reporter.stage(KIND) as update:
        for index in range(count):
            name = f"model.layers.{index}"
            layer, floats = student.model.layers[index], float_model.model.layers[index]
            own = {
                n.removeprefix(f"{name}."): weight
                for n, weight in weights.items()
                if n.startswith(f"{name}.")
            }
            _make_trainable(layer, floats, own, settings, step.device, streams.tables.family)
            _pass(floats, streams.floats, streams.tables, settings)
            state = step.scratch / f"block{index}.pt"
            if state.exists():
                found.facts.append(restore_block(layer, state))
            else:

                def report(done: int, loss: float, index: int = index) -> None:
                    update(index * steps + done, count * steps, f"block {index}, error {loss:.4f}")

                error = Error(streams.floats, reading_weights(float_model, index))
                found.facts.append(_train(layer, streams, error, settings, index, step, report))
                save_block(_finished_tensors(layer, own), found.facts[-1], state)
                _interrupted_state(step, index).unlink(missing_ok=True)
            update((index + 1) * steps, count * steps)
            _pass(layer, streams.given, streams.tables, settings)
            for module in own:
                trained = layer.get_submodule(module)
                q = nearest(trained.latent.detach(), own[module].bits)
                found.integers[f"{name}.{module}"] = q.cpu().numpy().astype(np.uint8)
                found.trained[f"{name}.{module}.change"] = trained.change.detach().cpu()
            found.trained |= {f"{name}.{n}.weight": g.cpu() for n, g in norm_weights(layer).items()}
            # frees both
            student.model.layers[index] = float_model.model.layers[index] = torch.nn.Identity()
    return found


def _interrupted_state(step: StepContext, index: int) -> Path:
    """Return the file for the state of a block whose training was interrupted."""
    return step.scratch / f"begun{index}.pt"


def _finished_tensors(layer: Any, weights: dict[str, QuantizedWeight]) -> dict[str, Any]:
    """Return the tensors of a finished block, with latents rounded to integers, which suffice for forward passes."""
    import torch

    state = dict(layer.state_dict())
    for module, weight in weights.items():
        q = nearest(state[f"{module}.latent"], weight.bits)
        state[f"{module}.latent"] = q.to(torch.uint8)
    return state


def _make_trainable(
    layer: Any,
    floats: Any,
    weights: dict[str, QuantizedWeight],
    settings: Settings,
    device: str,
    family: Family,
) -> None:
    """Make integers, scales and RMSNorm weights of ``layer`` trainable, with their present values."""
    for module, weight in weights.items():
        given = floats.get_submodule(module).weight.detach().float().cpu().numpy()
        bias = layer.get_submodule(module).bias
        layer.set_submodule(module, rounded(weight, given, settings.dtype, device, bias=bias))
    train_norms(layer, family)


class Error:
    """Squared error of a block's output relative to each token of ``target`` [windows, t, hidden].  Channels are
    weighted by ``read`` [hidden], see :func:`reading_weights`."""

    def __init__(self, target: Any, read: Any) -> None:
        self.target, self.read = target, read

    def of(self, given: Any, which: Any) -> Any:
        """Return the mean over the tokens of the windows ``which``, for the block's output ``given``.  A token whose
        channels are all unused has no error."""
        target = self.target[which].float()
        power = _square(target, self.read).clamp_min(TINY)
        return (_square(given.float() - target, self.read) / power).mean()


def _square(x: Any, read: Any) -> Any:
    """Return the mean square over the channels, weighted by ``read``: [..., hidden] -> [...]."""
    return (x.float() * read).square().mean(-1)


def reading_weights(model: Any, index: int) -> Any:
    """Return the weight of each channel for the layers after block ``index``, [hidden].

    A reader multiplies a channel by the norm's weight and a column of its matrices; the product does not depend on
    where ``awq`` and ``rotate`` put the factor.  The result is the root mean square of these products over all
    readers, each normalised to a mean square of 1.
    """
    import torch

    family = family_of_torch(model)
    places = [(model.model.norm, [model.lm_head])]
    for layer in model.model.layers[index + 1 :]:
        at = layer.get_submodule
        places += [
            (at(norm), [at(name) for name in names]) for norm, names in family.readers.items()
        ]
    found = []
    for norm, matrices in places:
        columns = sum(m.weight.float().square().sum(0) for m in matrices)
        squares = columns * norm_weight(norm, family).float().square()
        found.append(squares / squares.mean().clamp_min(TINY))
    return torch.stack(found).mean(0).sqrt()


@dataclass(frozen=True)
class Streams:
    """The residual streams [windows, t, hidden] before a block: ``given`` by the trained blocks, ``floats`` by those of
    the float model.  ``tables``: see :func:`~shrinkc.compression.blocks.positions`."""

    given: Any
    floats: Any
    tables: Positions


def _pass(layer: Any, stream: Any, tables: Any, settings: Settings) -> None:
    """Replace a stream by a block's output, in place."""
    import torch

    with torch.no_grad():
        for part in batches(stream):
            part.copy_(_block(layer, part, tables, settings))


def _block(layer: Any, hidden: Any, tables: Any, settings: Settings) -> Any:
    with autocast(settings, hidden.device.type):
        return block(layer, hidden, tables)


def _train(
    layer: Any,
    streams: Streams,
    error: Error,
    settings: Settings,
    index: int,
    step: StepContext,
    report: Callable[[int, float], None],
) -> dict[str, float]:
    """Train a block on all windows, or continue after an interrupt; return its error before and after."""
    import torch

    named = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    latents = [p for n, p in named.items() if n.endswith(".latent")]
    others = [p for n, p in named.items() if not n.endswith(".latent")]
    groups = [
        {"params": latents, "peak_lr": settings.weight_rate},
        {"params": others, "peak_lr": settings.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    order = torch.randperm(
        settings.samples, generator=torch.Generator().manual_seed(step.seed * 1_000_003 + index)
    )
    parts = order.to(streams.given.device).split(settings.batch)

    def measured() -> float:
        """Measure the error on the first windows."""
        first = torch.arange(min(_MEASURED, settings.samples), device=streams.given.device)
        with torch.no_grad():
            found = [
                error.of(_block(layer, streams.given[w], streams.tables, settings), w) * len(w)
                for w in first.split(settings.batch)
            ]
        return round(float(sum(found)) / len(first), 6)

    state = _interrupted_state(step, index)
    errors = restore_state(state, named, optimizer) or [
        measured()
    ]  # before training, then of each step
    with deferred(step.reporter) as stop:
        for number, which in list(enumerate(parts))[len(errors) - 1 :]:
            loss = error.of(_block(layer, streams.given[which], streams.tables, settings), which)
            loss.backward()
            errors.append(loss.item())
            if not math.isfinite(errors[-1]):
                raise _diverged(index, number, settings.dtype)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate_factor(number, len(parts)) * group["peak_lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            report(number + 1, errors[-1])
            if stop.came:
                save_state(state, named, optimizer, errors)
                stop.act()
    after = measured()
    if not math.isfinite(after):
        raise _diverged(index, len(parts), settings.dtype)
    return {"before": errors[0], "after": after}


def _diverged(index: int, step: int, dtype: str) -> TrainingDiverged:
    if step:
        hint = f"lower {KIND}.learning_rate and weight_rate"
    else:
        hint = (
            f'dtype = "float32" for {KIND} may help' if dtype != "float32" else "look at the model"
        )
    return TrainingDiverged(
        f"{KIND}: the error after {step} steps of block {index} is not finite.",
        f"{hint}, and delete this step's folder in .scratch of the run to begin it again; the steps before it stay.",
    )


RECONSTRUCT = StageKind(
    name="reconstruct",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=12,
    on_quantised=True,
    needs_floats=True,
    advice=advice,
    child_seconds=7.0,
    memory=memory,
    preflight=partial(finetune_scales.quantised_problems, stage="reconstruct"),
    check_data=partial(check_texts, kind="reconstruct"),
    kept=kept,
)
