"""Gemma 3 (text): norms around blocks, GELU, and local layers with a window among global ones (https://arxiv.org/abs/2503.19786)."""

from __future__ import annotations

from shrinkc.model.family import HEAD_NORMS, SANDWICH_NORMS, Family

GEMMA3 = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    gguf="gemma3",
    gguf_interleaved=False,
    norms=(*SANDWICH_NORMS, *HEAD_NORMS),
    windowed=True,
    global_every=6,
    local_rope=True,
    norm_offset=1.0,
    gelu=True,
    embedding_scaled=True,
    query_scalar_field="query_pre_attn_scalar",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    neutral={
        "hidden_activation": (("gelu_pytorch_tanh", None), "only GELU by tanh is supported"),
        "use_bidirectional_attention": ((False, None), "attention has to be causal"),
    },
    harmless=frozenset({"cache_implementation"}),
)
