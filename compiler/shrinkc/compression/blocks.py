"""A LLaMA block by block: what stages need that look inside a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shrinkc.core.output import new_file

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


def watched(
    layer: Any, hidden: list[Any], tables: Any, names: tuple[str, ...]
) -> tuple[dict[str, Any], list[Any]]:
    """Second moments XᵀX / tokens of what goes into the modules ``names`` of a block, float64 [inputs, inputs],
    and the states after it.
    """
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            sums[name] = sums[name] + (x.T @ x).double()

        return hook

    handles = [layer.get_submodule(n).register_forward_pre_hook(watch(n)) for n in names]
    after = [block(layer, h, tables) for h in hidden]
    for handle in handles:
        handle.remove()
    tokens = sum(h.shape[0] * h.shape[1] for h in hidden)
    return {name: total / tokens for name, total in sums.items()}, after


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
