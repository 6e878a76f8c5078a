"""Attention of a float model with a quantised KV cache of 2 to 8 bits, on the grid of the device's cache.

With 8 bits, keys (after RoPE) and values are rounded symmetrically per position and KV head.  With fewer bits, a
quarter of a key's channels keeps 8 bits; the other channels, and values after a Hadamard rotation, are codes between
the smallest and the largest channel (``Coding`` in numerics/vectors.py, for 4 bits).  A cached value depends neither
on later tokens nor on the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from shrinkc.abi import wide_channels
from shrinkc.core.errors import UsageError
from shrinkc.ir.key_order import TOKENS, most_important, sample_tokens

if TYPE_CHECKING:
    from torch import Tensor

BITS = range(2, 9)
WIDEST = BITS[-1]
RANGE = 240  # of codes, in units of an offset


def check_bits(bits: int | None) -> None:
    """Raise UsageError unless ``bits`` is None or in BITS."""
    if bits is not None and bits not in BITS:
        raise UsageError(
            f"a cache of {bits} bits is not possible.", f"allowed: {BITS[0]} to {BITS[-1]} bits."
        )


def stored_keys(x: Tensor, bits: int, order: Tensor | None) -> Tensor:
    """Return keys [batch, kv_heads, T, head_dim] as the cache holds them.

    ``order`` [kv_heads, head_dim]: the channels, those with 8 bits first; None with 8 bits for all."""
    import torch

    if order is None:
        return _symmetric(x.float()).to(x.dtype)
    where, wide = order[None, :, None, :].expand_as(x), wide_channels(x.shape[-1])
    ordered = x.float().gather(-1, where)
    exact = [_symmetric(ordered[..., :wide])] if wide else []
    stored = torch.cat([*exact, _codes(ordered[..., wide:], bits)], -1)
    return torch.empty_like(stored).scatter_(-1, where, stored).to(x.dtype)


def stored_values(x: Tensor, bits: int) -> Tensor:
    """Return values [..., head_dim] as the cache holds them."""
    wide = x.float()
    found = _symmetric(wide) if bits == WIDEST else _rotated(_codes(_rotated(wide), bits))
    return found.to(x.dtype)


def _symmetric(x: Tensor) -> Tensor:
    """Round [..., n] to 255 equidistant values around 0 per head."""
    step = _positive(x.abs().amax(-1, keepdim=True) / 127)
    return (x / step).round() * step


def _codes(x: Tensor, bits: int) -> Tensor:
    """Round [..., n] to 2**bits equidistant values between each head's minimum, or 0, and maximum, or 0."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    unit, step = (high - low) / RANGE, RANGE / (2**bits - 1)
    divisor = _positive(unit)
    below = (-low / divisor).round().clamp(min=1)
    return (((x / divisor + below) / step).round() * step - below) * unit


def _positive(step: Tensor) -> Tensor:
    return step.where(step > 0, step.new_ones(()))  # a head of equal values


def _rotated(x: Tensor) -> Tensor:
    """Rotate heads [..., head_dim] as ``rotate_heads`` in numerics does; twice is the identity."""
    import torch

    shape, half = x.shape, 1
    size = shape[-1] & -shape[-1]
    while half < size:
        a, b = x.reshape(*shape[:-1], -1, 2, half).unbind(-2)
        x = torch.stack([a + b, a - b], -2).reshape(shape)
        half *= 2
    return x / math.sqrt(size)


def key_orders(model: Any) -> dict[int, Tensor]:
    """Return for each layer the order of key channels [kv_heads, head_dim], chosen as for a compiled model."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: dict[int, Tensor] = {}

    def observe(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        q, k = query[0].double(), key[0].double()
        heads = (q / _positive(q.abs().amax(-1, keepdim=True))).square().sum(1)
        queries = heads.reshape(len(k), -1, k.shape[-1]).sum(1)
        order = most_important(queries.cpu().numpy(), k.square().sum(1).cpu().numpy())
        found[module.layer_idx] = torch.tensor(order, device=key.device)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    before = model.config._attn_implementation
    _use(model, "shrinkc_cache_order", observe)
    count = min(TOKENS, int(model.config.max_position_embeddings))
    ids = torch.tensor(sample_tokens(int(model.config.vocab_size), count), device=model.device)
    with torch.no_grad():
        model.get_decoder()(input_ids=ids[None], use_cache=False)
    model.set_attn_implementation(before)
    return found


def use_cache_of(model: Any, bits: int) -> None:
    """Make ``model`` attend to keys and values rounded to ``bits``, with and without a KV cache."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    orders = {} if bits == WIDEST else key_orders(model)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        keys = stored_keys(key, bits, orders.get(module.layer_idx))
        values = stored_values(value, bits)
        return sdpa_attention_forward(module, query, keys, values, mask, **options)

    _use(model, f"shrinkc_cache_{bits}", attention)


def _use(model: Any, name: str, attention: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
