"""A whole model in the integer IR, and what every operation is and says of itself.

Values are per token: ``i32`` is fixed point int32 with fraction bits, ``q16`` and ``q8`` are dynamic
vectors of 16 and 8 bit (see numerics/vectors.py), ``heads8`` int8 heads, ``logits`` and ``token`` what they say.
Every op names its inputs and its one output; ``layer`` is -1 outside the layer loop.
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
    """kind: token | i32 | q16 | q8 | heads8 | logits; width elements per token."""

    kind: str
    width: int
    frac: int = 0  # i32: fraction bits
    group: int = 0  # q8: inputs of a group
    cmax: int = 0  # q8: largest group scale
    bits: int = 0  # q16: most bits of a magnitude

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
    """What one generation keeps: ``kept`` is the ops' own, by what they choose as a key."""

    graph: Graph
    position: int = 0
    sampling: Sampling = Sampling()
    kept: dict[Any, Any] = field(default_factory=dict)


@dataclass
class Op(OnDevice):
    """Common to all ops; a subclass is an op, and known by its name.

    A subclass says what it computes (``run``), what is legal (``TAKES``, ``GIVES``, ``RULES``), and how
    the device does it.
    """

    out: str
    inputs: tuple[str, ...]
    layer: int

    # attributes that most models' ops are without: said only where they are not None
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    # kinds of its inputs, each way to call it; kinds that its output may have
    TAKES: ClassVar[tuple[tuple[str, ...], ...]] = (("i32",),)
    GIVES: ClassVar[tuple[str, ...]] = ("i32",)
    # rules in addition to those of all ops (ir/rules.py), in the order in which they are checked
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __init_subclass__(cls) -> None:
        OPS[cls.__name__] = cls

    def run(self, state: State, args: Sequence[Any]) -> Any:
        """The output of T tokens from the inputs': arrays [T, width], QVector or QHeads."""
        raise NotImplementedError(f"{self.mnemonic} has no semantics")

    def matrices(self) -> list[QLinear]:
        """Every matrix it holds, adapters included."""
        return []

    def slot(self) -> str | None:
        """The slot of the matrix that it multiplies with, whose tiles it takes from the stream."""
        return None

    def macros(self) -> dict[str, int | str]:
        """Numbers for model.h, the same in all layers: SC_<name> -> value."""
        return {}

    def numbers(self) -> tuple[int, ...]:
        """The values of NUMBERS."""
        return ()

    @property
    def mnemonic(self) -> str:
        return type(self).__name__.lower()

    @property
    def name(self) -> str:
        """``out`` without its layer's prefix: the same in every layer."""
        return self.out.removeprefix(f"layer{self.layer}.")

    def attributes(self) -> dict[str, object]:
        """Everything that decides the numbers, for the text dump (matrices by their shape)."""
        skip = ("out", "inputs", "layer")
        return {k: v for k, v in self.stated().items() if k not in skip}

    def stated(self) -> dict[str, object]:
        """Every field but OPTIONAL ones that are None."""
        return {k: v for k, v in vars(self).items() if v is not None or k not in self.OPTIONAL}


OPS: dict[str, type[Op]] = {}
"""Every op by its class's name, which files state."""


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

    def input_types(self, inputs: Iterable[str]) -> list[Type]:
        """Of the values that an op reads."""
        return [Type("token", 1) if name == "token" else self.types[name] for name in inputs]

    def body(self, layer: int) -> list[Op]:
        """The ops of one layer."""
        return [op for op in self.ops if op.layer == layer]

    def epilogue(self) -> int:
        """The index of the first op after the layers: it reads their last result."""
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
