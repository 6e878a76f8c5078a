"""Qwen3 (dense): the heads of q and k are normalised before RoPE (https://arxiv.org/abs/2505.09388)."""

from __future__ import annotations

from shrinkc.model.family import ATTENTION, HEAD_NORMS, NORMS, Family
from shrinkc.model.qwen2 import QWEN_HARMLESS, QWEN_NEUTRAL

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf="qwen3",
    gguf_interleaved=False,
    norms=(*NORMS, *HEAD_NORMS),
    biased=ATTENTION,
    bias_field="attention_bias",
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    neutral=QWEN_NEUTRAL,
    harmless=QWEN_HARMLESS,
)
