"""Every family, in every form it comes in, gives transformers' logits; what is not supported is
refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import forward
from helpers.layer import MODULES, PARTS
from helpers.tiny_families import (
    SIZES,
    logits_of,
    write_family,
    write_family_gguf,
    write_family_gptq,
)
from shrinkc.core.errors import ShapeMismatch, ShrinkcError, UnsupportedModel
from shrinkc.importer import load_config, load_model, open_checkpoint, parse_config
from shrinkc.model import (
    FAMILIES,
    FIELDS,
    NAMES,
    SLOT_MODULES,
    family_of,
    layer_shapes,
    norm_shapes,
)
from shrinkc.model.llama import LLAMA

TOKENS = [1, 40, 41, 42, 7, 7, 90, 287]
# case -> family and what its config has beyond the usual
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 64}),
    "mistral-no-window": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 3, "query_pre_attn_scalar": 32, "num_hidden_layers": 7},
    ),
    "gemma3-tied": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biases": (
        "qwen3",
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "llama-linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "gemma3-linear-rope": (
        "gemma3_text",
        {
            "head_dim": 32,
            "sliding_window": 3,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}
FORMS = ("hf", "gptq", "gguf")


def test_what_a_layer_consists_of() -> None:
    """Names, shapes and what is fused, against the tests' own table; Qwen3 adds norms of heads."""
    sizes = dict(zip(("hidden", "ffn", "q", "kv", "head"), (48, 80, 60, 20, 10), strict=True))
    sized = replace(
        parse_config(fields("llama")), hidden_size=48, intermediate_size=80, num_heads=6,
        num_kv_heads=2, head_dim=10, num_layers=1,
    )  # fmt: skip
    assert (FIELDS, NAMES, SLOT_MODULES) == (
        {module: part.field for module, part in MODULES.items()},
        {module: part.name for module, part in MODULES.items()},
        {
            slot: tuple(module for module, part in MODULES.items() if part.slot == slot)
            for slot in ("qkv", "o", "gate_up", "down")
        },
    )
    heads = {"self_attn.q_norm", "self_attn.k_norm"}
    for family in FAMILIES.values():
        config = replace(sized, family=family.name)
        assert layer_shapes(config) == {
            part.name: (sizes[part.rows], sizes[part.inputs]) for part in MODULES.values()
        }
        norms = {part.name: (sizes[part.inputs],) for part in PARTS if not part.slot}
        if family.name == "qwen3":
            norms |= dict.fromkeys(heads, (10,))
        if family.name == "gemma3_text":
            norms |= dict.fromkeys(heads, (10,))
            norms |= {f"{at}_feedforward_layernorm": (48,) for at in ("pre", "post")}
        named = {f"model.layers.0.{name}": shape for name, shape in norms.items()}
        assert norm_shapes(config) == {**named, "model.norm": (48,)}


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def write(folder: Path, name: str, form: str) -> tuple[Path, Any]:
    """Return a checkpoint and the equivalent transformers model."""
    family, config = CASES[name]
    model = write_family(folder / "hf", family, **config)
    if form == "gptq":
        return folder / "gptq", write_family_gptq(folder / "gptq", folder / "hf", model)
    if form == "gguf":
        return folder / "m.gguf", write_family_gguf(folder / "m.gguf", family, model)
    return folder / "hf", model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str, form: str) -> None:
    path, model = write(tmp_path, name, form)
    ours = load_model(path)
    got, want = forward(ours, TOKENS), logits_of(model, TOKENS)
    assert relative_error(got, want) < 1e-4
    assert open_checkpoint(path, whole=True).config == ours.config
    # and what makes the family is in it: without, the logits are others
    for layer in ours.layers:
        layer.biases = {}
        layer.q_norm = layer.k_norm = None
    special = ours.config.biased or family_of(ours.config).head_norms
    assert bool(special) == (relative_error(forward(ours, TOKENS), want) > 1e-2)


def test_the_tokenizer_of_a_qwen(tmp_path: Path) -> None:
    """Both files give equal ids, and the program has all parts of it."""
    model = write_family(tmp_path / "hf", "qwen2")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    write_family_gguf(tmp_path / "m.gguf", "qwen2", model)
    first, second = (load_model(tmp_path / name).tokenizer for name in ("hf", "m.gguf"))
    text = "the hour is 1234, in\n\nall'll"
    assert first.encode(text) == second.encode(text)
    assert first.encode(text)[0] != 1
    assert not first.encode_table().refusal


