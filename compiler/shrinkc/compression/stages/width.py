"""Stage ``width``: width pruning of FFN channels and KV heads (with their query heads), or n:m sparsity.

Both use WANDA scores (Sun et al. 2023): |W| · ‖X‖₂, with X the input over all calibration tokens.  Layers are pruned
in order, and the input of each layer is the output of the pruned layers before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from shrinkc.checkpoints import load, save, stored_dtype, torch_dtype
from shrinkc.compression.blocks import (
    INPUT_OF,
    batches,
    block,
    embed,
    positions,
    save_block,
    second_moments,
)
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.checks import Between, Checked, OneOf
from shrinkc.compression.facts import ModelFacts, predicted
from shrinkc.compression.stages.context import StageKind, StepContext, StepReport, Work
from shrinkc.compression.stages.gptq import kept_layers
from shrinkc.core.errors import BadRecipe
from shrinkc.model import ATTENTION, MLP

STRUCTURED, PATTERN = "structured", "n:m"
RIDGE = 0.01  # share of the Gram matrix's mean diagonal that is added to it


@dataclass(frozen=True)
class Settings(Checked):
    """The parts that are removed from each layer."""

    method: Annotated[str, OneOf(STRUCTURED, PATTERN)] = STRUCTURED
    """``structured`` makes matrices smaller; ``n:m`` sets weights to zero."""
    ffn: Annotated[float, Between(0, 0.99)] = 0.0
    """Share of the FFN channels to remove."""
    ffn_keep: Annotated[int, Between(1)] | None = None
    """FFN channels to keep, instead of ``ffn``."""
    multiple: Annotated[int, Between(1)] = 64
    """With ``ffn``, the kept channels are a multiple of this, so that group sizes divide."""
    kv_groups: Annotated[int, Between(0)] = 0
    """KV heads to remove from each layer, with their query heads."""
    refit: bool = True
    """Fit down_proj and o_proj to their former outputs, by ridge regression on the calibration
    data."""
    n: int | None = None
    """With ``n:m``: weights of each ``m`` to set to zero; less than ``m``."""
    m: Annotated[int, Between(2, 4096)] | None = None
    """With ``n:m``: consecutive inputs of an output channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        narrows = self.ffn or self.ffn_keep is not None or self.kv_groups
        if self.method == PATTERN:
            if self.n is None or self.m is None:
                raise BadRecipe("method = 'n:m' needs n and m.", "n = 2, m = 4 zeroes 2 of 4.")
            Between(1, self.m - 1)("n", self.n)
            if narrows:
                raise BadRecipe("ffn, ffn_keep and kv_groups belong to method = 'structured'.")
            return
        if self.n is not None or self.m is not None:
            raise BadRecipe("n and m belong to method = 'n:m'.")
        if self.ffn and self.ffn_keep is not None:
            raise BadRecipe("one of ffn and ffn_keep is allowed; both are given.")
        if not narrows:
            raise BadRecipe("one of ffn, ffn_keep and kv_groups is needed; none of them is given.")

    def channels(self, intermediate: int) -> int:
        """Return how many of ``intermediate`` FFN channels are kept."""
        if self.ffn_keep is not None:
            return self.ffn_keep
        if not self.ffn:
            return intermediate
        return max(1, round((1 - self.ffn) * intermediate / self.multiple)) * self.multiple


def preflight(settings: Settings, facts: ModelFacts) -> list[str]:
    """Return problems: nothing to remove, more than exists, or a pattern that does not divide the inputs."""
    c, problems = facts.config, []
    if settings.method == PATTERN:
        for what, size in (
            ("hidden size", c.hidden_size),
            ("intermediate size", c.intermediate_size),
            ("size of all heads", c.num_heads * c.head_dim),
        ):
            if settings.m is not None and size % settings.m:
                problems.append(f"m = {settings.m} does not divide the {what}, {size}")
        return problems
    kept = settings.channels(c.intermediate_size)
    asks = settings.ffn or settings.ffn_keep is not None
    if asks and not 0 < kept < c.intermediate_size:
        problems.append(
            f"{kept} FFN channels are to stay (a multiple of {settings.multiple}), the model has "
            f"{c.intermediate_size}"
        )
    if settings.kv_groups >= c.num_kv_heads:
        problems.append(
            f"kv_groups = {settings.kv_groups}: the model has {c.num_kv_heads}, one has to stay"
        )
    return problems


