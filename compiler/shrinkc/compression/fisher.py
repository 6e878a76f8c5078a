"""Estimate of what fewer bits cost, for every matrix and width, from one backward pass per window of text.

The divergence KL(original ‖ changed) of predictions is ½ ΔᵀFΔ to second order in the change Δ of the weights.  F is the
Fisher information: the mean of ggᵀ over the gradients g of log p(y), with y drawn from the model's own predictions.
Positions are taken as independent, as in K-FAC (Martens and Grosse 2015, arXiv:1503.05671): for a matrix with the
inputs x_t and the gradients g_t at its outputs, the divergence is ½ Σ_t (g_tᵀ ΔW x_t)².

It takes a minute where :mod:`shrinkc.compression.sensitivity`, which runs the model once per change, takes twenty.  It
is for small changes, so not for removed layers or channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shrinkc.compression.facts import ModelFacts
from shrinkc.compression.gptq import fit_groups, fit_points, rounding_passes
from shrinkc.compression.sensitivity import GROUPS, MODULES, WIDTHS, Costs, LayerSensitivity
from shrinkc.compression.stages.context import Work
from shrinkc.compression.stages.gptq import weights_of
from shrinkc.core.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDING = "embedding"
_SOFTMAX_PASSES = 8  # over the probabilities of all tokens, for each width


@dataclass
class _Seen:
    """Inputs [t, k] and gradients at the outputs [t, n] of a matrix, one of each per window."""

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Estimated:
    """``baseline``: loss in nats per token over ``tokens`` predictions; ``kl``: divergences of widths alone."""

    baseline: float
    tokens: int
    kl: Costs

    def to_json(self) -> dict[str, Any]:
        """Return what budget.json says."""
        return {
            "unit": "nats per token",
            "method": "Fisher information, rounding without error feedback",
            "baseline": self.baseline,
            "tokens": self.tokens,
            "modules": [layer.modules for layer in self.kl.layers],
            "embedding": self.kl.embedding,
        }


def estimate_costs(model: Any, windows: Tensor, seed: int, reporter: Reporter) -> Estimated:
    """Estimate the divergence, in nats per token, of every matrix of the float ``model`` at every width.

    ``windows``: int64 token ids [samples, length].  ``seed``: of the draws from the predictions.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    layers = list(model.model.layers)
    named = {(i, m): layer.get_submodule(m) for i, layer in enumerate(layers) for m in MODULES}
    seen: dict[Any, _Seen] = {name: _Seen() for name in (*named, _EMBEDDING)}
    loss = 0.0
    total = len(windows) + len(named) + 1
    with reporter.stage("estimating what fewer bits cost") as update:
        drawn = []
        for number, ids in enumerate(windows):
            update(number, total)
            with _watched(model, named, seen):
                drawn.append(_pass(model, ids, draw))
            loss += drawn[-1].loss
        tokens = sum(len(window.targets) for window in drawn)
        found: dict[Any, dict[int, float]] = {}
        for number, (name, module) in enumerate(named.items(), len(windows)):
            update(number, total)
            found[name] = {
                bits: cost / tokens for bits, cost in _matrix_costs(module, seen[name]).items()
            }
            del seen[name]
        update(total - 1, total)
        embedding = _embedding_costs(model, windows, drawn, seen[_EMBEDDING])
    costs = Costs(
        [
            LayerSensitivity(0.0, {}, None, {}, {m: found[i, m] for m in MODULES})
            for i in range(len(layers))
        ],
        {bits: cost / tokens for bits, cost in embedding.items()},
    )
    return Estimated(loss / tokens, tokens, costs)


def work(facts: ModelFacts, windows: int, length: int) -> Work:
    """Return the work of :func:`estimate_costs` with ``windows`` of ``length`` tokens."""
    c, tokens = facts.config, windows * length
    head = c.vocab_size * c.hidden_size
    embeddings = head * (1 if c.tie_embeddings else 2)
    numbers = sum(
        weights_of(c) * rounding_passes(bits)
        + embeddings * rounding_passes(bits, points=True)
        + tokens * c.vocab_size * _SOFTMAX_PASSES
        for bits in WIDTHS
    )
    # a pass forward and one backward; for each width the error of all outputs, and the logits once more
    return Work(tokens * (2 + len(WIDTHS) * (1 + head / facts.parameters)), numbers)


@dataclass(frozen=True)
class _Window:
    """``states``: inputs of the LM head [t - 1, hidden]; ``targets``: tokens that were drawn [t - 1]; ``loss``: of the
    true next tokens, their sum in nats."""

    states: Tensor
    targets: Tensor
    loss: float


