from __future__ import annotations

from typing import Any

import pytest

from shrinkc.core.errors import BadConfig, ShrinkcError, UnsupportedModel
from shrinkc.importer.gptq_config import ModuleFormat, parse_gptq_config

FIELDS: dict[str, Any] = {
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
}


def refusal(error: type[ShrinkcError], **fields: Any) -> str:
    with pytest.raises(error) as caught:
        parse_gptq_config({**FIELDS, **fields}, "config.json")
    return str(caught.value)


def test_plain() -> None:
    config = parse_gptq_config(FIELDS, "config.json")
    assert config.format_of("model.layers.0.mlp.up_proj") == ModuleFormat(4, 128, True)
    assert config.zero_shift == 1
    assert config.default.group(576) == 128
    assert config.default.group(64) == 64
    assert ModuleFormat(4, -1, True).group(576) == 576


def test_fields_of_autogptq() -> None:
    fields = {
        "bits": 4,
        "group_size": 128,
        "damp_percent": 0.1,
        "desc_act": True,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }
    config = parse_gptq_config(fields, "quantize_config.json")
    assert (config.default, config.zero_shift) == (ModuleFormat(4, 128, False), 1)


def test_version_2_stores_zero_points_as_they_are() -> None:
    fields = {**FIELDS, "checkpoint_format": "gptq_v2", "format": "gptq_v2"}
    assert parse_gptq_config(fields, "x").zero_shift == 0
    assert "disagree" in refusal(BadConfig, format="gptq_v2")


def test_rules() -> None:
    dynamic = {
        r"+:.*\.down_proj": {"bits": 8, "damp_percent": 0.1},
        r".*\.0\.mlp\.up_proj": {"group_size": -1, "sym": False},
        r"-:^model\.layers\.1\.": {},
    }
    config = parse_gptq_config({**FIELDS, "dynamic": dynamic}, "x")
    assert config.format_of("model.layers.0.mlp.down_proj") == ModuleFormat(8, 128, True)
    assert config.format_of("model.layers.0.mlp.up_proj") == ModuleFormat(4, -1, False)
    assert config.format_of("model.layers.0.mlp.gate_proj") == ModuleFormat(4, 128, True)
    # exclusions come first, whatever their place
    assert config.format_of("model.layers.1.mlp.down_proj") is None
    # from the start of the name on
    assert config.format_of("model.layers.11.mlp.down_proj") == ModuleFormat(8, 128, True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quant_method": "awq"}, "quant_method = 'awq' (supported: 'gptq', 'shrinkc')"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "load_in_4bit = True"),
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"format": "gptq_p"}, "format = 'gptq_p'"),
        ({"is_marlin_format": True}, "is_marlin_format"),
        ({"pack_dtype": "int16"}, "pack_dtype = 'int16'"),
        ({"rotation": "hadamard"}, "rotation"),
        ({"activation": "int8"}, "activation"),
        ({"bits": 5}, "bits = 5 (supported: 2, 3, 4, 8)"),
        ({"bits": True}, "bits = True"),
        ({"bits": 4.0}, "bits = 4.0"),
        ({"format": ["gptq"]}, "format = ['gptq']"),
        ({"dynamic": {"a": {"bits": 6}}}, "dynamic: 'a': bits = 6"),
        ({"dynamic": {"a": {"new": 6}}}, "dynamic: 'a': new: unknown field"),
        ({"some_new_field": 1}, "unknown field"),
    ],
)
def test_unsupported(fields: dict[str, Any], said: str) -> None:
    text = refusal(UnsupportedModel, **fields)
    assert said in text
    assert "quantise the float model with GPTQModel" in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"group_size": 0}, "group_size = 0"),
        ({"group_size": "128"}, "group_size = '128'"),
        ({"sym": "yes"}, "sym = 'yes'"),
        ({"dynamic": []}, "dynamic = []"),
        ({"dynamic": {"(": {}}}, "not a valid pattern"),
        ({"dynamic": {"a": 4}}, "an object is needed"),
        ({"dynamic": {"a": {"group_size": -2}}}, "dynamic: 'a': group_size = -2"),
    ],
)
def test_bad(fields: dict[str, Any], said: str) -> None:
    assert said in refusal(BadConfig, **fields)


def test_missing_and_everything_at_once() -> None:
    with pytest.raises(BadConfig, match="bits is missing; group_size is missing"):
        parse_gptq_config({"sym": True}, "x")
    text = refusal(UnsupportedModel, quant_method="awq", bits=7, group_size=0)
    assert "awq" in text
    assert "bits = 7" in text
    assert "group_size = 0" in text
