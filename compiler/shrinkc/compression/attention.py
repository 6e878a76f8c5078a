"""Causal attention by two matrix products, for training on a CPU and for generation with a KV cache.

On a CPU it is about twice as fast as SDPA's flash kernel, whose backward pass has no fast bfloat16 path.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

NAME = "shrinkc_products"


def use_products(model: Any) -> None:
    """Make a model use this attention; it has to be called without a mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Any, None]:
    """Compute attention: ``query`` [batch, heads, t, d], ``key`` and ``value`` [batch, kv_heads, keys, d] -> [batch,
    t, heads, d].

    All query heads of a KV head are rows of one product, so keys are not copied.  ``keys`` equals t, or t is 1.
    ``sliding_window``: number of positions that a token attends to, its own included; None for all.
    """
    import torch

    batch, heads, length, width = query.shape
    window = options.get("sliding_window")
    if window is not None and length == 1:
        key, value = key[:, :, -window:], value[:, :, -window:]
    groups, count = key.shape[1:3]
    rows = query.reshape(batch * groups, heads // groups * length, width)
    keys = key.reshape(batch * groups, count, width)
    values = value.reshape(batch * groups, count, width)
    mask = _mask(length, heads // groups, rows.dtype, rows.device, window)
    scale = options.get("scaling") or width**-0.5
    scores = torch.baddbmm(mask.expand(len(rows), -1, -1), rows, keys.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, -1), values)
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=4)
def _mask(length: int, heads: int, dtype: Any, device: Any, window: int | None) -> Any:
    """Return the causal mask [heads · length, length]: -inf for later positions and those before the window, else 0."""
    import torch

    one = torch.full((length, length), -torch.inf, dtype=dtype, device=device)
    masked = one.triu(1)
    if window is not None:
        masked += one.tril(-window)
    return masked.repeat(heads, 1)
