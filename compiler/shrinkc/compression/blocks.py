"""Forward passes of a LLaMA block by block, and statistics of the inputs of a block's matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shrinkc.core.output import new_file
from shrinkc.model import ATTENTION, MLP, NAMES, SLOT_MODULES

# matrices that write to the residual stream, and the norms that read it
WRITERS = (ATTENTION[-1], MLP[-1])
NORMS = ("input_layernorm", "post_attention_layernorm")
# norm -> matrices that read its output
READERS = dict(zip(NORMS, (ATTENTION[:-1], MLP[:-1]), strict=True))
# matrix -> the first matrix with the same inputs
INPUT_OF = {NAMES[m]: NAMES[parts[0]] for parts in SLOT_MODULES.values() for m in parts}
_TINY = 1e-30  # least mean square
BATCH_TOKENS = 1024  # per forward pass: enough to keep a CPU busy with little memory


def batches(windows: Any) -> list[Any]:
    """Split ``windows`` [samples, length] into batches of about BATCH_TOKENS tokens."""
    return list(windows.split(max(1, BATCH_TOKENS // windows.shape[1])))


def embed(model: Any, ids: Any) -> Any:
    """Return the residual stream [batch, t, hidden] before the first block for ``ids`` [batch, t]."""
    return model.model.embed_tokens(ids)


def rope(model: Any, length: int) -> Any:
    """Return RoPE's cos and sin for positions 0 … length − 1, in the form that a block takes."""
    import torch

    embedding = model.model.embed_tokens.weight
    positions = torch.arange(length, device=embedding.device)[None]
    return model.model.rotary_emb(embedding[:1, None], positions)


def block(layer: Any, hidden: Any, cos_sin: Any) -> Any:
    """Return the residual stream after a block; without a mask, SDPA attention is causal."""
    out = layer(hidden, attention_mask=None, position_embeddings=cos_sin)
    return out[0] if isinstance(out, tuple) else out


def token_weights(stream: Any) -> Any:
    """Return the weights of errors per token, 1 / mean square of the residual ``stream`` [..., hidden], float32 [...].

    RMSNorm divides the stream by its size, so an error matters relative to the size of its token.  Without these
    weights, errors of the first token would outweigh all others ("massive activations", Sun et al. 2024).
    """
    return 1 / stream.float().square().mean(-1).clamp_min(_TINY)


def second_moments(
    layer: Any,
    hidden: list[Any],
    cos_sin: Any,
    names: tuple[str, ...],
    *,
    weighted: bool = True,
) -> tuple[dict[str, Any], list[Any]]:
    """Return the second moments XᵀX / tokens of the inputs of the modules ``names``, float64 [inputs, inputs], and the
    block's output.

    ``weighted``: for modules that write to the residual stream, each token counts by the :func:`token_weights` of the
    stream after the addition, and the sum is divided by the sum of these weights.
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
        after.append(block(layer, h, cos_sin))
        for name, (given, made) in seen.items():
            weights = None
            if weighted and name in WRITERS:
                weights = token_weights(after[-1] if name == MLP[-1] else h + made)
            add(name, given, weights)
    for handle in handles:
        handle.remove()
    return {name: total / counted[name] for name, total in sums.items()}, after


def save_block(weights: dict[str, Any], facts: dict[str, Any], file: Path) -> None:
    """Write the tensors of a finished block and the stage's ``facts`` about it, atomically."""
    import torch

    with new_file(file) as state:
        torch.save({"weights": weights, "facts": facts}, state)


def restore_block(layer: Any, file: Path) -> dict[str, Any]:
    """Load the tensors that :func:`save_block` wrote into ``layer``, and return the facts."""
    import torch

    state = torch.load(file, weights_only=True)
    layer.load_state_dict(state["weights"])
    return dict(state["facts"])


def loss_sum(model: Any, hidden: Any, ids: Any) -> Any:
    """Return the sum, in nats, of the losses of all tokens of ``ids`` [batch, t] except the first of each row.

    ``hidden``: the residual stream after the last block.  Logits are float32.
    """
    from torch.nn import functional

    total = 0
    for row, wanted in zip(model.model.norm(hidden), ids, strict=True):
        logits = model.lm_head(row[:-1]).float()
        total = total + functional.cross_entropy(logits, wanted[1:], reduction="sum")
    return total
