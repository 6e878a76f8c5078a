"""A whole model in the integer IR."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shrinkc.ir.ops import Op, SiluMul, Type

IR_VERSION = 3


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

    def device_ops(self) -> list[str]:
        """Names of a pass's ops in their order, the layers' once.

        Those whose result a program has: what a silumul reads never leaves the kernel that makes both.
        """
        inner = {name for op in self.ops if isinstance(op, SiluMul) for name in op.inputs}
        once = [op for op in self.ops if op.layer <= 0 and op.out not in inner]
        return [op.name for op in once]
