"""What every operation is, and what it says of itself to checker, interpreter, planner and generator.

Values are per token: ``i32`` is fixed point int32 with fraction bits, ``q16`` and ``q8`` are dynamic
vectors of 16 and 8 bit (see numerics/vectors.py), ``heads8`` int8 heads, ``logits`` and ``token`` what they say.
Every op names its inputs and its one output; ``layer`` is -1 outside the layer loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from shrinkc.costs import Arithmetic, Work
from shrinkc.ir.linear import QLinear
from shrinkc.ir.steps import PassSizes, Step, Turn, Use
from shrinkc.numerics.sampling import Sampling

if TYPE_CHECKING:
    from shrinkc.ir.graph import Graph

Rule = Callable[["Graph", Any], str | None]


@dataclass(frozen=True)
class Type:
    """kind: token | i32 | q16 | q8 | heads8 | logits; width elements per token."""

    kind: str
    width: int
    frac: int = 0  # i32: fraction bits
    seg: int = 0  # q8: segment size
    cmax: int = 0  # q8: largest segment scale
    bits: int = 0  # q16: most bits of a magnitude

    def __str__(self) -> str:
        if self.kind == "q8":
            return f"q8[{self.width}/{self.seg} c<={self.cmax}]"
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
class Op:
    """Common to all ops; a subclass is an op, and known by its name.

    A subclass says what it computes (``run``), what is legal (``TAKES``, ``GIVES``, ``RULES``), and how
    the device does it: ``KERNEL`` is the C function of a layer's step (sc_model.h), ``how`` and
    ``NUMBERS`` its parameters, ``buffer`` and ``uses`` its L1, ``work`` and ``arithmetic`` what it costs.
    """

    out: str
    inputs: tuple[str, ...]
    layer: int

    # attributes that most models' ops are without: said only where they are not None
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    # kinds of its inputs, each way to call it; kinds that its output may have
    TAKES: ClassVar[tuple[tuple[str, ...], ...]] = (("i32",),)
    GIVES: ClassVar[tuple[str, ...]] = ("i32",)
    # rules beside those of all ops (ir/rules.py), in the order in which they are checked
    RULES: ClassVar[tuple[Rule, ...]] = ()
    # done by the kernel of the matrix whose result it reads, which never leaves that kernel
    FUSED: ClassVar[bool] = False
    KERNEL: ClassVar[str] = ""
    # reads the cache: what follows it in the last layer is only done for tokens whose logits are wanted
    READS_CACHE: ClassVar[bool] = False
    # gives vectors that can take the place of what they are made from
    IN_PLACE: ClassVar[bool] = False
    # numbers of each layer for the kernel: field of sc_layer -> its type in C, of 8, 16 or 32 bits
    NUMBERS: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        OPS[cls.__name__] = cls

    def run(self, state: State, args: Sequence[Any]) -> Any:
        """The output of T tokens from the inputs': arrays [T, width], QVector or QHeads."""
        raise NotImplementedError(f"{self.mnemonic} has no semantics")

    def matrices(self) -> list[QLinear]:
        """Every matrix it holds, side paths included."""
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

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        """The L1 buffer that holds the result."""
        return "y"

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        """Elements of the result per token, padding included; that of its first input."""
        return sizes.width(step.inputs[0])

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        """What the step does with which L1 buffers."""
        raise NotImplementedError(f"{cls.__name__} has no buffers")

    @classmethod
    def work(cls, step: Step, turn: Turn) -> Work:
        """What one execution does, in counts that are made cycles (costs): of the core that does most."""
        return Work({"calls": 1, "elements": turn.tokens * cls.width(step, turn.sizes)})

    @classmethod
    def arithmetic(cls, step: Step, turn: Turn) -> Arithmetic:
        """What one execution computes, of all cores: one product per element, int32 in and out."""
        elements = turn.tokens * cls.width(step, turn.sizes)
        return Arithmetic(elements, 8.0 * elements)

    @classmethod
    def how(cls, step: Step, steps: Sequence[Step]) -> int | str:
        """The kernel's parameter, a number of 8 bits or its name in C."""
        return 0

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


def input_types(graph: Graph, op: Op) -> list[Type]:
    return [Type("token", 1) if name == "token" else graph.types[name] for name in op.inputs]