# --- configurations ----------------------------------------------------------------------


def fields(family: str, **changed: Any) -> dict[str, Any]:
    spec = FAMILIES[family]
    return {**SIZES, "model_type": family, "architectures": [spec.architecture], **changed}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    """A missing field has transformers' default."""
    transformers = pytest.importorskip("transformers")

    from helpers.tiny_families import CLASSES

    left_out = ("num_key_value_heads", "bos_token_id", "eos_token_id", "tie_word_embeddings")
    given = {k: v for k, v in SIZES.items() if k not in left_out}
    given |= {"num_attention_heads": 32, "hidden_size": 512}
    theirs = getattr(transformers, CLASSES[family][0])(**given)
    ours = parse_config({**given, "model_type": family})
    assert ours.family == family
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 512 // 32)
    assert (ours.bos_id, ours.eos_ids) == (
        theirs.bos_token_id,
        () if theirs.eos_token_id is None else (theirs.eos_token_id,),
    )
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    ropes = theirs.rope_parameters
    if FAMILIES[family].local_rope:
        assert ours.local_rope_theta == ropes["sliding_attention"]["rope_theta"]
        ropes = ropes["full_attention"]
    assert ours.rope_theta == ropes["rope_theta"]
    assert ours.query_scalar == getattr(theirs, "query_pre_attn_scalar", None)
    kinds = theirs.layer_types if FAMILIES[family].global_every else []
    assert ours.global_layers == tuple(
        i for i, kind in enumerate(kinds) if kind == "full_attention"
    )
    window = theirs.sliding_window if FAMILIES[family].windowed else None
    assert ours.sliding_window == window


@pytest.mark.parametrize(
    ("family", "changed", "said"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True: sliding-window"),
        ("qwen2", {"use_mrope": True}, "use_mrope = True"),
        ("qwen2", {"layer_types": ["sliding_attention"]}, "only full_attention"),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True: sliding-window"),
        ("qwen3", {"model_type": "qwen3_moe", "num_experts": 8}, "model_type = 'qwen3_moe'"),
        ("mistral", {"attention_bias": True}, "attention_bias = True: biases"),
        ("mistral", {"layer_types": ["sliding_attention"]}, "only full_attention"),
        ("gemma3_text", {"hidden_activation": "silu"}, "only GELU by tanh"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "soft-capped logits"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention has to be causal"),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}},
            "rope_type = 'dynamic'",
        ),
        ("llama", {"sliding_window": 128}, "sliding_window = 128: sliding-window"),
        ("llama", {"model_type": "qwen2_moe"}, "model_type = 'qwen2_moe'"),
        ("llama", {"architectures": ["Qwen2ForCausalLM"]}, "is that of model_type = 'qwen2', but"),
    ],
)
def test_refused_by_name(family: str, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        parse_config(fields(family, **changed))
    assert said in str(refused.value)
    assert refused.value.exit_code == 11


_TRAINED = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
}
# config.json as it was published
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen2.5-0.5B-Instruct": (
        {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "bos_token_id": 151643,
            "eos_token_id": 151645, "hidden_size": 896, "intermediate_size": 4864,
            "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 14,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
            "use_sliding_window": False, "vocab_size": 151936,
        },
        {"family": "qwen2", "head_dim": 64, "sliding_window": None, "eos_ids": (151645,)},
    ),
    "Qwen3-0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
            "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_size": 1024,
            "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
            "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
            "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "transformers_version": "4.51.0", "use_sliding_window": False, "vocab_size": 151936,
        },
        {"family": "qwen3", "head_dim": 128, "biased": (), "rope_theta": 1e6},
    ),
    "gemma-3-270m": (
        {
            "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
            "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1,
            "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 640, "initializer_range": 0.02, "intermediate_size": 2048,
            "layer_types": [*(5 * ["sliding_attention"]), "full_attention"] * 3,
            "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
            "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0, "rope_scaling": None,
            "rope_theta": 1000000.0, "sliding_window": 512, "torch_dtype": "bfloat16",
            "transformers_version": "4.55.0.dev0", "use_bidirectional_attention": False, "use_cache": True,
            "vocab_size": 262144,
        },
        {"family": "gemma3_text", "sliding_window": 512, "global_layers": (5, 11, 17), "tie_embeddings": True,
         "local_rope_theta": 1e4, "query_scalar": 256.0},
    ),
    "Mistral-7B-v0.1": (
        {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1,
            "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
            "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0", "vocab_size": 32000,
        },
        {"family": "mistral", "head_dim": 128, "sliding_window": 4096, "biased": ()},
    ),
}  # fmt: skip