def predict(settings: Settings, facts: ModelFacts) -> ModelFacts:
    """Return the facts with narrower layers; n:m sparsity does not change them."""
    if settings.method == PATTERN:
        return facts
    c = facts.config
    groups = c.num_kv_heads - settings.kv_groups
    return predicted(
        facts,
        intermediate_size=settings.channels(c.intermediate_size),
        num_kv_heads=groups,
        num_heads=groups * (c.num_heads // c.num_kv_heads),
    )


def work(settings: Settings, facts: ModelFacts, calibration: Calibration) -> Work:
    """Return the work: every layer is computed for its scores, and again after pruning."""
    return Work(3.0 * calibration.samples * calibration.length)


def run(settings: Settings, step: StepContext) -> StepReport:
    """Prune layer after layer; finished layers are saved in ``scratch``."""
    import torch

    loaded = load(step.source, dtype="float32", device=step.device)
    model = loaded.model
    windows = step.calibration.windows(loaded.tokenizer).to(step.device)
    parts, tables = batches(windows), positions(model, windows.shape[1])
    layers = list(model.model.layers)
    facts: list[dict[str, Any]] = []
    with torch.no_grad(), step.reporter.stage(f"width: {settings.method}") as update:
        hidden = [embed(model, ids) for ids in parts]
        states = [step.scratch / f"layer{index}.pt" for index in range(len(layers))]
        finished = sum(state.exists() for state in states)
        update(finished, len(layers))
        for index, (layer, state) in enumerate(zip(layers, states, strict=True)):
            if state.exists():
                facts.append(_restore(layer, state))
            else:
                prune = _zero if settings.method == PATTERN else _narrow
                facts.append(prune(settings, model.config, layer, hidden, tables))
                save_block(layer.state_dict(), facts[-1], state)
            hidden = [block(layer, h, tables) for h in hidden]
            if index >= finished:
                update(index + 1, len(layers))
    _update_config(model, layers[0])
    model.to(torch_dtype(stored_dtype(step.source)))
    save(model, loaded.tokenizer, step.out)
    return StepReport({"layers": facts})


# ---- measuring ----


def input_norms(moments: dict[str, Any]) -> dict[str, Any]:
    """Return ‖X‖₂ / √tokens of every input of a module, float32 [inputs].

    ``moments``: see :func:`~shrinkc.compression.blocks.second_moments`."""
    return {name: moment.diagonal().sqrt().float() for name, moment in moments.items()}


def scores(weight: Any, norm: Any) -> Any:
    """Return WANDA scores |W| · ‖X‖₂, [out, in]."""
    return weight.abs() * norm


# ---- structured ----


def channel_scores(down: Any, norm: Any) -> Any:
    """Return a score per FFN channel: the sum over its column of down_proj.

    Its rows of gate and up only determine its activation, which the norm includes already.
    """
    return scores(down, norm).sum(0)


def group_scores(q: Any, k: Any, v: Any, o: Any, norm_in: Any, norm_o: Any, groups: int) -> Any:
    """Return a score per KV group: the sums over its rows of k and v, and over its query heads' rows of q and columns
    of o.  Each sum is divided by its mean over all groups, so that all matrices have the same weight."""
    parts = [scores(w, norm_in).sum(1).view(groups, -1).sum(1) for w in (q, k, v)]
    parts.append(scores(o, norm_o).sum(0).view(groups, -1).sum(1))
    return sum(part / part.mean() for part in parts)


def refit(weight: Any, gram: Any, kept: Any) -> Any:
    """Fit ``weight`` [out, in] to the inputs ``kept`` by ridge regression.

    Returns the W' that minimises ‖X Wᵀ − X[:, kept] W'ᵀ‖² + λ‖W' − W[:, kept]‖², where λ is RIDGE times the mean of
    the kept diagonal of the Gram matrix XᵀX (float64 [in, in], with any constant factor).
    """
    import torch

    inner = gram[kept][:, kept].clone()
    ridge = RIDGE * inner.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    inner.diagonal().add_(ridge)
    # W' (G_kk + λ) = W G_:k + λ W_k
    wanted = weight.double() @ gram[:, kept] + ridge * weight.double()[:, kept]
    factor = torch.linalg.cholesky(inner)
    return torch.cholesky_solve(wanted.T, factor).T.to(weight.dtype)


def _narrow(
    settings: Settings, config: Any, layer: Any, hidden: list[Any], tables: Any
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if settings.kv_groups:
        groups = config.num_key_value_heads
        q, k, v, o = (layer.get_submodule(name) for name in ATTENTION)
        names = (ATTENTION[0], ATTENTION[-1])
        moments, _ = second_moments(layer, hidden, tables, names, weighted=False)
        norms = input_norms(moments)
        score = group_scores(
            q.weight, k.weight, v.weight, o.weight, norms[names[0]], norms[names[1]], groups
        )
        kept = highest(score, groups - settings.kv_groups)
        keys = _rows_of(kept, k.out_features // groups)
        queries = _rows_of(kept, q.out_features // groups)
        for module, rows in ((q, queries), (k, keys), (v, keys)):
            _keep_rows(module, rows)
        gram = moments[names[1]]
        _set(o, refit(o.weight, gram, queries) if settings.refit else o.weight[:, queries])
        facts |= {"kv_groups": kept.tolist(), "group_scores": _figures(score)}

    gate, up, down = (layer.get_submodule(name) for name in MLP)
    intermediate = gate.out_features
    channels = settings.channels(intermediate)
    if channels < intermediate:
        name = MLP[-1]
        moments, _ = second_moments(layer, hidden, tables, (name,), weighted=False)
        score = channel_scores(down.weight, input_norms(moments)[name])
        kept = highest(score, channels)
        for module in (gate, up):
            _keep_rows(module, kept)
        gram = moments[name]
        narrow = refit(down.weight, gram, kept) if settings.refit else down.weight[:, kept]
        facts["ffn"] = {
            "kept": len(kept),
            "kept_score": float(score[kept].sum() / score.sum()),
            "output_error": output_error(down.weight, narrow, gram, kept),
        }
        _set(down, narrow)
    return facts


def output_error(weight: Any, narrow: Any, gram: Any, kept: Any) -> float:
    """Return ‖X Wᵀ − X[:, kept] W'ᵀ‖² / ‖X Wᵀ‖², computed from the Gram matrix."""
    difference = weight.double().clone()
    difference[:, kept] -= narrow.double()
    error = ((difference @ gram) * difference).sum()
    whole = ((weight.double() @ gram) * weight.double()).sum()
    return float(error / whole)


def highest(score: Any, count: int) -> Any:
    """Return the ascending indices of the ``count`` highest scores; ties go to the lower index."""
    import torch

    order = torch.sort(score, descending=True, stable=True).indices
    return order[:count].sort().values


def _rows_of(groups: Any, size: int) -> Any:
    """Return the indices of all rows of ``groups``, each of ``size`` rows."""
    import torch

    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def _keep_rows(linear: Any, rows: Any) -> None:
    """Remove all output channels except ``rows``, with their biases."""
    if linear.bias is not None:
        _set_bias(linear, linear.bias[rows])
    _set(linear, linear.weight[rows])


def _set(linear: Any, weight: Any) -> None:
    import torch

    linear.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape


def _set_bias(linear: Any, bias: Any) -> None:
    import torch

    linear.bias = torch.nn.Parameter(bias.contiguous(), requires_grad=False)


def _figures(values: Any) -> list[float]:
    return [float(f"{float(v):.6g}") for v in values]


def _update_config(model: Any, layer: Any) -> None:
    """Set the sizes in the config to those of the matrices."""
    config = model.config
    head = layer.self_attn.head_dim
    config.head_dim = head
    config.intermediate_size = layer.mlp.gate_proj.out_features
    config.num_attention_heads = layer.self_attn.q_proj.out_features // head
    config.num_key_value_heads = layer.self_attn.k_proj.out_features // head


# ---- n:m ----


def zeroed(weight: Any, norm: Any, n: int, m: int) -> Any:
    """Return ``weight`` [out, in] with the ``n`` lowest scores of every ``m`` consecutive inputs set to 0."""
    import torch

    groups = scores(weight, norm).view(weight.shape[0], -1, m)
    lowest = torch.sort(groups, dim=-1, stable=True).indices[..., :n]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, lowest, False)
    return weight * mask.view_as(weight)


def _zero(
    settings: Settings, config: Any, layer: Any, hidden: list[Any], tables: Any
) -> dict[str, Any]:
    moments, _ = second_moments(
        layer, hidden, tables, tuple(dict.fromkeys(INPUT_OF.values())), weighted=False
    )
    norms = input_norms(moments)
    zeros = total = 0
    assert settings.n is not None and settings.m is not None
    for name, source in INPUT_OF.items():
        module = layer.get_submodule(name)
        _set(module, zeroed(module.weight, norms[source], settings.n, settings.m))
        zeros += int((module.weight == 0).sum())
        total += module.weight.numel()
    return {"zeros": zeros, "weights": total}


# ---- state of an interrupted run ----


def _restore(layer: Any, file: Path) -> dict[str, Any]:
    import torch

    state = torch.load(file, weights_only=True)
    for name, value in state["weights"].items():
        path, _, kind = name.rpartition(".")
        module = layer.get_submodule(path)
        if isinstance(module, torch.nn.Linear):
            (_set_bias if kind == "bias" else _set)(module, value)
    return state["facts"]


WIDTH = StageKind(
    name="width",
    settings=Settings,
    run=run,
    work=work,
    parameter_bytes=14,
    predict=predict,
    preflight=preflight,
    kept=kept_layers,
)
