"""FloatModel, the result of every importer and the input of the quantiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.model import LlamaConfig

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Bits per weight that a QuantizedWeight may have."""


class Zero(IntEnum):
    """Kind of zero point of a checkpoint's groups.  MIDDLE is false, the others are true.

    MIDDLE: symmetric, the middle of the range.  NEAR: an integer per group, less than 8 steps from the middle.
    POINT: any integer per group.  ANY: a float offset per group.
    """

    MIDDLE = 0
    NEAR = 1
    POINT = 2
    ANY = 3


Formats = dict[str, tuple[int, int, Zero]]
"""Module name -> (bits, inputs per scale, kind of zero point) of quantised matrices."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Quantised matrix [n, k] of a checkpoint, with the file's integers.

    ``weight[o, k] = scale[o, g] * q[o, k] + offset[o, g]``, g the group of k.

    ``q`` is uint8 [n, k] in 0 … 2**bits - 1, with columns in stored order, where groups are contiguous: stored
    column j belongs to group ``j // group`` and to the model's input ``order[j]``.  ``order`` is None if both
    orders are equal.  ``scale`` is float32 [n, ceil(k / group)] and > 0, ``offset`` float32 of that shape.
    ``group`` is the number of inputs per scale, k for one scale per output channel; the last group may be short.
    """

    bits: int
    group: int
    q: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if shapes, types or ranges do not agree."""
        n, k = self.q.shape
        if self.bits not in WIDTHS or not 1 <= self.group <= k or self.q.dtype != np.uint8:
            raise ValueError(f"{self.bits} bit, group {self.group} of {k}, {self.q.dtype}")
        shape = (n, -(-k // self.group))
        if self.scale.shape != shape or self.offset.shape != shape:
            raise ValueError(f"scale {self.scale.shape}, offset {self.offset.shape}, not {shape}")
        if self.order is not None and self.order.shape != (k,):
            raise ValueError(f"order {self.order.shape}, not {(k,)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Return ``(outputs, inputs)``."""
        n, k = self.q.shape
        return n, k

    @property
    def zero_points(self) -> NDArray[np.float32] | None:
        """Return float32 [n, groups] in 0 … 2**bits - 1 if each offset is exactly -scale times an integer; or None."""
        found: NDArray[np.float32] = np.rint(-self.offset / self.scale)
        inside = (found >= 0) & (found < 1 << self.bits)
        return found if (inside & (self.offset == -self.scale * found)).all() else None

    def dequantized(self) -> NDArray[np.float32]:
        """Return a new float32 [n, k] in the model's order of inputs.

        Exact if scales are 16-bit floats and ``offset / scale`` is an integer below 256; otherwise
        rounded by float32 arithmetic.
        """
        stored = self.q.astype(np.float32)
        for g in range(self.scale.shape[1]):
            part = stored[:, g * self.group : (g + 1) * self.group]
            part *= self.scale[:, g, None]
            part += self.offset[:, g, None]
        if self.order is None:
            return stored
        dense = np.empty_like(stored)
        dense[:, self.order] = stored
        return dense


Weight = np.ndarray | QuantizedWeight
"""A matrix [n, k]: float32 or quantised."""


def dense(weight: Weight) -> NDArray[np.float32]:
    """Return ``weight`` as float32 [n, k]: the array itself, or a new one."""
    return weight.dequantized() if isinstance(weight, QuantizedWeight) else weight


@dataclass
class LowRankAdapter:
    """Low-rank adapter ``y += b @ (a @ x)`` of a weight [out, in].

    ``a`` is float32 [rank, in], ``b`` float32 [out, rank]; any scaling is already in ``b``.
    """

    a: np.ndarray
    b: np.ndarray


@dataclass
class FloatLayer:
    """Transformer block.  Every matrix is a Weight [out, in], every RMSNorm weight float32 [in].

    ``q_norm`` and ``k_norm`` are float32 [head_dim], or None if heads are not normalised.  ``attn_post_norm`` and
    ``mlp_post_norm`` normalise the results of attention and MLP, or are None.
    """

    attn_norm: np.ndarray
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    mlp_norm: np.ndarray
    w_gate: Weight
    w_up: Weight
    w_down: Weight
    # module name ("q_proj" … "down_proj") -> adapter
    adapters: dict[str, LowRankAdapter] = field(default_factory=dict)
    # module name -> float32 [out]; only modules with a bias
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    q_norm: np.ndarray | None = None
    k_norm: np.ndarray | None = None
    attn_post_norm: np.ndarray | None = None
    mlp_post_norm: np.ndarray | None = None


@dataclass
class FloatModel:
    """Whole model.  ``head`` is None if the embedding is tied."""

    config: LlamaConfig
    embedding: Weight  # [vocab, hidden]
    layers: list[FloatLayer]
    final_norm: np.ndarray  # float32 [hidden]
    head: Weight | None  # [vocab, hidden]
    tokenizer: Tokenizer
    source: str = ""
