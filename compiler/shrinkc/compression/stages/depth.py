"""Stage ``depth``: depth pruning removes the least important layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from shrinkc.checkpoints import load, save, stored_dtype
from shrinkc.compression.blocks import batches, block, embed, loss_sum, positions
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Checked, OneOf, exactly_one
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.core.errors import BadRecipe
from shrinkc.core.output import write_file
from shrinkc.core.progress import Update

Count = Annotated[int, Between(0)]


@dataclass(frozen=True)
class Settings(Checked):
    """Which layers are removed."""

    method: Annotated[str, OneOf("perplexity", "taylor", "magnitude", "cosine")] = "perplexity"
    """Importance of a layer.  ``perplexity``: loss without it; ``taylor``: sum of |weight ·
    gradient|; ``magnitude``: sum of |weight|; ``cosine``: 1 − mean cosine of the residual
    stream before and after it (Men et al. 2024, ShortGPT)."""
    remove: Annotated[int, Between(1)] | None = None
    """Layers to remove.  One of ``remove``, ``keep`` and ``layers`` is needed."""
    keep: Annotated[int, Between(1)] | None = None
    """Layers to keep."""
    layers: tuple[Count, ...] = ()
    """Numbers of the layers to remove, counted from 0."""
    protect_first: Count = 4
    """First layers that always stay."""
    protect_last: Count = 2
    """Last layers that always stay."""
    iterative: bool = False
    """Measure again after each removed layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        exactly_one(remove=self.remove, keep=self.keep, layers=self.layers)
        if len(set(self.layers)) < len(self.layers):
            raise BadRecipe(f"layers = {list(self.layers)}; each layer once is allowed.")

    @property
    def needs_calibration(self) -> bool:
        return not self.layers and self.method != "magnitude"

    def count(self, layers: int) -> int:
        """Return how many of ``layers`` layers are removed."""
        if self.layers:
            return len(self.layers)
        return self.remove if self.remove is not None else layers - (self.keep or 0)

    def candidates(self, layers: int) -> list[int]:
        return list(range(self.protect_first, layers - self.protect_last))


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return problems: more layers to remove than exist or are unprotected."""
    layers = facts.config.num_layers
    if settings.layers:
        beyond = [i for i in settings.layers if i >= layers]
        if beyond:
            return [f"layers = {beyond}: the model has the layers 0 to {layers - 1}"]
        return ["layers: at least one has to stay"] if len(settings.layers) >= layers else []
    count, free = settings.count(layers), len(settings.candidates(layers))
    if count < 1:
        return [f"keep = {settings.keep}: the model has {layers} layers, so none would go"]
    if count > free or count >= layers:
        return [
            f"{count} of {layers} layers are to go, but with protect_first = "
            f"{settings.protect_first} and protect_last = {settings.protect_last} only "
            f"{max(free, 0)} may"
        ]
    return []


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    layers = facts.config.num_layers
    return predicted(facts, num_layers=layers - settings.count(layers))


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work of the search, in tokens through the whole model."""
    tokens, layers = calibration.samples * calibration.length, facts.config.num_layers
    if not settings.needs_calibration:
        return Work()
    rounds = settings.count(layers) if settings.iterative else 1
    if settings.method == "taylor":
        return Work(3.0 * rounds * tokens)
    if settings.method == "cosine":
        return Work(1.0 * rounds * tokens)
    # for the loss without layer i, only the layers after it are computed again
    after = sum(layers - 1 - i for i in settings.candidates(layers)) / layers
    return Work(rounds * tokens * (1 + after))


def run(settings: Settings, step: StepContext) -> StepReport:
    """Remove layers; ``parameters`` of the report has the importances of every measurement."""
    loaded = load(step.source, dtype=step.dtype, device=step.device)
    total = loaded.model.config.num_hidden_layers
    rounds: list[dict[str, Any]] = []
    removed = list(settings.layers)
    if not removed:
        windows = None
        if settings.needs_calibration:
            windows = step.calibration.windows(loaded.tokenizer).to(step.device)
        removed, rounds = search(settings, loaded.model, windows, step)
    kept = [i for i in range(total) if i not in removed]

    # loaded again in the stored dtype, so that kept weights do not change
    model = load(step.source, dtype=stored_dtype(step.source)).model
    keep_layers(model, kept)
    save(model, loaded.tokenizer, step.out)
    return StepReport({"removed": sorted(removed), "kept": kept, "rounds": rounds})


def keep_layers(model: Any, kept: list[int]) -> None:
    """Remove all layers except ``kept`` (ascending) from the model and its config."""
    import torch

    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index  # index in the KV cache
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        model.config.layer_types = [kinds[i] for i in kept]
    model.config.num_hidden_layers = len(kept)


