"""Attention with a quantised KV cache of 2 to 8 bits.

Keys (after RoPE) and values are rounded per position and KV head, each with its own scale, like the device's 8-bit
cache.  An offset is added, which low bit-widths need.  A cached value depends neither on later tokens nor on the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shrinkc.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

BITS = range(2, 9)


def check_bits(bits: int | None) -> None:
    """Raise UsageError unless ``bits`` is None or in BITS."""
    if bits is not None and bits not in BITS:
        raise UsageError(
            f"a cache of {bits} bits is not possible.", f"allowed: {BITS[0]} to {BITS[-1]} bits."
        )


def rounded(x: Tensor, bits: int) -> Tensor:
    """Return ``x`` [..., head_dim] rounded to 2**bits equidistant values between each head's minimum and maximum.

    Computed in float32; the result has the dtype of ``x``."""
    wide = x.float()
    low = wide.amin(-1, keepdim=True)
    step = (wide.amax(-1, keepdim=True) - low) / (2**bits - 1)
    step = step.where(step > 0, step.new_ones(()))  # a head of equal values
    return (((wide - low) / step).round() * step + low).to(x.dtype)


def use_cache_of(model: Any, bits: int) -> None:
    """Make ``model`` attend to keys and values rounded to ``bits``, with and without a KV cache."""
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
