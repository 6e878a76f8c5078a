"""Mistral 7B and its successors: LLaMA with a sliding window (https://arxiv.org/abs/2310.06825)."""

from __future__ import annotations

from shrinkc.model.family import Family

MISTRAL = Family(
    name="mistral",
    architecture="MistralForCausalLM",
    gguf="llama",  # llama.cpp does not distinguish it
    gguf_interleaved=True,
    windowed=True,
    defaults={
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