def _pass(model: Any, ids: Tensor, draw: Any) -> _Window:
    """Run a window of ids [t] forward, and log p of drawn tokens backward."""
    import torch

    parameters = list(model.parameters())
    wanted = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(False)
        states = model.model(ids[None].to(model.device)).last_hidden_state[0, :-1]
        log_p = torch.log_softmax(model.lm_head(states).float(), -1)
        with torch.no_grad():
            targets = torch.multinomial(log_p.exp().cpu(), 1, generator=draw)[:, 0]
        log_p.gather(1, targets[:, None].to(log_p.device)).sum().backward()
        true = log_p.detach().gather(1, ids[1:, None].to(log_p.device))
    finally:
        for p, before in zip(parameters, wanted, strict=True):
            p.requires_grad_(before)
    return _Window(states.detach(), targets, -float(true.sum()))


@contextmanager
def _watched(model: Any, named: dict[Any, Any], seen: dict[Any, _Seen]) -> Iterator[None]:
    """Store inputs and gradients of all matrices, and the gradients at the embedding's output, within the context."""
    import torch

    def keep(name: Any) -> Any:
        def hook(_: Any, given: Any, out: Any) -> Any:
            if name == _EMBEDDING:
                out.requires_grad_(True)  # no parameter has a gradient: the graph begins here
            else:
                seen[name].inputs.append(given[0][0].detach().to(torch.bfloat16))
            out.register_hook(lambda g: seen[name].gradients.append(g[0].to(torch.bfloat16)))
            return out

        return hook

    with ExitStack() as hooks:
        for name, module in {**named, _EMBEDDING: model.get_input_embeddings()}.items():
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        yield


def _matrix_costs(module: Any, seen: _Seen) -> dict[int, float]:
    """Return width -> divergence, summed over all positions."""
    import torch

    x = torch.cat(seen.inputs).float()
    g = torch.cat(seen.gradients).float()
    weight = module.weight.detach().float()
    importance = x.square().mean(0).cpu()
    found = {}
    for bits in WIDTHS:
        error = (_rounded(weight.cpu(), importance, bits) - weight.cpu()).to(x.device)
        found[bits] = 0.5 * float(((x @ error.T) * g).sum(1).square().sum())
    return found


def _embedding_costs(
    model: Any, windows: Tensor, drawn: list[_Window], seen: _Seen
) -> dict[int, float]:
    """Return width -> divergence of embedding and LM head, summed over all positions."""
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    before, tied = embedding.weight.data, embedding.weight is head.weight
    plain = torch.ones(before.shape[1])
    states = torch.cat([window.states for window in drawn]).float()
    of_head = states.square().mean(0).cpu()
    found = {}
    for bits in WIDTHS:
        wanted = of_head / of_head.mean() + plain if tied else plain
        own = _rounded(before.float().cpu(), wanted, bits, points=True)
        total = 0.0
        with torch.no_grad():
            for ids, gradient in zip(windows, seen.gradients, strict=True):
                ids = ids.to(before.device)
                plainly = embedding(ids)
                try:
                    embedding.weight.data = own.to(before)
                    change = embedding(ids) - plainly
                finally:
                    embedding.weight.data = before
                total += 0.5 * float((change.float() * gradient.float()).sum(1).square().sum())
            weight = head.weight.float()
            rounded = own if tied else _rounded(weight.cpu(), of_head, bits, points=True)
            error = rounded.to(weight) - weight
            for window in drawn:
                x = window.states.float()
                p = torch.softmax(x @ weight.T, -1)
                change = x @ error.T
                mean = (p * change).sum(1)
                # of the LM head the Fisher information is known: the variance of the logits' changes
                total += 0.5 * float(((p * change.square()).sum(1) - mean.square()).sum())
        found[bits] = total
    return found


def _rounded(weight: Tensor, importance: Tensor, bits: int, *, points: bool = False) -> Tensor:
    """Return ``weight`` [n, k] rounded in groups, without error feedback."""
    size = next(g for g in GROUPS if weight.shape[1] % g == 0)
    top = 2**bits - 1
    out = weight.clone()
    for begin in range(0, weight.shape[1], size):
        part = weight[:, begin : begin + size]
        scale, offset = (fit_points if points else fit_groups)(
            part, importance[begin : begin + size], bits
        )
        q = ((part - offset[:, None]) / scale[:, None]).round_().clamp_(0, top)
        out[:, begin : begin + size] = q * scale[:, None] + offset[:, None]
    return out
