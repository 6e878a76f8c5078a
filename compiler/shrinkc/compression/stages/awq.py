"""Stage ``awq``: activation-aware scaling (AWQ, Lin et al. 2023), so that rounding loses less.

Each input channel of a matrix gets a factor s: its column of W is multiplied by s, and what produces the input (a
norm's weights or the rows of the matrix before it) is divided by s.  The model computes the same, no byte is added,
and the rounding that follows (``gptq``) is finer where it matters.  These factors are tried:

* AWQ's ``s = x^a / w^b``, with the channel's input magnitude x and its largest weight w;
* those that minimise ``sum over groups of a row of max(|w| s)^2 * sum(x^2 / s^2)``, the loss if rounding errors
  are independent.  It is log-convex in log(s), so that gradient descent finds the minimum (:func:`learned`).

The stage takes the factors with which rounding to nearest loses least, measured with the second moment of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any

from shrinkc.checkpoints import family_of_torch, load, save, stored_dtype, torch_dtype
from shrinkc.compression.blocks import (
    batches,
    embed,
    positions,
    restore_block,
    save_block,
    second_moments,
)
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Checked
from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.stages import gptq
from shrinkc.compression.stages.context import Stage, StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.gptq import (
    Groups,
    Width,
    as_tuple,
    first_dividing,
    kept_layers,
    mean_inputs,
    weights_of,
)
from shrinkc.model import ATTENTION, MLP, Family

LIMIT = 2.0**10  # largest factor; 1 / LIMIT is the smallest
_WEIGHTS = (0.0, 0.5)  # exponents b that are tried
_STEPS, _RATE = 150, 0.03  # of Adam, in units of log(s)
# passes over the weights: of rounding them once, and of a step of Adam
_ROUNDING, _LEARNING = 14, 8
_CALLS = 90  # of torch in a step of Adam at one of the four sites of a block


@dataclass(frozen=True)
class Settings(Checked):
    """The rounding to prepare for, and which scales are tried."""

    bits: Width = 4
    """As in the ``gptq`` stage that follows."""
    group_size: Groups = -1
    """As in the ``gptq`` stage that follows."""
    sym: bool = True
    """As in the ``gptq`` stage that follows."""
    points: Annotated[int, Between(2, 101)] = 6
    """Number of exponents to try, evenly spaced from 0 to 1.  An input's scale is its magnitude to
    the power of the exponent."""
    learn: bool = True
    """Also try scales that an optimiser finds."""

    @property
    def first_group(self) -> int:
        """The first choice; the only one once the settings are resolved."""
        return int(as_tuple(self.group_size)[0])


@dataclass(frozen=True)
class Site:
    """The matrices ``readers`` of a block read the output of ``maker``: a norm, or a matrix whose rows are
    ``heads`` heads.  Each head is read ``shared`` times."""

    maker: str
    readers: tuple[str, ...]
    heads: int = 1
    shared: int = 1
    offset: float = 0.0
    """Added to the maker's stored weights (``norm_offset`` of the family)."""


