"""LLaMA 2 and 3, TinyLlama, SmolLM2, stories: https://arxiv.org/abs/2302.13971."""

from __future__ import annotations

from shrinkc.model.family import ATTENTION, Family

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    gguf="llama",
    gguf_interleaved=True,
    biased=ATTENTION,
    bias_field="attention_bias",
    defaults={"bos_token_id": 1, "eos_token_id": 2},
)
