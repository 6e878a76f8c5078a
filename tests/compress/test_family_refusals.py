"""What the stages refuse of a family, and the sizes that they predict, from configurations alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shrinkc.compression.facts import float_facts, parameters_of
from shrinkc.compression.preflight import stage_problems
from shrinkc.compression.recipe import parse_recipe
from shrinkc.importer import LlamaConfig
from shrinkc.model import FAMILIES
from shrinkc.model.family import ATTENTION

EVERY_STAGE = {
    "calibration": {"text": ["text.txt"]},
    "vocabulary": {"keep": 200, "length": 16},
    "depth": {"remove": 1, "protect_first": 0, "protect_last": 0},
    "width": {"ffn_keep": 64, "kv_groups": 1},
    "lora": {"length": 16, "samples": 8, "rank": 4},
    "rotate": {},
    "awq": {"group_size": 32},
    "gptq": {"group_size": 32},
    "reconstruct": {"length": 16},
    "finetune_scales": {"length": 16},
    "qat": {"length": 16},
    "eora": {"rank": 4},
}


def config_of(family: str, biased: tuple[str, ...] = ()) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=32, max_position=64, rms_norm_eps=1e-6, rope_theta=1e4, tie_embeddings=True, bos_id=1,
        eos_ids=(2,), family=family, biased=biased,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_that_refuse_a_family(family: str) -> None:
    described = FAMILIES[family]
    problems, chain = stage_problems(
        parse_recipe(EVERY_STAGE), float_facts(config_of(family, described.biased))
    )
    texts = [text for _, text in problems]
    if described.post_norms:
        assert len(texts) == 1
        assert texts[0].startswith(f"[rotate] family {family} cannot be rotated: its norms after")
        assert texts[0].endswith("leave the stage out")
    else:
        assert texts == []
    assert len(chain) == len(EVERY_STAGE)  # the first is the model itself


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_include_norms_of_heads_and_biases(family: str) -> None:
    matrices = 256 * 64 + 3 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 64 * 96)
    norms = {"gemma3_text": 4 * 64 + 2 * 32, "qwen3": 2 * 64 + 2 * 32}.get(family, 2 * 64)
    assert parameters_of(config_of(family)) == matrices + 3 * norms + 64
    if not FAMILIES[family].post_norms:
        biases = 128 + 64 + 64 + 64
        config = config_of(family, ATTENTION)
        assert parameters_of(config) == matrices + 3 * (norms + biases) + 64
        narrow = replace(config, num_heads=2, num_kv_heads=1)
        kept = 64 + 32 + 32 + 64
        smaller = 256 * 64 + 3 * (64 * 128 + 2 * 64 * 32 + 3 * 64 * 96)
        assert parameters_of(narrow) == smaller + 3 * (norms + kept) + 64
