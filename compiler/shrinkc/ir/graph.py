"""The integer IR of a model: types, the base class of ops, and the graph.

Values are per token: ``i32`` and ``logits`` are fixed-point int32, ``q16`` and ``q8`` are dynamically quantised
vectors of 16 and 8 bits (numerics/vectors.py), ``heads8`` are int8 heads, ``token`` is a token id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from shrinkc.ir.linear import QLinear
from shrinkc.ir.steps import OnDevice, Step
from shrinkc.numerics.sampling import Sampling

IR_VERSION = 9
_LAYER = re.compile(r"^layer\d+\.")

Rule = Callable[["Graph", Any], str | None]


@dataclass(frozen=True)
class Type:
    """Type of a value: ``kind`` (token, i32, q16, q8, heads8 or logits) and elements per token."""

    kind: str
    width: int
    frac: int = 0  # i32: fraction bits
    group: int = 0  # q8: inputs per group
    cmax: int = 0  # q8: largest group scale
    bits: int = 0  # q16: largest number of bits of a magnitude

    def __str__(self) -> str:
        if self.kind == "q8":
            return f"q8[{self.width}/{self.group} c<={self.cmax}]"
        if self.kind == "q16":
            return f"q16[{self.width}] {self.bits} bits"
        if self.kind in ("i32", "logits"):
            return f"{self.kind}[{self.width}]Q{self.frac}"
        return f"{self.kind}[{self.width}]"


@dataclass
class State:
    """State of one generation.  ``kept`` holds the state of ops, such as KV caches, by keys that they choose."""

    graph: Graph
    position: int = 0
    sampling: Sampling = Sampling()
    kept: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Op(OnDevice):
    """Base class of all ops; files refer to an op by its class name.

    An op has named inputs and one named output; ``layer`` is -1 outside the layers.  A subclass defines the
    computation (``run``), legal types (``TAKES``, ``GIVES``) and rules, and its execution on the device (``OnDevice``).
    """

    out: str
    inputs: tuple[str, ...]
    layer: int

    # fields that are left out of files and dumps if they are None
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    # allowed combinations of input kinds, and allowed output kinds
    TAKES: ClassVar[tuple[tuple[str, ...], ...]] = (("i32",),)
    GIVES: ClassVar[tuple[str, ...]] = ("i32",)
    # rules checked in this order, after those of all ops (ir/rules.py)
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __init_subclass__(cls) -> None:
        OPS[cls.__name__] = cls

    def run(self, state: State, args: Sequence[Any]) -> Any:
        """Compute the output of T tokens from the inputs: arrays [T, width], QVector, Q16Vector or QHeads."""
        raise NotImplementedError(f"{self.mnemonic} has no semantics")

    def matrices(self) -> list[QLinear]:
        """Return the op's matrices, adapters included."""
        return []

    def positions(self) -> int:
        """Return how many positions of the KV cache a token attends to, 0 for all."""
        return 0

    def cache_bits(self) -> int:
        """Return the bits of keys and values that the op writes to the KV cache, 0 if it writes none."""
        return 0

    def slot(self) -> str | None:
        """Return the slot of the matrix that the op multiplies with (such as "qkv"), or None."""
        return None

    def macros(self) -> dict[str, int | str]:
        """Return constants for model.h that are equal in all layers: SC_<name> -> value."""
        return {}

    def numbers(self) -> tuple[int, ...]:
        """Return this layer's values of NUMBERS."""
        return ()

    @property
    def mnemonic(self) -> str:
        return type(self).__name__.lower()

    @property
    def name(self) -> str:
        """``out`` without the layer prefix."""
        return self.out.removeprefix(f"layer{self.layer}.")

    def attributes(self) -> dict[str, object]:
        """Return the fields that affect results, without names of values."""
        skip = ("out", "inputs", "layer")
        return {k: v for k, v in self.stated().items() if k not in skip}

    def stated(self) -> dict[str, object]:
        """Return all fields except OPTIONAL ones that are None."""
        return {k: v for k, v in vars(self).items() if v is not None or k not in self.OPTIONAL}


OPS: dict[str, type[Op]] = {}
"""All ops by class name."""


@dataclass
class Graph:
    """Ops in execution order: before the layers (``layer`` -1), ``num_layers`` layers of equal ops, after them (-1).

    ``rope_cos`` and ``rope_sin`` are Q15 int16 [context, head_dim / 2], or [context, head_dim] if there are two tables:
    the global one, then that of layers with a window.
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

    def input_types(self, inputs: Iterable[str]) -> list[Type]:
        """Return the types of an op's inputs."""
        return [Type("token", 1) if name == "token" else self.types[name] for name in inputs]

    def windows(self) -> tuple[int, ...]:
        """Return for each layer the number of positions that a token attends to, 0 for all; empty if all are 0."""
        found = tuple(op.positions() for op in self.ops if op.READS_CACHE)
        return found if any(found) else ()

    @property
    def kv_bits(self) -> int:
        """The bits of keys and values in the KV cache."""
        return max((op.cache_bits() for op in self.ops), default=0)

    @property
    def rope_tables(self) -> int:
        """The number of RoPE tables."""
        return 2 * int(self.rope_cos.shape[1]) // self.head_dim

    def body(self, layer: int) -> list[Op]:
        """Return the ops of one layer."""
        return [op for op in self.ops if op.layer == layer]

    def epilogue(self) -> int:
        """Return the index of the first op after the layers; its first input is their result."""
        return 1 + max(i for i, op in enumerate(self.ops) if op.layer >= 0)

    def steps(self) -> tuple[Step, ...]:
        """Return the steps of a pass on the device, those of a layer once.

        An op that is fused with a matrix product is one step together with that product."""
        once = {op.out: op for op in self.ops if op.layer <= 0}
        inner = {name: once[name] for op in once.values() if op.FUSED for name in op.inputs}
        steps = []
        for op in once.values():
            if op.out in inner:
                continue
            inputs, slot = op.inputs, op.slot()
            if op.FUSED:
                producers = [inner[name] for name in op.inputs]
                inputs = tuple(name for producer in producers for name in producer.inputs)
                slot = producers[0].slot()
            names = tuple(_LAYER.sub("", name) for name in inputs)
            steps.append(Step(type(op), op.name, names, op.layer >= 0, slot))
        return tuple(steps)

    def device_ops(self) -> list[str]:
        """Return the names of a pass's steps in order, those of a layer once."""
        return [step.name for step in self.steps()]
