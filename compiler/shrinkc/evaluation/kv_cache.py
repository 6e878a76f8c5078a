"""Attention with a KV cache of few bits.

Keys (after RoPE) and values are rounded per position and KV head, each with its own scale, like the device's 8-bit
cache; here with an offset too, which few bits need.  A cached value depends neither on later tokens nor on the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shrinkc.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

BITS = range(2, 9)


def check_bits(bits: int | None) -> None:
    """Raises UsageError where a cache of ``bits`` is not possible."""
    if bits is not None and bits not in BITS:
        raise UsageError(
            f"a cache of {bits} bits is not possible.", f"allowed: {BITS[0]} to {BITS[-1]} bits."
        )


def rounded(x: Tensor, bits: int) -> Tensor:
    """``x`` [..., head_dim] on a grid of 2**bits values from the least to the largest of each head, which are
    on it: no value moves by more than half a step, but for the rounding of its dtype.  Computed in float32."""
    wide = x.float()
    low = wide.amin(-1, keepdim=True)
    step = (wide.amax(-1, keepdim=True) - low) / (2**bits - 1)
    step = step.where(step > 0, step.new_ones(()))  # a head of equal values
    return (((wide - low) / step).round() * step + low).to(x.dtype)


def use_cache_of(model: Any, bits: int) -> None:
    """Makes a model attend to rounded keys and values from here on, whether it keeps them or not."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        keys, values = rounded(key, bits), rounded(value, bits)
        return sdpa_attention_forward(module, query, keys, values, mask, **options)

    name = f"shrinkc_cache_{bits}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
