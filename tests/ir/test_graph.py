"""What the graph says of itself."""

from __future__ import annotations

from collections.abc import Callable

from shrinkc.ir.graph import Graph
from shrinkc.quantize import PASS

Fresh = Callable[..., Graph]


def test_the_ops_of_a_program(fresh: Fresh) -> None:
    """A pass in its order, the layers once; gate and up never leave the kernel of silu * up."""
    graph = fresh(sides=True)
    inner = [op.name for op in graph.ops if op.layer <= 0]
    assert "gate_up" in inner
    inner.remove("gate_up")
    assert graph.device_ops() == inner
    assert inner[:3] == ["embed", "attn_in.q", "qkv"] and inner[-2:] == ["logits", "next"]
    last = graph.body(graph.num_layers - 1)
    assert [op.name for op in last] == [op.name for op in graph.body(0)]


def test_the_steps_are_those_that_plans_are_made_for(fresh: Fresh) -> None:
    """With adapters and without; the matrix of a step is a slot, gate_up that of silu * up."""
    for sides in (False, True):
        assert fresh(sides=sides).steps() == PASS
    slots = {step.name: step.matrix for step in PASS if step.matrix}
    assert slots == {"qkv": "qkv", "mid": "o", "h": "gate_up", "out": "down", "logits": "head"}
