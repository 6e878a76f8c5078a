"""Fields of ``config.json`` that are read, ignored, or must have a neutral value, in all families.

Any other field is refused, because it may affect results: wrong text from a microcontroller is
far harder to notice than a refusal.
"""

from __future__ import annotations

from typing import Any

# Fields that config.py reads into LlamaConfig; families add some (model/family.py).
READ = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
    }
)

# Fields written by transformers that do not affect a forward pass:
# bookkeeping, training, defaults of the generation loop, and labels of other tasks.
# fmt: off
HARMLESS = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled",
    "_model_name_or_path", "_name_or_path", "attention_dropout", "attn_implementation", "bad_words_ids",
    "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "custom_pipelines", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "experts_implementation",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder",
    "label2id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers.js_config", "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache",
})
# fmt: on

_OFF: tuple[Any, ...] = (False, None)
_ONE: tuple[Any, ...] = (1, None)

# field -> (values without effect, meaning of any other value)
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": (_OFF, "biases on the attention projections are not supported"),
    "mlp_bias": (_OFF, "biases on the MLP projections are not supported"),
    "hidden_act": (("silu", "swish", None), "only the silu activation is supported"),
    "sliding_window": ((None,), "sliding-window attention is not supported"),
    "use_sliding_window": (_OFF, "sliding-window attention is not supported"),
    "pretraining_tp": (_ONE, "tensor-parallel slicing changes the result; only 1 is supported"),
    "quantization_config": ((None,), "this is a quantised checkpoint, a float one is needed"),
    "compression_config": ((None,), "compressed-tensors checkpoints are not supported"),
    "partial_rotary_factor": (_ONE, "rotating only a part of each head is not supported"),
    "rope_interleaved": (_OFF, "interleaved RoPE pairs are not supported"),
    "embedding_multiplier": (_ONE, "embedding multipliers are not supported"),
    "residual_multiplier": (_ONE, "residual multipliers are not supported"),
    "attention_multiplier": ((None,), "attention multipliers are not supported"),
    "logits_scaling": (_ONE, "logit scaling is not supported"),
    "logit_scale": (_ONE, "logit scaling is not supported"),
    "attn_logit_softcapping": ((None,), "soft-capped logits are not supported"),
    "final_logit_softcapping": ((None,), "soft-capped logits are not supported"),
    "is_encoder_decoder": (_OFF, "only decoder-only models are supported"),
    "add_cross_attention": (_OFF, "cross-attention is not supported"),
    "pruned_heads": (({}, [], None), "pruned heads are not supported"),
    "auto_map": ((None,), "the model runs its own code, which cannot be checked"),
    "is_llama_config": ((True, None), "the file says that this is not a LLaMA model"),
}

# Fields of `rope_scaling` / `rope_parameters` for each supported type, in addition to the type.
_ROPE = frozenset({"rope_theta", "partial_rotary_factor", "factor"})
_BAND = frozenset({"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
ROPE_FIELDS = {"default": _ROPE, "linear": _ROPE, "llama3": _ROPE | _BAND}
