from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import BadConfig, UnsupportedModel
from shrinkc.importer import Llama3RopeScaling, load_config, parse_config
from shrinkc.model import LinearRopeScaling

MINIMAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# the fields that transformers 5 writes for a LlamaConfig, and those of SmolLM2
FULL: dict[str, Any] = {
    **MINIMAL,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "chunk_size_feed_forward": 0,
    "dtype": "bfloat16",
    "eos_token_id": [2, 3],
    "head_dim": 4,
    "hidden_act": "silu",
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "is_encoder_decoder": False,
    "is_llama_config": True,
    "label2id": {"LABEL_0": 0},
    "mlp_bias": False,
    "num_key_value_heads": 2,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "problem_type": None,
    "return_dict": True,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "5.0.0",
    "use_cache": True,
    "_name_or_path": "x",
}


def refusal(error: type[Exception], **fields: Any) -> str:
    raw = {**MINIMAL, **fields}
    with pytest.raises(error) as caught:
        parse_config({name: value for name, value in raw.items() if value != "REMOVE"})
    return str(caught.value)


def test_defaults_are_those_of_transformers() -> None:
    config = parse_config(MINIMAL)
    assert (config.num_kv_heads, config.head_dim) == (4, 4)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 1e4, None)
    assert (config.tie_embeddings, config.bos_id, config.eos_ids) == (False, 1, (2,))


def test_everything_that_transformers_writes() -> None:
    config = parse_config(FULL)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (100, 16, 24)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.head_dim, config.max_position) == (4, 64)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 5e5)
    assert (config.tie_embeddings, config.bos_id, config.eos_ids) == (True, 1, (2, 3))


# --- RoPE --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 500000, "rope_scaling": {**LLAMA3, "type": "llama3"}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": LLAMA3},
    ],
)
def test_llama3_scaling_old_and_new_style(fields: dict[str, Any]) -> None:
    config = parse_config({**MINIMAL, **fields})
    assert config.rope_theta == 5e5
    assert config.rope_scaling == Llama3RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_linear_scaling(key: str) -> None:
    config = parse_config({**MINIMAL, "rope_scaling": {key: "linear", "factor": 8}})
    assert config.rope_scaling == LinearRopeScaling(8.0)
    assert "rope_scaling.factor is missing" in refusal(BadConfig, rope_scaling={key: "linear"})
    text = refusal(UnsupportedModel, rope_scaling={key: "linear", "factor": 8, "beta_fast": 2})
    assert "rope_scaling.beta_fast = 2" in text


@pytest.mark.parametrize("value", [None, {}, {"type": "default"}, {"rope_type": "default"}])
def test_no_scaling(value: Any) -> None:
    assert parse_config({**MINIMAL, "rope_scaling": value}).rope_scaling is None


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope", "mrope", 3])
@pytest.mark.parametrize("where", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_other_scalings_are_refused_by_name(kind: Any, where: str, key: str) -> None:
    text = refusal(UnsupportedModel, **{where: {key: kind, "factor": 2.0}})
    assert f"{where}: rope_type = {kind!r}" in text and "llama3" in text


def test_rope_per_layer_type_is_refused() -> None:
    assert "full_attention" in refusal(
        UnsupportedModel, rope_parameters={"full_attention": {"rope_theta": 1e4}}
    )


def test_rope_contradictions() -> None:
    text = refusal(BadConfig, rope_theta=1e4, rope_parameters={"rope_theta": 5e5})
    assert "rope_theta = 10000.0, rope_parameters.rope_theta = 500000.0" in text
    text = refusal(BadConfig, rope_scaling={"type": "default"}, rope_parameters=LLAMA3)
    assert "RoPE scalings disagree" in text


def test_incomplete_llama3_lists_every_field() -> None:
    text = refusal(BadConfig, rope_scaling={"rope_type": "llama3", "factor": "8"})
    for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        assert f"rope_scaling.{name} is missing" in text
    assert "rope_scaling.factor = '8'" in text


def test_llama3_band_must_not_be_empty() -> None:
    text = refusal(BadConfig, rope_scaling={**LLAMA3, "high_freq_factor": 1.0})
    assert "low_freq_factor = 1.0 has to be less than high_freq_factor = 1.0" in text


# --- refused because the mathematics would differ ----------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mlp_bias", True, "biases on the MLP"),
        ("hidden_act", "gelu", "silu"),
        ("sliding_window", 4096, "sliding-window"),
        ("pretraining_tp", 2, "only 1"),
        ("quantization_config", {"bits": 4}, "a float one is needed"),
        ("partial_rotary_factor", 0.5, "a part of each head"),
        ("rope_interleaved", True, "interleaved"),
        ("embedding_multiplier", 12.0, "embedding multipliers"),
        ("residual_multiplier", 0.22, "residual multipliers"),
        ("logits_scaling", 8.0, "logit scaling"),
        ("logit_scale", 0.5, "logit scaling"),
        ("attention_multiplier", 1.0, "attention multipliers"),
        ("auto_map", {"AutoModel": "x.Y"}, "own code"),
        ("add_cross_attention", True, "cross-attention"),
        ("pruned_heads", {"0": [1]}, "pruned heads"),
        ("layer_types", ["sliding_attention"], "full_attention"),
        ("use_qk_norm", True, "unknown field"),
        ("some_future_field", None, "unknown field"),
        ("architectures", ["MistralForCausalLM"], "LlamaForCausalLM"),
        ("architectures", ["LlamaModel"], "LlamaForCausalLM"),
        ("model_type", "qwen2", "'llama'"),
    ],
)
def test_refused_fields(field: str, value: Any, said: str) -> None:
    text = refusal(UnsupportedModel, **{field: value})
    assert f"{field} = {value!r}" in text
    assert said in text


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": None},
        {"quantization_config": None},
        {"partial_rotary_factor": 1.0},
        {"embedding_multiplier": 1.0},
        {"pretraining_tp": None},
        {"layer_types": ["full_attention", "full_attention"]},
        {"pruned_heads": {}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}},
    ],
)
def test_neutral_values_are_accepted(fields: dict[str, Any]) -> None:
    parse_config({**MINIMAL, **fields})