def sites(family: Family, heads: int, kv_heads: int) -> tuple[Site, ...]:
    """Return all places of a block where a factor can move from the readers to the maker."""
    _, _, v, o = ATTENTION
    _, up, down = MLP
    attention, mlp = (
        Site(norm, readers, offset=family.norm_offset) for norm, readers in family.readers.items()
    )
    return attention, Site(v, (o,), kv_heads, heads // kv_heads), mlp, Site(up, (down,))


def _inputs(facts: ModelFacts) -> set[int]:
    c = facts.config
    return {c.hidden_size, c.num_heads * c.head_dim, c.intermediate_size}


def resolve(settings: Settings, facts: ModelFacts) -> tuple[Settings, list[str]]:
    """Resolve the group sizes to the first that divides, as ``gptq`` does; return a note if it is not the first."""
    group_size, notes = first_dividing("group_size", as_tuple(settings.group_size), _inputs(facts))
    return replace(settings, group_size=group_size), notes


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return the problem that the group size does not divide the inputs of a matrix, if it does not."""
    group_size = resolve(settings, facts)[0].first_group
    wrong = sorted(k for k in _inputs(facts) if group_size != -1 and k % group_size)
    if wrong:
        listed = " and ".join(map(str, wrong))
        return [
            f"group_size = {group_size} does not divide {listed} inputs; give the group_size of [gptq]"
        ]
    return []


def advice(stage: Stage, before: Sequence[Stage], after: Sequence[Stage]) -> Iterator[str]:
    """Yield a note if the stage that rounds the weights has other settings."""
    rounds = next((s for s in after if isinstance(s.settings, gptq.Settings)), None)
    if rounds is None:
        return
    grids = [(s.settings.bits, s.settings.group_size, s.settings.sym) for s in (stage, rounds)]
    if grids[0] != grids[1]:
        texts = [f"bits = {b}, group_size = {g}, sym = {str(sym).lower()}" for b, g, sym in grids]
        yield (
            f"[{stage.name}] is for {texts[0]}, but [{rounds.name}] rounds to {texts[1]}; the same settings "
            "would lose less"
        )


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work.  Second moments take as long as the matrices.  For each pair of exponents, every weight is
    rounded and the errors are multiplied with the moments.  Learned factors take passes over the weights only."""
    pairs = settings.points * len(_WEIGHTS) + settings.learn
    tokens = 2.0 * calibration.samples * calibration.length + pairs * mean_inputs(facts.config)
    passes = _ROUNDING * pairs + _LEARNING * _STEPS * settings.learn
    calls = _CALLS * _STEPS * 4 * facts.config.num_layers * settings.learn
    return Work(tokens, passes * weights_of(facts.config), calls)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Scale layer after layer; finished layers are saved in ``scratch``."""
    import torch

    loaded = load(step.source, dtype="float32", device=step.device)
    model, stored = loaded.model, torch_dtype(stored_dtype(step.source))
    windows = step.calibration.windows(loaded.tokenizer).to(step.device)
    config, family = model.config, family_of_torch(model)
    places = sites(family, config.num_attention_heads, config.num_key_value_heads)
    names = tuple(site.readers[0] for site in places)
    layers = list(model.model.layers)
    facts: list[dict[str, Any]] = []
    with torch.no_grad(), step.reporter.stage("awq") as update:
        tables = positions(model, windows.shape[1])
        hidden = [embed(model, ids) for ids in batches(windows)]
        states = [step.scratch / f"layer{index}.pt" for index in range(len(layers))]
        finished = sum(state.exists() for state in states)
        update(finished, len(layers))
        for index, (layer, state) in enumerate(zip(layers, states, strict=True)):
            # the unscaled layer: its output is the same as with scales
            moments, hidden = second_moments(layer, hidden, tables, names)
            if state.exists():
                facts.append(restore_block(layer, state))
                continue
            facts.append({})
            for site in places:
                moment = moments[site.readers[0]]
                facts[-1][site.readers[0]] = scale_site(settings, layer, site, moment, stored)
            save_block(layer.state_dict(), facts[-1], state)
            update(index + 1, len(layers))
    model.to(stored)
    save(model, loaded.tokenizer, step.out)
    return StepReport({"layers": facts})


def scale_site(
    settings: Settings, layer: Any, site: Site, moment: Any, stored: Any
) -> dict[str, Any]:
    """Scale one site of ``layer`` in place.  ``moment`` [inputs, inputs]: second moment of the readers' input;
    ``stored``: the dtype of the checkpoint, which must hold the result with its whole precision.

    Returns which factors were taken, and the loss of rounding relative to that without factors.
    """
    import torch

    readers = [layer.get_submodule(name) for name in site.readers]
    weights = [reader.weight.float() for reader in readers]
    gram = moment.float()
    x = _shared(moment.diagonal().float(), site, "mean").sqrt()
    w = _shared(torch.cat(weights).abs().amax(0), site, "max")
    maker = layer.get_submodule(site.maker)
    made = maker.weight
    tops = (made.float() + site.offset).abs() if made.dim() == 1 else made.float().abs().amax(1)
    best, how = torch.ones_like(x), "none"
    powers = output_powers(weights, gram)
    plain = least = rounding_loss(settings, weights, powers, gram, _repeated(best, site))

    def attempt(scale: Any, name: str) -> None:
        nonlocal best, how, least
        if (
            site.offset
        ):  # the stored difference has less precision: take the factor that it stands for
            scale = _exact(made.float() + site.offset, scale, site.offset, stored)
        if not (_storable(tops / scale, stored) and _storable(w * scale, stored)):
            return
        loss = rounding_loss(settings, weights, powers, gram, _repeated(scale, site))
        if loss < least:
            best, how, least = scale, name, loss

    exponents = [round(i / (settings.points - 1), 6) for i in range(settings.points)]
    for a, b in product(exponents, _WEIGHTS):
        if a or b:
            attempt(scales(x, w, a, b), f"inputs^{a:g} / weights^{b:g}")
    if settings.learn:
        attempt(learned(settings, weights, powers, gram, site, best), "learned")
    for reader in readers:
        reader.weight.mul_(_repeated(best, site).to(reader.weight.dtype))
    if made.dim() == 1:
        made.copy_((made + site.offset) / best.to(made.dtype) - site.offset)
    else:
        made.div_(best.to(made.dtype)[:, None])
        if maker.bias is not None:
            maker.bias.div_(best.to(made.dtype))
    return {"scales": how, "loss": least / plain if plain else 1.0}


def _exact(factors: Any, scale: Any, offset: float, stored: Any) -> Any:
    """Return the scales nearest to ``scale`` whose quotients ``factors / scale`` are exact when their difference from
    ``offset`` is stored; 1 where that difference would mean no factor at all, or one of another sign."""
    import torch

    kept = (factors / scale - offset).to(stored).float() + offset
    found = factors / torch.where(kept == 0, torch.ones_like(kept), kept)
    close = (kept != 0) & (found / scale > 0.5) & (found / scale < 2)
    return torch.where(close, found, torch.ones_like(scale))


def _storable(tops: Any, stored: Any) -> bool:
    """Return whether ``stored`` holds the largest value of each row or column, and similar ones, at full precision."""
    import torch

    kind = torch.finfo(stored)
    used = tops[tops > 0]
    return bool(((used <= kind.max / 2) & (used >= kind.tiny * 2**6)).all())


def scales(x: Any, w: Any, a: float, b: float) -> Any:
    """Return ``x^a / w^b`` with a geometric mean of 1, within LIMIT."""
    import torch

    used, one = (x > 0) & (w > 0), torch.ones_like(x)
    logs = a * torch.where(used, x, one).log() - b * torch.where(used, w, one).log()
    return _centred(logs, used, w)


def _centred(logs: Any, used: Any, w: Any) -> Any:
    """Return factors from their logarithms.  An input that is not ``used`` (always 0, or never read) keeps 1, or less
    where its weights ``w`` would otherwise be the largest and widen the steps of the others."""
    import torch

    if not used.any():
        return torch.ones_like(logs)
    scale = (logs - logs[used].mean()).exp().clamp(1 / LIMIT, LIMIT)
    top = (w * scale)[used].max()
    rest = torch.where(w > top, top / w, 1.0).clamp_min(1 / LIMIT)
    return torch.where(used, scale, rest)


def learned(
    settings: Settings, weights: list[Any], powers: list[float], gram: Any, site: Site, start: Any
) -> Any:
    """Return factors [rows of the maker] with the least loss if rounding errors are independent, found from ``start``.
    Other arguments: see :func:`rounding_loss`."""
    import torch

    x = gram.diagonal()
    size = len(x) if settings.first_group == -1 else settings.first_group
    w = _shared(torch.cat(weights).abs().amax(0), site, "max")
    used = (_shared(x, site, "max") > 0) & (w > 0)
    parts = [
        (weight.square() * _repeated(used, site), power)
        for weight, power in zip(weights, powers, strict=True)
        if power > 0
    ]
    if not parts:
        return start
    logs = start.log().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logs], lr=_RATE)
    with torch.enable_grad():
        for step in range(_STEPS):
            scale = _repeated((2 * logs).exp(), site)
            noise = (x / scale).view(-1, size).sum(1)
            tops = ((s * scale).view(len(s), -1, size).amax(-1) / power for s, power in parts)
            optimizer.zero_grad()
            sum((top * noise).sum() for top in tops).log().backward()
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / _STEPS)
            optimizer.step()
    return _centred(logs.detach(), used, w)


def output_powers(weights: list[Any], gram: Any) -> list[float]:
    """Return the mean squared output of each of ``weights`` [out, in], summed over rows; ``gram`` [in, in]: second
    moment of the inputs."""
    return [float(((weight @ gram) * weight).sum()) for weight in weights]


def rounding_loss(
    settings: Settings, weights: list[Any], powers: list[float], gram: Any, scale: Any
) -> float:
    """Return the loss of rounding ``weights`` [out, in] times ``scale`` [in]: the sum of the squared errors of the
    readers' outputs relative to ``powers`` (see :func:`output_powers`)."""
    loss = 0.0
    for weight, power in zip(weights, powers, strict=True):
        scaled = weight * scale
        lost = (nearest(scaled, settings.bits, settings.first_group, settings.sym) - scaled) / scale
        loss += float(((lost @ gram) * lost).sum()) / power if power > 0 else 0.0
    return loss


def nearest(weight: Any, bits: int, group_size: int, sym: bool) -> Any:
    """Round ``weight`` [out, in] to GPTQ's initial grid: 2^bits steps over the range of each group."""
    groups = weight.view(len(weight), -1, weight.shape[1] if group_size == -1 else group_size)
    top = 2**bits - 1
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    if sym:
        high = high.maximum(-low)
        low = -high
    step = ((high - low) / top).clamp_min(1e-12)
    zero = (top + 1) / 2 if sym else (-low / step).round()
    q = (groups / step + zero).round().clamp(0, top)
    return ((q - zero) * step).view_as(weight)


def _shared(values: Any, site: Site, how: str) -> Any:
    """Combine ``values`` [inputs of the readers] to one per row of the maker, by mean or maximum."""
    parts = values.view(site.heads, site.shared, -1)
    return (parts.mean(1) if how == "mean" else parts.amax(1)).flatten()


def _repeated(scale: Any, site: Site) -> Any:
    """Repeat factors for each reader: [rows of the maker] -> [inputs of the readers]."""
    parts = scale.view(site.heads, 1, -1)
    return parts.expand(-1, site.shared, -1).flatten()


AWQ = StageKind(
    name="awq",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=11,
    preflight=preflight,
    advice=advice,
    resolve=resolve,
    kept=kept_layers,
)
