"""Stage ``reconstruct``: block after block of a quantised model is trained to give what it gave as floats.

Integers, scales and norm gains of a block are trained through the rounding (as ``qat`` does it, with
:func:`~shrinkc.compression.rounding.rounded`) on what the blocks before it, already trained, give, towards
the residual stream of the float model, so that a block makes up for those before it as well (Li et al. 2021,
"BRECQ"; Chen et al. 2024, "EfficientQAT", its first phase).  Every channel of every token is a
target, where ``qat`` has one distribution per token, which is why integers find their way here.  Zero
points, groups and the order of inputs stay; embedding and head are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkc.compression.blocks import batches, block, embed, keep, restore, rope
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import between
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.norms import gains, train_norms
from shrinkc.compression.rounding import nearest, rounded
from shrinkc.compression.stages import scales
from shrinkc.compression.stages.context import StepContext, StepReport
from shrinkc.compression.training import (
    StepSettings,
    check_texts,
    load_to_train,
    text_hashes,
    windows_of,
)
from shrinkc.core.errors import TrainingDiverged
from shrinkc.core.memory import freed_memory_kept
from shrinkc.importer.model import QuantizedWeight

KIND = "reconstruct"
_MEASURED = 32  # windows on which a block's error is told


@dataclass(frozen=True, kw_only=True)
class Settings(StepSettings):
    """As :class:`~shrinkc.compression.training.StepSettings`; every block is trained on all windows once.
    ``learning_rate`` is relative to a scale or a gain, ``weight_rate`` that of the weights in steps of their grid.
    """

    samples: int = 256
    batch: int = 4
    learning_rate: float = 1e-3
    weight_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        between("learning_rate", self.learning_rate, 1e-8, 0.5)
        between("weight_rate", self.weight_rate, 0, 1)


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    return scales.quantised_problems(settings, facts, KIND)


def inputs(settings: Settings) -> dict[str, str]:
    """Hashes of the texts.  Raises BadData when one cannot be read."""
    return text_hashes(settings, KIND)


def check_data(settings: Settings, calibration: Calibration, tokenizer: Any) -> list[str]:
    """Notes on the text; BadData when it is too short or repeats itself."""
    return check_texts(settings, KIND, calibration, tokenizer)


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> float:
    """Forward and backward with gradients of the weights, and the streams of both models; no head."""
    return 5.0 * settings.samples * settings.length


def memory(settings: Settings, facts: ModelFacts, calibration: Calibration) -> int:
    """The residual streams of both models, before a block and after it."""
    size = 4 if settings.dtype == "float32" else 2
    return 4 * size * settings.samples * settings.length * facts.config.hidden_size


def run(settings: Settings, step: StepContext) -> StepReport:
    """Trains block after block, each kept in ``scratch`` once it is over, and writes the checkpoint."""
    import torch

    assert step.unquantized is not None  # the preflight asks for a float model
    weights = scales.quantised_matrices(step)
    loaded = load_to_train(step.source, settings, step.device)
    student = loaded.model
    whole = load_to_train(step.unquantized, settings, step.device).model
    windows = windows_of(settings, step, KIND, loaded.tokenizer)
    ids = torch.stack([windows.sample(i) for i in range(settings.samples)]).to(step.device)
    streams = Streams(embed(student, ids), embed(whole, ids), rope(whole, settings.length))
    steps = math.ceil(settings.samples / settings.batch)
    count = len(student.model.layers)
    trained: dict[str, Any] = {}
    integers: dict[str, np.ndarray] = {}
    facts: list[dict[str, float]] = []
    with freed_memory_kept(), step.reporter.stage(KIND) as update:
        for index in range(count):
            name = f"model.layers.{index}"
            layer, floats = student.model.layers[index], whole.model.layers[index]
            own = {n: weights[n] for n in weights if n.startswith(f"{name}.")}
            _through_the_rounding(layer, floats, name, own, settings, step.device)
            target = streams.floats_after(floats, settings)
            state = step.scratch / f"block{index}.pt"
            if state.exists():
                facts.append(restore(layer, state))
            else:
                error = Error(target, gains_behind(whole, index))

                def tell(done: int, loss: float, index: int = index) -> None:
                    update(index * steps + done, count * steps, f"block {index}, error {loss:.4f}")

                facts.append(_train(layer, streams, error, settings, index, step.seed, tell))
                keep(layer, facts[-1], state)
            update((index + 1) * steps, count * steps)
            streams.go_on(layer, target, settings)
            for key, value in layer.state_dict().items():
                module, _, kind = key.rpartition(".")
                if kind == "latent":
                    q = nearest(value, own[f"{name}.{module}"].bits)
                    integers[f"{name}.{module}"] = q.cpu().numpy().astype(np.uint8)
                elif module not in gains(layer):
                    trained[f"{name}.{key}"] = value.float().cpu()
            trained |= {f"{name}.{n}.weight": g.cpu() for n, g in gains(layer).items()}
            # what was trained is not needed any more
            student.model.layers[index] = whole.model.layers[index] = torch.nn.Identity()
    del student, whole, streams
    moved = sum(int(np.count_nonzero(q != weights[name].q)) for name, q in integers.items())
    share = moved / sum(q.size for q in integers.values())
    scales.write_checkpoint(step, trained, {n: (weights[n], integers[n]) for n in weights})
    scales.check_checkpoint(step, KIND, integers)
    return StepReport({"blocks": facts, "integers_changed": round(share, 6)})


def _through_the_rounding(
    layer: Any,
    floats: Any,
    name: str,
    weights: dict[str, QuantizedWeight],
    settings: Settings,
    device: str,
) -> None:
    """Makes everything of ``layer`` that is trained a parameter; at first it is what it was."""
    for full, weight in weights.items():
        module = full.removeprefix(f"{name}.")
        given = floats.get_submodule(module).weight.detach().float().cpu().numpy()
        layer.set_submodule(module, rounded(weight, given, settings.dtype, device))
    train_norms(layer)


class Error:
    """What a block's result misses of ``target`` [windows, t, hidden], relative to each token's own: the
    squares of all channels, each times what the norms behind it let through (``gains`` [hidden])."""

    def __init__(self, target: Any, gains: Any) -> None:
        self.target, self.gains = target, gains
        self.whole = _square(target, gains)

    def of(self, given: Any, which: Any) -> Any:
        """The mean over the tokens of the windows ``which``; ``given`` is theirs."""
        missed = _square(given.float() - self.target[which].float(), self.gains)
        return (missed / self.whole[which]).mean()


def _square(x: Any, gains: Any) -> Any:
    """[..., hidden] -> [...]"""
    return (x.float() * gains).square().mean(-1)


def gains_behind(model: Any, index: int) -> Any:
    """How much of a channel is read behind block ``index``: the root mean square of the norms' gains, [hidden]."""
    import torch

    layers = model.model.layers[index + 1 :]
    norms = [n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    found = torch.stack([n.weight.float() for n in [*norms, model.model.norm]])
    return found.square().mean(0).sqrt()


class Streams:
    """The residual streams [windows, t, hidden] of both models before a block."""

    def __init__(self, given: Any, floats: Any, tables: Any) -> None:
        self.given, self.floats, self.tables = given, floats, tables

    def floats_after(self, layer: Any, settings: Settings) -> Any:
        """What the float block gives; it takes the next one's place with :meth:`go_on`."""
        return self._after(layer, self.floats, settings)

    def go_on(self, layer: Any, floats: Any, settings: Settings) -> None:
        """Behind the trained block, and the float one's result."""
        self.given, self.floats = self._after(layer, self.given, settings), floats

    def _after(self, layer: Any, hidden: Any, settings: Settings) -> Any:
        import torch

        with torch.no_grad():
            return torch.cat(
                [_block(layer, part, self.tables, settings) for part in batches(hidden)]
            )


def _block(layer: Any, hidden: Any, tables: Any, settings: Settings) -> Any:
    import torch

    low = settings.dtype != "float32"
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=low):
        return block(layer, hidden, tables)


