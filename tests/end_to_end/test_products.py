"""Several tokens times matrices whose groups have scales, which N-EUREKA multiplies: the interpreter's integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.quantised import Format, quantised_model
from helpers.tiny_llama import write_tiny_llama
from shrinkc.core.errors import DoesNotFit
from shrinkc.importer import load_model
from shrinkc.ir.ops import Linear
from shrinkc.memory.planner import make_plan
from shrinkc.quantize import QuantOptions, lower
from shrinkc.schedule.shapes import ModelShape
from shrinkc.storage import Offsets
from shrinkc.targets import SIRACUSA

from .programs import (
    GREEDY,
    WARM,
    add_adapters,
    compile_graph,
    l2_without_weights,
    need,
    random_request,
    shape_of,
)

SHAPES: dict[str, tuple[dict[str, Any], QuantOptions | Format, dict[str, int], str]] = {
    "w4-offsets-sides": (
        {"hidden": 96, "intermediate": 160, "heads": 3, "kv_heads": 1, "head_dim": 32},
        QuantOptions(bits=4, group_size=32, asymmetric=True),
        {"q_proj": 3, "o_proj": 2, "up_proj": 5},
        "",
    ),
    "w4-zero-points-sides": (
        {"hidden": 96, "intermediate": 160, "heads": 3, "kv_heads": 1, "head_dim": 32},
        Format(4, 32, "integer"),
        {"q_proj": 3, "o_proj": 2, "up_proj": 5},
        "",
    ),
    "w4-both-offsets": (
        {"hidden": 64, "intermediate": 160, "heads": 2, "kv_heads": 1, "head_dim": 32},
        Format(4, 32, "integer"),
        {},
        "",
    ),
    "w4-no-offsets": (
        {"hidden": 128, "intermediate": 224, "heads": 4, "kv_heads": 2, "head_dim": 32},
        QuantOptions(bits=4, group_size=32),
        {},
        "",
    ),
    "w3-zero-points-one-group": (
        {"hidden": 64, "intermediate": 96, "heads": 2, "kv_heads": 2, "head_dim": 16},
        Format(3, 96, "integer"),
        {},
        "",
    ),
    "w2-zero-points-flash": (
        {"hidden": 64, "intermediate": 288, "heads": 2, "kv_heads": 1, "head_dim": 32},
        Format(2, 64, "integer"),
        {},
        "flash",
    ),
    "w3-small-l1": (
        {"hidden": 128, "intermediate": 320, "heads": 4, "kv_heads": 2, "head_dim": 32},
        QuantOptions(bits=3, group_size=64),
        {},
        "L1",
    ),
    "w2-last-group-short": (
        {"hidden": 160, "intermediate": 224, "heads": 5, "kv_heads": 5, "head_dim": 32},
        QuantOptions(bits=2, group_size=96, asymmetric=True, short_last_group=True),
        {},
        "",
    ),
    "w8-flash": (
        {"hidden": 64, "intermediate": 416, "heads": 2, "kv_heads": 1, "head_dim": 64},
        QuantOptions(bits=8, group_size=32),
        {},
        "flash",
    ),
    "w4-one-group": (
        {"hidden": 64, "intermediate": 96, "heads": 2, "kv_heads": 2, "head_dim": 16, "vocab": 333},
        QuantOptions(bits=4, asymmetric=True, embedding_bits=4),
        {},
        "",
    ),
}
CONTEXT = 40


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", SHAPES)
def test_products(tmp_path: Path, name: str) -> None:
    """0 mismatches in prompts of whole chunks and of a few tokens more, and where drafts are verified."""
    need("gvsoc")
    shape, options, ranks, place = SHAPES[name]
    write_tiny_llama(tmp_path / "model", layers=2, **shape)
    model = load_model(tmp_path / "model")
    if isinstance(options, Format):
        checkpoint = options
        others = ("o_proj", "down_proj") if name == "w4-both-offsets" else ()
        model = quantised_model(
            model,
            lambda layer, module: (
                None
                if layer < 0
                else replace(checkpoint, zero="float")
                if module in others
                else checkpoint
            ),
        )
        options = QuantOptions()
    add_adapters(model, ranks)
    graph, target, l1 = lower(model, options, CONTEXT), SIRACUSA, None
    layers = [op.weight for op in graph.ops if isinstance(op, Linear) and op.layer >= 0]
    kinds = {w.offsets for w in layers}
    if "zero-points" in name:
        assert kinds == {Offsets.ZEROS}
    if "both" in name:
        assert kinds == {Offsets.ZEROS, Offsets.WIDE}
    sizes = shape_of(graph, model)
    if place == "flash":
        target = SIRACUSA.with_room(wmem=0, l2=l2_without_weights(sizes))
    elif place == "L1":
        l1 = next(n for n in range(24 << 10, 256 << 10, 1 << 10) if _chunk(sizes, n) >= 4)
    program = compile_graph(graph, model, tmp_path / "out", target, l1)
    assert program.plan.chunk > 1
    assert "sc_matrix_products(" in program.sources
    program.build("gvsoc")
    rng = np.random.default_rng(2)
    for prompt in (program.plan.chunk + 3, 29):
        request = random_request(graph, rng, prompt, 6, WARM)
        program.prove("gvsoc", request, timeout_s=200)
    drafts = replace(request, prompt_lookup=3, sampling=GREEDY)
    program.prove("gvsoc", drafts, timeout_s=200)


def _chunk(sizes: ModelShape, l1: int) -> int:
    """Tokens of a chunk with that much L1; 0 where nothing fits."""
    try:
        return make_plan(sizes, SIRACUSA, l1).chunk
    except DoesNotFit:
        return 0