def test_all_problems_at_once() -> None:
    text = refusal(
        UnsupportedModel,
        mlp_bias=True,
        hidden_act="relu",
        use_qk_norm=True,
        rope_scaling={"type": "yarn"},
        hidden_size=0,
        num_key_value_heads=3,
    )
    assert "6 problems" in text
    for part in ("mlp_bias", "hidden_act", "use_qk_norm", "yarn", "hidden_size = 0"):
        assert part in text
    assert "num_attention_heads = 4 is not a multiple of num_key_value_heads = 3" in text


def test_long_values_are_shortened() -> None:
    assert len(refusal(UnsupportedModel, mystery="x" * 10_000)) < 400


# --- contradictions and wrong values -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", ["REMOVE", None, 0, -1, 2.5, "16", True, [], 1 << 40])
def test_sizes(name: str, value: Any) -> None:
    text = refusal(BadConfig, **{name: value})
    assert name in text
    assert "is missing" in text if value in ("REMOVE", None) else repr(value) in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0"),
        ({"num_key_value_heads": 8}, "not a multiple of num_key_value_heads = 8"),
        ({"head_dim": 5}, "head_dim = 5; RoPE needs an even head dimension"),
        ({"head_dim": 0}, "head_dim = 0"),
        ({"hidden_size": 20}, "hidden_size / num_attention_heads = 20 / 4 = 5"),
        ({"hidden_size": 18}, "hidden_size = 18 is not a multiple of num_attention_heads = 4"),
        ({"vocab_size": 1 << 30}, "vocab_size = 1073741824; 1 to 16777216 is allowed"),
        ({"num_hidden_layers": 1025}, "num_hidden_layers = 1025; 1 to 1024 is allowed"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0; 1.17549435e-38 to 0.0078125 is allowed"),
        ({"rms_norm_eps": 1e308}, "rms_norm_eps = 1e+308; 1.17549435e-38 to 0.0078125 is allowed"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05; "),
        ({"rms_norm_eps": 5e-324}, "rms_norm_eps = 5e-324; "),
        ({"rms_norm_eps": 0.0079}, "rms_norm_eps = 0.0079; "),
        ({"rms_norm_eps": "NaN"}, "rms_norm_eps = 'NaN'; a number is needed"),
        ({"rope_theta": 1e30}, "rope_theta = 1e+30; 1 to 1e+12 is allowed"),
        ({"rope_theta": 5e-324}, "rope_theta = 5e-324; 1 to 1e+12 is allowed"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta = 0; 1 to"),
        ({"rope_scaling": {**LLAMA3, "factor": 1e308}}, "factor = 1e+308; 1 to 1000000 is"),
        ({"rope_scaling": {**LLAMA3, "factor": 5e-324}}, "rope_scaling.factor = 5e-324; 1 to"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "low_freq_factor = 0; 0.001 to"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1e30}}, "high_freq_factor = 1e+30; "),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1e300}},
            "original_max_position_embeddings = 1e+300; 1 to",
        ),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5'"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0"),
        ({"rope_theta": 10**400}, "rope_theta = 1000"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"bos_token_id": 100}, "bos_token_id = 100; 0 to 99 is allowed"),
        ({"bos_token_id": "1"}, "bos_token_id = '1'"),
        ({"eos_token_id": [2, -1]}, "eos_token_id = -1; 0 to 99 is allowed"),
        ({"eos_token_id": [2.0]}, "eos_token_id = 2.0"),
        ({"architectures": None, "model_type": None}, "both missing"),
    ],
)
def test_contradictions(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(BadConfig, **fields)


def test_values_without_end_are_shortened() -> None:
    for name in ("hidden_size", "rms_norm_eps", "rope_theta", "bos_token_id"):
        text = refusal(BadConfig, **{name: 10**400})
        assert f"{name} = 1000" in text and len(text) < 300


def test_head_dim_need_not_divide_hidden() -> None:
    config = parse_config({**MINIMAL, "hidden_size": 18, "head_dim": 6})
    assert (config.hidden_size, config.head_dim) == (18, 6)


# --- token ids and files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, {}, (2,)),
        ([2, 7, 2], {}, (2, 7)),
        (None, {}, ()),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (2, {"eos_token_id": 9}, (9,)),
        (2, {"eos_token_id": None, "temperature": 0.6}, (2,)),
    ],
)
def test_eos_ids(config_eos: Any, generation: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert parse_config({**MINIMAL, "eos_token_id": config_eos}, generation).eos_ids == expected


def test_no_bos() -> None:
    assert parse_config({**MINIMAL, "bos_token_id": None}).bos_id is None


def test_generation_config_is_read_from_the_directory(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    assert load_config(tmp_path).eos_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 50]}))
    assert load_config(tmp_path).eos_ids == (2, 50)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 107}))
    with pytest.raises(BadConfig, match=r"generation_config\.json: eos_token_id = 107; 0 to 106"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "line 1, column 8"),
        (b"[]", "a JSON list"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable"),
    ],
)
def test_unreadable_config(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(BadConfig) as caught:
        load_config(tmp_path)
    assert said in str(caught.value) and "config.json" in str(caught.value)
