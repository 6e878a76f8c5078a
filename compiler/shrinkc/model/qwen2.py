"""Qwen2 and Qwen2.5: q, k and v have biases (https://arxiv.org/abs/2407.10671)."""

from __future__ import annotations

from shrinkc.model.family import QKV, Family

_OFF = (False, None)
QWEN_NEUTRAL = {
    "use_sliding_window": (_OFF, "sliding-window attention is not supported"),
    "use_mrope": (_OFF, "positions of several dimensions are not supported"),
}
# they apply only to layers with use_sliding_window
QWEN_HARMLESS = frozenset({"sliding_window", "max_window_layers"})

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf="qwen2",
    gguf_interleaved=False,
    biased=QKV,
    defaults={"num_key_value_heads": 32, "bos_token_id": None, "eos_token_id": None},
    neutral=QWEN_NEUTRAL,
    harmless=QWEN_HARMLESS | {"attention_bias"},  # never read: the biases always exist
)