def _train(
    layer: Any,
    streams: Streams,
    error: Error,
    settings: Settings,
    index: int,
    seed: int,
    tell: Callable[[int, float], None],
) -> dict[str, float]:
    """Trains a block on all windows; its error before and after."""
    import torch

    named = dict(layer.named_parameters())
    latents = [p for n, p in named.items() if n.endswith(".latent")]
    others = [p for n, p in named.items() if p.requires_grad and not n.endswith(".latent")]
    groups = [
        {"params": latents, "whole": settings.weight_rate},
        {"params": others, "whole": settings.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    order = torch.randperm(
        settings.samples, generator=torch.Generator().manual_seed(seed * 1_000_003 + index)
    )
    parts = order.to(streams.given.device).split(settings.batch)

    def measured() -> float:
        """On the first windows."""
        first = torch.arange(min(_MEASURED, settings.samples), device=streams.given.device)
        with torch.no_grad():
            found = [
                error.of(_block(layer, streams.given[w], streams.tables, settings), w) * len(w)
                for w in first.split(settings.batch)
            ]
        return round(float(sum(found)) / len(first), 6)

    before = measured()
    for number, which in enumerate(parts):
        loss = error.of(_block(layer, streams.given[which], streams.tables, settings), which)
        loss.backward()
        if not math.isfinite(loss.item()):
            raise _diverged(index, number)
        for group in optimizer.param_groups:
            group["lr"] = settings.share(number, len(parts)) * group["whole"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tell(number + 1, loss.item())
    after = measured()
    if not math.isfinite(after):
        raise _diverged(index, len(parts))
    return {"before": before, "after": after}


def _diverged(index: int, step: int) -> TrainingDiverged:
    return TrainingDiverged(
        f"{KIND}: the error after {step} steps of block {index} is not finite.",
        f"lower {KIND}.learning_rate and weight_rate; the blocks before it, and the steps, stay as they are.",
    )