def search(
    settings: Settings, model: Any, windows: Any, step: StepContext
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the layers to remove, in order, and every measurement.

    A measurement has the remaining ``layers``, the ``importance`` of each (None for protected ones) and the layers
    that were ``removed`` after it.
    """
    total = model.config.num_hidden_layers
    free, goal = set(settings.candidates(total)), settings.count(total)
    present = list(range(total))
    removed: list[int] = []
    rounds: list[dict[str, Any]] = []
    while len(removed) < goal:
        title = f"depth: {settings.method}"
        if settings.iterative:
            title += f", block {len(removed) + 1} of {goal}"
        with step.reporter.stage(title) as update:
            places = [at for at, layer in enumerate(present) if layer in free]
            values = _MEASURES[settings.method](
                model, windows, places, step.scratch / f"round{len(rounds)}.json", update
            )
        importance = {present[at]: values[at] for at in places}
        order = sorted(importance, key=lambda layer: (importance[layer], layer))
        going = order[: 1 if settings.iterative else goal]
        rounds.append(
            {
                "layers": present,
                "importance": [importance.get(layer) for layer in present],
                "removed": going,
            }
        )
        keep_layers(model, [at for at, layer in enumerate(present) if layer not in going])
        present = [layer for layer in present if layer not in going]
        removed += going
    return removed, rounds


def removal_losses(
    model: Any, windows: Any, places: list[int], state: Path, update: Update
) -> dict[int, float]:
    """Return the mean loss in nats without the layer, for each of ``places``.

    The residual stream before a layer is computed once.  For the loss without the layer, only the layers after it
    are computed again.  ``state``: file with the sums of finished batches.
    """
    import torch

    layers = list(model.model.layers)
    parts = batches(windows)
    tables = positions(model, windows.shape[1])
    sums = json.loads(state.read_text(encoding="utf-8")) if state.exists() else []
    per_batch = sum(len(layers) - at for at in places)
    update(len(sums) * per_batch, len(parts) * per_batch)
    with torch.no_grad():
        for number, ids in enumerate(parts):
            if number < len(sums):
                continue
            done, found = number * per_batch, {}
            hidden = embed(model, ids)
            for at in range(max(places) + 1):
                if at in places:
                    skipped = hidden
                    for layer in layers[at + 1 :]:
                        skipped = block(layer, skipped, tables)
                    found[str(at)] = float(loss_sum(model, skipped, ids))
                    done += len(layers) - at
                    update(done, per_batch * len(parts))
                hidden = block(layers[at], hidden, tables)
            sums.append(found)
            write_file(state, json.dumps(sums))
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    return {at: math.fsum(batch[str(at)] for batch in sums) / tokens for at in places}


def taylor(
    model: Any, windows: Any, places: list[int], state: Path, update: Update
) -> dict[int, float]:
    """Return the sum of |weight · gradient of the mean loss| over the layer's weights, for each of ``places``."""
    import torch

    layers = [model.model.layers[at] for at in places]
    for layer in layers:
        layer.requires_grad_(True)
        layer.zero_grad()
    parts = batches(windows)
    tables = positions(model, windows.shape[1])
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    update(0, len(parts))
    for number, ids in enumerate(parts):
        hidden = embed(model, ids)
        for layer in model.model.layers:
            hidden = block(layer, hidden, tables)
        (loss_sum(model, hidden, ids) / tokens).backward()
        update(number + 1, len(parts))
    values = {}
    with torch.no_grad():
        for at, layer in zip(places, layers, strict=True):
            values[at] = float(
                sum((p * p.grad).abs().sum(dtype=torch.float64) for p in layer.parameters())
            )
            layer.requires_grad_(False)
            layer.zero_grad()
    return values


def magnitude(
    model: Any, windows: Any, places: list[int], state: Path, update: Update
) -> dict[int, float]:
    """Return the sum of |weight| of the layer, for each of ``places``."""
    import torch

    return {
        at: float(
            sum(p.abs().sum(dtype=torch.float64) for p in model.model.layers[at].parameters())
        )
        for at in places
    }


def cosine(
    model: Any, windows: Any, places: list[int], state: Path, update: Update
) -> dict[int, float]:
    """Return 1 − mean cosine of a token's residual stream before and after the layer, for each of ``places``."""
    import torch
    from torch.nn import functional

    parts = batches(windows)
    tables = positions(model, windows.shape[1])
    sums = dict.fromkeys(places, 0.0)
    update(0, len(parts))
    with torch.no_grad():
        for number, ids in enumerate(parts):
            hidden = embed(model, ids)
            for at, layer in enumerate(model.model.layers):
                after = block(layer, hidden, tables)
                if at in sums:
                    same = functional.cosine_similarity(hidden.float(), after.float(), dim=-1)
                    sums[at] += float(same.sum(dtype=torch.float64))
                hidden = after
            update(number + 1, len(parts))
    return {at: 1 - total / windows.numel() for at, total in sums.items()}


_Measure = Callable[[Any, Any, list[int], Path, Update], dict[int, float]]
_MEASURES: dict[str, _Measure] = {
    "perplexity": removal_losses,
    "taylor": taylor,
    "magnitude": magnitude,
    "cosine": cosine,
}


DEPTH = StageKind(
    name="depth",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=11,
    predict=predict,
    preflight=preflight,
)
