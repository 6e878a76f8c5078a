"""Compression of small random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_families import write_family
from shrinkc.checkpoints import load
from shrinkc.compression.attention import use_products
from shrinkc.compression.blocks import block, embed, positions

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

pytestmark = pytest.mark.slow

LOCAL, GLOBAL = "sliding_attention", "full_attention"
LENGTH = 32
# with windows shorter than the texts, heads of a size of their own, and biases wherever a family can have them
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 12, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 12, "query_pre_attn_scalar": 24, "tie_word_embeddings": True,
         "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL]},
    ),
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    family, config = FAMILIES[name]
    write_family(folder, family, num_hidden_layers=4, max_position_embeddings=128, **config)
    return folder


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_compute_what_the_model_computes(tmp_path: Path, name: str, products: bool) -> None:
    """RoPE, sliding windows and the scaled embedding, in a window longer than the sliding one."""
    model = load(write(tmp_path, name)).model
    ids = torch.arange(3, 3 + 2 * LENGTH).view(2, LENGTH)
    with torch.no_grad():
        wanted = model(ids).logits
        if products:
            use_products(model)
        hidden, tables = embed(model, ids), positions(model, LENGTH)
        for layer in model.model.layers:
            hidden = block(layer, hidden, tables)
        found = model.lm_head(model.model.norm(hidden))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-3, atol=1e-3)
