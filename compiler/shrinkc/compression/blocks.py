"""A LLaMA block by block: what stages need that look inside a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shrinkc.core.output import new_file
from shrinkc.model import ATTENTION, MLP, NAMES, SLOT_MODULES

# the matrices whose results are added to the residual stream, and the norms that read what they are added to
WRITERS = (ATTENTION[-1], MLP[-1])
NORMS = ("input_layernorm", "post_attention_layernorm")
# norm -> the matrices that read the stream through it
READERS = dict(zip(NORMS, (ATTENTION[:-1], MLP[:-1]), strict=True))
# matrix -> the first of those that are given the same inputs
INPUT_OF = {NAMES[m]: NAMES[parts[0]] for parts in SLOT_MODULES.values() for m in parts}
_TINY = 1e-30  # of a mean square
BATCH_TOKENS = 1024  # per forward pass: enough to keep a CPU busy, little enough for its memory


def batches(windows: Any) -> list[Any]:
    """``windows`` [samples, length] in parts of about BATCH_TOKENS tokens, in their order."""
    return list(windows.split(max(1, BATCH_TOKENS // windows.shape[1])))


def embed(model: Any, ids: Any) -> Any:
    """The residual stream [batch, t, hidden] before the first block, of ``ids`` [batch, t]."""
    return model.model.embed_tokens(ids)


def rope(model: Any, length: int) -> Any:
    """cos and sin of positions 0 … length − 1, as a block takes them."""
    import torch

    table = model.model.embed_tokens.weight
    positions = torch.arange(length, device=table.device)[None]
    return model.model.rotary_emb(table[:1, None], positions)


def block(layer: Any, hidden: Any, tables: Any) -> Any:
    """The residual stream after a block; without a mask, SDPA attention is causal."""
    out = layer(hidden, attention_mask=None, position_embeddings=tables)
    return out[0] if isinstance(out, tuple) else out


def token_weights(stream: Any) -> Any:
    """What an error in a token of the residual ``stream`` [..., hidden] counts: 1 / its mean square, [...] in float32.

    The norm that reads the stream divides by its size, so that what is lost matters relative to the token it is lost
    in.  Without this division, the errors of the first token would outweigh all others ("massive activations",
    Sun et al. 2024).
    """
    return 1 / stream.float().square().mean(-1).clamp_min(_TINY)


def watched(
    layer: Any, hidden: list[Any], tables: Any, names: tuple[str, ...], *, relative: bool = True
) -> tuple[dict[str, Any], list[Any]]:
    """Second moments XᵀX of what goes into the modules ``names`` of a block, float64 [inputs, inputs], and the states
    after it.

    Divided by the tokens; ``relative``: of those that write to the residual stream by what all tokens count, each
    with its :func:`token_weights` behind them.
    """
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)
    counted = dict.fromkeys(names, 0.0)
    seen: dict[str, tuple[Any, Any]] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], made: Any) -> None:
            seen[name] = inputs[0], made

        return hook

    def add(name: str, given: Any, weights: Any) -> None:
        x = given.flatten(0, -2).float()
        if weights is not None:
            x = x * weights.flatten().sqrt()[:, None]
        sums[name] = sums[name] + (x.T @ x).double()
        counted[name] += float(len(x) if weights is None else weights.double().sum())

    handles = [layer.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    after = []
    for h in hidden:
        after.append(block(layer, h, tables))
        for name, (given, made) in seen.items():
            weights = None
            if relative and name in WRITERS:
                weights = token_weights(after[-1] if name == MLP[-1] else h + made)
            add(name, given, weights)
    for handle in handles:
        handle.remove()
    return {name: total / counted[name] for name, total in sums.items()}, after


def keep(weights: dict[str, Any], facts: dict[str, Any], file: Path) -> None:
    """Writes the tensors of a block that a stage is through with, and what it found out; ``file`` appears whole."""
    import torch

    with new_file(file) as state:
        torch.save({"weights": weights, "facts": facts}, state)


def restore(layer: Any, file: Path) -> dict[str, Any]:
    """Makes ``layer`` what it was when it was kept; what was found out."""
    import torch

    state = torch.load(file, weights_only=True)
    layer.load_state_dict(state["weights"])
    return dict(state["facts"])


def loss_sum(model: Any, hidden: Any, ids: Any) -> Any:
    """The sum, in nats, of the losses of all tokens of ``ids`` [batch, t] after the first.

    ``hidden`` is the residual stream after the last block.  Logits are float32.
    """
    from torch.nn import functional

    total = 0
    for row, wanted in zip(model.model.norm(hidden), ids, strict=True):
        logits = model.lm_head(row[:-1]).float()
        total = total + functional.cross_entropy(logits, wanted[1:], reduction="sum")
    return total
