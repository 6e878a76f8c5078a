"""Forward passes of a model block by block, and statistics of the inputs of a block's matrices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.checkpoints import family_of_torch
from shrinkc.core.output import new_file
from shrinkc.model import NAMES, SLOT_MODULES, Family

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


@dataclass(frozen=True)
class Positions:
    """What a block of ``family`` needs to know of positions 0 … length − 1, by kind of block (``layer_types`` of the
    config; None if there is one kind).

    ``cos_sin``: RoPE's tables.  ``masks``: bool [1, 1, length, length], true where a position is attended to; None
    for all earlier ones.
    """

    family: Family
    cos_sin: dict[str | None, Any]
    masks: dict[str | None, Any]


def positions(model: Any, length: int) -> Positions:
    """Return the tables of positions 0 … length − 1 for the blocks of ``model``."""
    import torch

    family, config = family_of_torch(model), model.config
    embedding = model.model.embed_tokens.weight
    numbers = torch.arange(length, device=embedding.device)
    cos_sin, masks = dict[str | None, Any](), dict[str | None, Any]()
    for kind in dict.fromkeys(getattr(config, "layer_types", None) or [None]):
        own = (kind,) if family.local_rope else ()
        cos_sin[kind] = model.model.rotary_emb(embedding[:1, None], numbers[None], *own)
        window = config.sliding_window if family.windowed and kind != "full_attention" else None
        masks[kind] = None
        if window is not None and window < length:
            distance = numbers[:, None] - numbers
            masks[kind] = ((distance >= 0) & (distance < window))[None, None]
    return Positions(family, cos_sin, masks)


def block(layer: Any, hidden: Any, tables: Positions) -> Any:
    """Return the residual stream after a block; without a mask, SDPA attention is causal."""
    kind = getattr(layer.self_attn, "layer_type", None)
    out = layer(hidden, attention_mask=tables.masks[kind], position_embeddings=tables.cos_sin[kind])
    return out[0] if isinstance(out, tuple) else out


def norm_weight(norm: Any, family: Family) -> Any:
    """Return the factors of an RMSNorm, which a checkpoint of ``family`` stores without ``norm_offset``."""
    return norm.weight + family.norm_offset if family.norm_offset else norm.weight


def token_weights(stream: Any) -> Any:
    """Return the weights of errors per token, 1 / mean square of the residual ``stream`` [..., hidden], float32 [...].

    RMSNorm divides the stream by its size, so an error matters relative to the size of its token.  Without these
    weights, errors of the first token would outweigh all others ("massive activations", Sun et al. 2024).
    """
    return 1 / stream.float().square().mean(-1).clamp_min(_TINY)


def writer_weights(stream: Any, made: Any, norm: Any = None) -> Any:
    """Return the weights of errors of a matrix per token, [...].  Its output ``made`` [..., hidden] is added to
    ``stream``, after the RMSNorm ``norm`` if there is one; that norm divides an error by the size of ``made``."""
    if norm is None:
        return token_weights(stream + made)
    return token_weights(stream + norm(made)) * token_weights(made)


def second_moments(
    layer: Any,
    hidden: list[Any],
    tables: Positions,
    names: tuple[str, ...],
    *,
    weighted: bool = True,
) -> tuple[dict[str, Any], list[Any]]:
    """Return the second moments XᵀX / tokens of the inputs of the modules ``names``, float64 [inputs, inputs], and the
    block's output.

    ``weighted``: for modules that write to the residual stream, each token counts by its :func:`writer_weights`, and
    the sum is divided by the sum of these weights.
    """
    writers = tables.family.writers
    before = dict(zip(writers, tables.family.readers, strict=True))  # norms that read the stream
    streams: dict[str, Any] = {}
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

    def watch_stream(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            streams[name] = inputs[0]

        return hook

    at = layer.get_submodule
    handles = [at(n).register_forward_hook(watch(n)) for n in names]
    handles += [at(norm).register_forward_pre_hook(watch_stream(n)) for n, norm in before.items()]
    after = []
    for h in hidden:
        after.append(block(layer, h, tables))
        for name, (given, made) in list(seen.items()):
            weights = None
            if weighted and name in writers:
                norm = writers[name]
                weights = writer_weights(streams[name], made, None if norm is None else at(norm))
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
