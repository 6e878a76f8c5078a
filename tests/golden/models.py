"""The pinned models of this folder, and how they are compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.tiny_gptq import tiny_gptq
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.progress import Silent
from shrinkc.driver.compiling import compile_model
from shrinkc.driver.plan_request import PlanRequest

STORIES = Path(__file__).parents[2] / "examples" / "stories"


@dataclass(frozen=True)
class Pinned:
    """The options of a compilation, and what writes the model at a path; None: examples/stories."""

    options: dict[str, Any]
    write: Callable[[Path], object] | None = None


def compile_pinned(name: str, folder: Path) -> Path:
    """Compile a model of :data:`MODELS` below the existing ``folder``; the compiled directory."""
    pinned, model = MODELS[name], STORIES
    if pinned.write is not None:
        model = folder / name
        pinned.write(model)
    request = PlanRequest(model, **pinned.options)
    compile_model(request, folder / "out", force=False, reporter=Silent())
    return folder / "out"


def mixed_gptq(path: Path) -> None:
    """Act-order, an 8-bit and a float module, a low-rank adapter: every table that model.c can have."""
    tiny_gptq(
        path, group=16, sym=False, desc_act="shared", eora_rank=3, embedding_bits=8, layers=2,
        module_bits={"model.layers.1.mlp.up_proj": 8}, skip=("model.layers.0.self_attn.o_proj",),
        seed=3,
    )  # fmt: skip


def odd_groups(path: Path) -> None:
    """Sizes that neither words nor groups divide, and a head of its own."""
    write_tiny_llama(
        path, hidden=60, intermediate=130, layers=3, heads=6, kv_heads=3, head_dim=10,
        vocab=2600, tied=False, tokenizer="bytelevel", seed=5,
    )  # fmt: skip


def qwen3(path: Path) -> None:
    """Qwen3: RMSNorm of every head of q and k."""
    rng = np.random.default_rng(11)
    norms = {
        f"model.layers.{layer}.self_attn.{name}_norm.weight": _around(rng, 16, 1, 0.3)
        for layer in range(2)
        for name in "qk"
    }
    _family(path, "Qwen3ForCausalLM", norms, head_dim=16)


def qwen2(path: Path) -> None:
    """Qwen2: biases of q, k and v as large as what they are added to."""
    rng = np.random.default_rng(12)
    biases = {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": _around(rng, rows, 0, 1)
        for layer in range(2)
        for name, rows in (("q", 48), ("k", 12), ("v", 12))
    }
    _family(path, "Qwen2ForCausalLM", biases, head_dim=12)


def mistral(path: Path) -> None:
    """Mistral, with a sliding window that holds the context."""
    _family(path, "MistralForCausalLM", {}, head_dim=12, sliding_window=32)


def _family(
    path: Path,
    architecture: str,
    tensors: dict[str, NDArray[np.float32]],
    head_dim: int,
    **config: object,
) -> None:
    model_type = architecture.removesuffix("ForCausalLM").lower()
    write_tiny_llama(
        path, hidden=48, intermediate=80, heads=4, kv_heads=1, head_dim=head_dim, tied=False,
        seed=len(architecture), overrides=tensors,
        config={"architectures": [architecture], "model_type": model_type, **config},
    )  # fmt: skip


def _around(
    rng: np.random.Generator, size: int, middle: float, spread: float
) -> NDArray[np.float32]:
    return (middle + spread * rng.standard_normal(size)).astype(np.float32)


MODELS = {
    # everything in L1 and weight memory, one scale per output channel
    "rows": Pinned({"context": 24}, write_tiny_llama),
    # groups that do not divide, zero points, a 4-bit head of its own; KV cache and logits out of L1
    "groups": Pinned(
        {"bits": 4, "group_size": 16, "short_last_group": True, "asymmetric": True,
         "embedding_bits": 4, "context": 40, "l1": 21572},
        odd_groups,
    ),
    "gptq": Pinned({"context": 16}, mixed_gptq),
    # another target; a head dimension that is not hidden / heads
    "rv32": Pinned(
        {"target": "rv32", "context": 12},
        lambda path: write_tiny_llama(path, hidden=24, heads=3, kv_heads=1, head_dim=14, seed=9),
    ),
    "stories-8": Pinned({"context": 64}),
    "stories-4-groups": Pinned({"bits": 4, "group_size": 32, "context": 64}),
    "stories-2": Pinned({"bits": 2, "context": 64}),
    "qwen3": Pinned({"context": 32}, qwen3),
    "qwen2": Pinned({"bits": 3, "context": 32}, qwen2),
    "mistral": Pinned(
        {"bits": 4, "group_size": 16, "asymmetric": True, "context": 32, "target": "pulp-open"}, mistral
    ),
}  # fmt: skip
