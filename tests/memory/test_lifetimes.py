"""When L1 buffers live follows from the steps of a pass, and steps that cannot work are noticed."""

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
    """Buffer -> the steps in which it is live, runs of them as "first-last"."""
    plan = replace(make_plan(shape, SIRACUSA, budget), **fields)  # type: ignore[arg-type]
    return {
        b.name: ", ".join(NAMES[i] if i == j else f"{NAMES[i]}-{NAMES[j]}" for i, j in b.spans)
        for b in l1_buffers(planned_sizes(shape, SIRACUSA, plan))
    }


VECTORS = "attn_in.q-qkv, o_in.q-logits"  # heads and attention have none
SCANS = "attn_in.q, o_in.q, mlp_in.q, down_in.q, final.q"


def test_of_a_plain_model() -> None:
    """x is what a layer leaves to the next, rope and tiles come from before the loop."""
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
    """Those of a layer; the head has one scale per row."""
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
    """From where activations are made, for it begins at once, to the last rows; with tails, which are on their way from
    the matrix before, always."""
    assert lives(engined())["engine"] == VECTORS
    assert lives(engined("neureka_3x3", hidden=256))["engine"] == "embed-next"
    assert "engine" not in lives(make_shape())


def test_of_what_in_place_plans_share() -> None:
    """The cache comes with its layer's first matrix, and what down reads takes the place of what it is made from."""
    shape = engined(layers=5)
    window = {"kv_in_l1": False, "kv_window_blocks": 32, "kv_tile_blocks": 32}
    before, found = (lives(shape, **window, in_place=in_place) for in_place in (False, True))
    assert before["kv_layer"] == "embed-next" and before["h"] == "h-down_in.q"
    assert found["kv_layer"] == "qkv-attn" and found["h"] == "h-out"
    assert found["parts"] == SCANS.replace("attn_in.q", "attn_in.q-qkv"), "beside which it comes"
    assert {n for n in found if found[n] != before[n]} == {"kv_layer", "h", "parts"}


def test_of_gains_that_are_not_in_l1() -> None:
    """From pass to pass: heads, and gate and up, start what the next norm reads.  Up to 8 KiB lie in L1."""
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
    """A model with one more norm, of ``value``, before the step ``at``."""
    shape = make_shape()
    norm = shape.steps[NAMES.index("mlp_in.q")]
    steps = list(shape.steps)
    steps.insert(NAMES.index(at), replace(norm, name="again", inputs=(value,), matrix="qkv"))
    return replace(shape, steps=tuple(steps))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        # a norm works in y, where the attention's result waits
        ("o_in.q", "embed", "o_in.q: reads attn from y, which holds scratch of again"),
        # there is one int8 vector
        ("qkv", "embed", "qkv: reads attn_in.q from xv, which holds again"),
        ("o_in.q", "attn", "again: works in y, which it reads"),
    ],
)
def test_a_step_that_destroys_what_is_read(at: str, value: str, words: str) -> None:
    shape = with_norm(at, value)
    faults = faults_of(make_plan(shape, SIRACUSA), shape, SIRACUSA)
    assert words in faults


def test_a_plan_for_other_steps() -> None:
    shape = make_shape()
    plan = make_plan(shape, SIRACUSA)
    other = replace(shape, steps=(*shape.steps[:-1], replace(shape.steps[-1], name="other")))
    assert any("planned for the steps" in fault for fault in faults_of(plan, other, SIRACUSA))


def test_layers_in_groups_of_different_sizes() -> None:
    """Two groups of 64 at a time take more room than one of 96."""
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
