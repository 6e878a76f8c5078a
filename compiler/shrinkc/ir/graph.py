"""A whole model in the integer IR."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from shrinkc.ir.ops import Op, Type
from shrinkc.ir.steps import Step

IR_VERSION = 8
_LAYER = re.compile(r"^layer\d+\.")


@dataclass
class Graph:
    """Ops in execution order; prologue (layer -1), ``num_layers`` equal bodies, epilogue (-1).

    ``rope_cos`` and ``rope_sin`` are Q15 int16 [context, head_dim / 2].
    """

    name: str
    vocab: int
    hidden: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    bos_id: int
    eos_ids: tuple[int, ...]
    rope_cos: np.ndarray
    rope_sin: np.ndarray
    ops: list[Op] = field(default_factory=list)
    types: dict[str, Type] = field(default_factory=dict)

    def body(self, layer: int) -> list[Op]:
        """The ops of one layer."""
        return [op for op in self.ops if op.layer == layer]

    def epilogue(self) -> int:
        """The index of the first op behind the layers: it reads their last result."""
        return 1 + max(i for i, op in enumerate(self.ops) if op.layer >= 0)

    def steps(self) -> tuple[Step, ...]:
        """A pass as the device does it: in its order, the layers' ops once; without those whose
        results never leave the kernel of the op that reads them."""
        once = {op.out: op for op in self.ops if op.layer <= 0}
        inner = {name: once[name] for op in once.values() if op.FUSED for name in op.inputs}
        steps = []
        for op in once.values():
            if op.out in inner:
                continue
            inputs, slot = op.inputs, op.slot()
            if op.FUSED:
                made = [inner[name] for name in op.inputs]
                inputs = tuple(name for m in made for name in m.inputs)
                slot = made[0].slot()
            names = tuple(_LAYER.sub("", name) for name in inputs)
            steps.append(Step(type(op), op.name, names, op.layer >= 0, slot))
        return tuple(steps)

    def device_ops(self) -> list[str]:
        """Names of a pass's ops in their order, the layers' once, as the device has them."""
        return [step.name for step in self.steps()]
