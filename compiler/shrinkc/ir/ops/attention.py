"""Attention over the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from shrinkc.abi import head_scratch_bytes, head_state_bytes
from shrinkc.ir.ops.op import Op, State
from shrinkc.ir.ops.ropecache import Cache, KvShape, cache_uses, rule_heads
from shrinkc.ir.steps import Access, PassSizes, Step, Use
from shrinkc.numerics import attention
from shrinkc.numerics.attention import QHead
from shrinkc.numerics.fixed import I64

if TYPE_CHECKING:
    from shrinkc.ir.graph import Graph


def rule_probabilities(graph: Graph, op: Attention) -> str | None:
    if (1 << op.weight_bits) * 127 * graph.context > 1 << 31:
        return f"{op.weight_bits}-bit probabilities overflow at context {graph.context}"
    if graph.context > 4094:
        return f"context {graph.context}: more than 4094 probabilities overflow their Q20 sum"
    if not 1 << 14 <= op.scale_mantissa <= 1 << 15:
        return f"scale mantissa {op.scale_mantissa}"
    return None


@dataclass
class Attention(Op):
    """heads8 q and the layer's cache -> i32 [heads * head_dim], 127/128 of the value.

    Scores in log2 units Q16: requantised by the 15-bit mantissa ``scale_mantissa`` and
    ``scale_exponent``; ``dot_shift`` makes the head's dot product fit 16 bits; probabilities
    weigh the values with ``weight_bits`` bits.
    """

    TAKES = (("heads8",),)
    RULES = (rule_heads, rule_probabilities)
    KERNEL = "sc_step_attention"
    NUMBERS = MappingProxyType({"score_mantissa": "uint16_t", "score_exponent": "int16_t"})

    heads: int
    kv_heads: int
    head_dim: int
    scale_mantissa: int
    scale_exponent: int
    dot_shift: int
    weight_bits: int

    def run(self, state: State, args: Sequence[Any]) -> np.ndarray:
        q, cache = args[0], Cache.of(state, self.layer)
        tokens, end = q.q.shape[0], state.position + q.q.shape[0]
        causal = np.arange(end)[None, :] <= (state.position + np.arange(tokens))[:, None]
        out = np.empty((tokens, self.heads, self.head_dim), I64)
        per_kv = self.heads // self.kv_heads
        for h in range(self.heads):
            keys, values = (
                QHead(*(part[:end, h // per_kv] for part in (t.q, t.mantissa, t.exponent)))
                for t in (cache.k, cache.v)
            )
            own = QHead(q.q[:, h], q.mantissa[:, h], q.exponent[:, h])
            out[:, h] = self.attend(own, keys, values, causal)
        return out.reshape(tokens, -1)

    def attend(self, q: QHead, k: QHead, v: QHead, mask: np.ndarray) -> np.ndarray:
        """One head with this op's numbers: ``numerics.attention.attend``."""
        return attention.attend(
            q, k, v, mask, scale_mantissa=self.scale_mantissa, scale_exponent=self.scale_exponent,
            dot_shift=self.dot_shift, weight_bits=self.weight_bits,
        )  # fmt: skip

    def macros(self) -> dict[str, int | str]:
        return {"DOT_SHIFT": self.dot_shift, "WEIGHT_BITS": self.weight_bits}

    def numbers(self) -> tuple[int, ...]:
        return self.scale_mantissa, self.scale_exponent

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        return sizes.heads * sizes.head_dim

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        yield from (Use(name, Access.READ) for name in ("q8", "q_scale"))
        scratch = sizes.cores * head_scratch_bytes(sizes.context)
        yield Use("head_scratch", Access.SCRATCH, scratch)
        yield Use("head_state", Access.SCRATCH, sizes.cores * head_state_bytes(sizes.head_dim))
        yield from cache_uses(sizes)
        if not sizes.kv_in_l1:
            kv = KvShape.of(sizes.context, sizes.kv_heads, sizes.head_dim)
            piece = -(-sizes.kv_tile * max(kv.k_block, kv.v_block) // 16) * 16
            yield Use("kv_tile", Access.SCRATCH, 2 * piece)
        yield Use("y", Access.WRITE, sizes.words(cls.width(step, sizes)))
