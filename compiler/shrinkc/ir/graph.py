"""A whole model in the integer IR."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from shrinkc.ir.ops import Op, Type

IR_VERSION = 2


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
