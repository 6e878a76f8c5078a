"""Lifetimes of L1 buffers follow from the steps of a pass, and the verifier reports steps that cannot work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shrinkc.engines import Choice, Choices
from shrinkc.memory.plan import l1_buffers, planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import faults_of
from shrinkc.quantize import PASS, QuantOptions
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import KIB, SIRACUSA

from .shapes import make_shape

NAMES = [step.name for step in PASS]


def lives(shape: ModelShape, budget: int | None = None, **fields: object) -> dict[str, str]:
    """Return buffer -> steps in which it is live; consecutive steps as "first-last"."""
    plan = replace(make_plan(shape, SIRACUSA, budget), **fields)  # type: ignore[arg-type]
    return {
        b.name: ", ".join(NAMES[i] if i == j else f"{NAMES[i]}-{NAMES[j]}" for i, j in b.spans)
        for b in l1_buffers(planned_sizes(shape, SIRACUSA, plan))
    }


VECTORS = "attn_in.q-qkv, o_in.q-logits"  # all steps but RoPE and attention
SCANS = "attn_in.q, o_in.q, mlp_in.q, down_in.q, final.q"


def test_of_a_plain_model() -> None:
    """x carries the residual stream from layer to layer; rope and tiles are filled before the layers."""
    assert lives(make_shape()) == {
        "tiles": "embed-logits",
        "x": "embed-final.q",
        "y": "attn_in.q-o_in.q, mlp_in.q, final.q",
        "h": "h-down_in.q",
        "xq": VECTORS,
        "xv": "embed-next",
        "parts": SCANS,
        "rope": "embed-out",
        "q8": "q8-attn",
        "q_scale": "q8-attn",
        "head_work": "q8",
        "head_scratch": "attn",
        "value_scales": "embed-next",
        "pass_scales": "attn",
        "k_cache": "embed-next",
        "v_cache": "embed-next",
        "exp2": "embed-next",
        "logits": "logits-next",
        "tops": "logits-next",
    }


def test_of_groups_only_where_there_are_groups() -> None:
    """The layers have groups; the LM head is per-channel."""
    found = lives(make_shape(options=QuantOptions(bits=4, group_size=4)))
    assert found["xc"] == "attn_in.q-qkv, o_in.q-out"
    assert found["block_max"] == "attn_in.q, o_in.q, mlp_in.q, down_in.q"
    assert found["xq"] == VECTORS


def engined(engine: str = "neureka_1x1", **fields: Any) -> ModelShape:
    names = [f"layer{i}.{m}" for i in range(5) for m in ("qkv", "o", "gate_up", "down")]
    return make_shape(
        choices=Choices({name: Choice(engine) for name in (*names, "head")}), **fields
    )


def test_of_an_engines_scratch() -> None:
    """Live from the quantisation of the input, because the engine starts then, to the last rows; with remainders
    always, because the step before prefetches them."""
    assert lives(engined())["engine"] == VECTORS
    assert lives(engined("neureka_3x3", hidden=256))["engine"] == "embed-next"
    assert "engine" not in lives(make_shape())


def test_of_what_in_place_plans_share() -> None:
    """The KV cache is copied during its layer's first matrix, and the input of down overwrites its source."""
    shape = engined(layers=5)
    window = {"kv_in_l1": False, "kv_window_blocks": 32, "kv_tile_blocks": 32}
    before, found = (lives(shape, **window, in_place=in_place) for in_place in (False, True))
    assert before["kv_layer"] == "embed-next" and before["h"] == "h-down_in.q"
    assert found["kv_layer"] == "qkv-attn" and found["h"] == "h-out"
    assert found["parts"] == SCANS.replace("attn_in.q", "attn_in.q-qkv"), (
        "the cache is copied meanwhile"
    )
    assert {n for n in found if found[n] != before[n]} == {"kv_layer", "h", "parts"}


def test_of_norm_weights_that_are_not_in_l1() -> None:
    """Live in the whole pass: RoPE, and gate and up, prefetch those of the next norm.  Up to 8 KiB stay in L1."""
    assert "gain" not in lives(make_shape(hidden=256, layers=3))  # 7 norms
    assert lives(make_shape(hidden=296, layers=3))["gain"] == "embed-next"


def test_of_adapters_and_sums_only_where_they_are_used() -> None:
    options = QuantOptions(bits=4, asymmetric=True)
    found = lives(make_shape(options=options, ranks={"o": 2, "gate_up": 3}), 40 * KIB)
    for name in ("sy", "sq"):
        assert found[name] == "mid, h"
    assert found["sv"] == "embed-next", "its pointers are written once"
    assert found["xsum"] == "attn_in.q-qkv, o_in.q-out", "the head is symmetric"


def with_norm(at: str, value: str) -> ModelShape:
    """Return a model with one more norm, which reads ``value``, before the step ``at``."""
    shape = make_shape()
    norm = shape.steps[NAMES.index("mlp_in.q")]
    steps = list(shape.steps)
    steps.insert(NAMES.index(at), replace(norm, name="again", inputs=(value,), matrix="qkv"))
    return replace(shape, steps=tuple(steps))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        # a norm uses y as scratch, which holds the attention's result
        ("o_in.q", "embed", "o_in.q: reads attn from y, which holds scratch of again"),
        # there is only one buffer for vectors
        ("qkv", "embed", "qkv: reads attn_in.q from xv, which holds again"),
        ("o_in.q", "attn", "again: works in y, which it reads"),
    ],
)
def test_a_step_that_overwrites_a_value_still_needed(at: str, value: str, words: str) -> None:
    shape = with_norm(at, value)
    faults = faults_of(make_plan(shape, SIRACUSA), shape, SIRACUSA)
    assert words in faults


def test_a_plan_for_other_steps() -> None:
    shape = make_shape()
    plan = make_plan(shape, SIRACUSA)
    other = replace(shape, steps=(*shape.steps[:-1], replace(shape.steps[-1], name="other")))
    assert any("planned for the steps" in fault for fault in faults_of(plan, other, SIRACUSA))


def test_layers_in_groups_of_different_sizes() -> None:
    """Multiplying two groups of 64 at a time needs more room than one group of 96."""
    few, many = (
        make_shape(
            hidden=192,
            ffn=576,
            head_dim=24,
            layers=2,
            options=QuantOptions(bits=4, group_size=group),
        )
        for group in (64, 96)
    )
    mixed = replace(many, layers=(few.layers[0], many.layers[1]))
    assert faults_of(make_plan(mixed, SIRACUSA), mixed, SIRACUSA) == []