def test_where_gemma_says_its_layers() -> None:
    """transformers 4 and 5, and both fields of its first version."""
    old = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "num_hidden_layers": 7}
    config = parse_config(fields("gemma3_text", **old, sliding_window_pattern=3))
    assert config.global_layers == (2, 5)
    assert (config.rope_theta, config.local_rope_theta) == (5e5, 2e4)
    assert parse_config(fields("gemma3_text", **old, _sliding_window_pattern=7)).global_layers == (
        6,
    )
    assert parse_config(fields("gemma3_text", **old)).global_layers == (5,)
    for wrong in (["full_attention"], ["full_attention", "chunked_attention"], "full"):
        with pytest.raises(ShrinkcError, match="layer_types = .*; 2 of full_attention and sliding"):
            parse_config(fields("gemma3_text", layer_types=wrong))
    with pytest.raises(ShrinkcError, match="query_pre_attn_scalar = 0; 1 to"):
        parse_config(fields("gemma3_text", query_pre_attn_scalar=0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str) -> None:
    raw, expected = PUBLISHED[name]
    config = parse_config({**_TRAINED, **raw})
    assert {key: getattr(config, key) for key in expected} == expected


def test_a_field_that_is_no_switch() -> None:
    with pytest.raises(ShrinkcError, match="attention_bias = 'yes'; true or false is needed"):
        parse_config(fields("llama", attention_bias="yes"))
    with pytest.raises(ShrinkcError, match="sliding_window = 0; 1 to"):
        parse_config(fields("mistral", sliding_window=0))


def test_what_qwen_never_reads_is_accepted() -> None:
    config = parse_config(
        fields("qwen2", use_sliding_window=False, sliding_window=32768, max_window_layers=21)
    )
    assert config.sliding_window is None
    assert config.biased == tuple(f"self_attn.{x}" for x in SLOT_MODULES["qkv"])


def test_a_missing_bias(tmp_path: Path) -> None:
    """Of a Qwen2: its config does not tell of biases, but they belong to it."""
    write_family(tmp_path / "hf", "llama")
    file = tmp_path / "hf" / "config.json"
    changed = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    raw = {k: v for k, v in json.loads(file.read_text()).items() if "_bias" not in k}
    raw.pop("pretraining_tp", None)
    file.write_text(json.dumps({**raw, **changed}))
    with pytest.raises(ShapeMismatch, match=r"missing model.layers.0.self_attn.q_proj.bias \[64\]"):
        load_model(tmp_path / "hf")


def test_a_mistral_from_gguf_keeps_its_window(tmp_path: Path) -> None:
    """llama.cpp writes the architecture llama and the sliding window."""
    model = write_family(tmp_path / "hf", "mistral")
    key = "llama.attention.sliding_window"
    write_family_gguf(tmp_path / "m.gguf", "mistral", model, metadata={key: 48})
    config = load_config(tmp_path / "m.gguf")
    assert (config.family, config.sliding_window) == ("mistral", 48)
    write_family_gguf(tmp_path / "z.gguf", "mistral", model, metadata={key: 0})
    assert load_config(tmp_path / "z.gguf").sliding_window is None


def test_a_windowed_qwen_from_gguf_is_refused(tmp_path: Path) -> None:
    model = write_family(tmp_path / "hf", "qwen2")
    key = "qwen2.attention.sliding_window"
    write_family_gguf(tmp_path / "m.gguf", "qwen2", model, metadata={key: 48})
    with pytest.raises(UnsupportedModel, match="sliding-window"):
        load_config(tmp_path / "m.gguf")


def test_a_family_checks_itself() -> None:
    with pytest.raises(ValueError, match=r"slots are not SLOTS.*a bias is of no module"):
        replace(LLAMA, modules=LLAMA.modules[:-1], biased=("self_attn.x_proj",))
