"""A pass as the device does it: its steps, known from a config or from a graph, and what they ask of L1.

A step is an op whose result the device has; the layers' are stated once.  A planner works from
steps and sizes alone, before any weight is read: ``PassSizes`` is what an op may ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import ClassVar

from shrinkc.abi import TOP_BYTES
from shrinkc.costs import Arithmetic, Work
from shrinkc.engines import CORES, engine_named
from shrinkc.storage import MatrixShape


class Access(Enum):
    """What a step does with a buffer; ``AHEAD``: reads what is there since before the pass's first
    step; ``KEEP``: reads or writes what lasts from pass to pass."""

    READ = "read"
    WRITE = "write"
    UPDATE = "update"
    SCRATCH = "scratch"
    AHEAD = "ahead"
    KEEP = "keep"


@dataclass(frozen=True)
class Use:
    """A step's use of an L1 buffer, which must have ``bytes`` for it; 0: what its writer needs."""

    buffer: str
    access: Access
    bytes: int = 0


class OnDevice:
    """What the device does of an op, asked by planner and generator of its class: ``KERNEL`` is the C function of a
    layer's step (sc_model.h), ``how`` and ``NUMBERS`` its parameters, ``buffer`` and ``uses`` its L1, ``work`` and
    ``arithmetic`` what it costs."""

    # done by the kernel of the matrix whose result it reads, which never leaves that kernel
    FUSED: ClassVar[bool] = False
    KERNEL: ClassVar[str] = ""
    # the L1 buffer that holds the result
    BUFFER: ClassVar[str] = "y"
    # reads the cache: what follows it in the last layer is only done for tokens whose logits are wanted
    READS_CACHE: ClassVar[bool] = False
    # gives vectors that can take the place of what they are made from
    IN_PLACE: ClassVar[bool] = False
    # numbers of each layer for the kernel: field of sc_layer -> its type in C, of 8, 16 or 32 bits
    NUMBERS: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        """The L1 buffer that holds the result."""
        return cls.BUFFER

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


@dataclass(frozen=True)
class Step:
    """One op of a pass.  ``inputs`` are the names that the values have for the first layer, without the
    layer: what comes from before the loop there comes from the last step of the layer before in all
    others.  ``matrix``: the slot of the matrix it multiplies with."""

    op: type[OnDevice]
    name: str
    inputs: tuple[str, ...]
    in_layer: bool
    matrix: str | None = None


@dataclass(frozen=True)
class SlotSizes:
    """The most that the matrices of one slot ask for, over all layers; ``adapter_*`` are those of the
    second half of their adapters, 0 where there is none."""

    rows: int
    k: int
    words: int  # of the vector that they read, and of one of several tokens'
    several_words: int
    groups: int  # its group scales, 0 of 16-bit ones
    x_blocks: int
    asymmetric: bool
    rank: int
    adapter_words: int
    sums: int = 0  # bytes of the cores' products with several tokens, and of weights for them
    widened: int = 0
    # of groups that another engine can multiply with several tokens
    product_words: frozenset[int] = frozenset()

    @classmethod
    def of(cls, matrices: Sequence[MatrixShape]) -> SlotSizes:
        adapters = [m.adapter for m in matrices if m.adapter]
        return cls(
            max(m.rows for m in matrices),
            max(m.k for m in matrices),
            max(m.x_words for m in matrices),
            max(engine_named(m.engine).several_words(m) for m in matrices),
            max(m.x_groups for m in matrices),
            max(m.x_blocks for m in matrices),
            any(m.asymmetric for m in matrices),
            max(m.rank for m in matrices),
            max((m.x_words for m in adapters), default=0),
            max((m.sums for m in matrices if m.engine == CORES), default=0),
            max((m.widened for m in matrices if m.engine == CORES), default=0),
            frozenset(m.product_words for m in matrices if m.engine == CORES and m.product_words),
        )


@dataclass(frozen=True)
class PassSizes:
    """A pass of ``chunk`` tokens on ``cores``: what ops compute their buffers from.

    ``team``: the cores and, where it has a part in a pass, the controller; ``hands``: those that can take heads.

    ``tile`` is the bytes of a weight tile, 0 where none is copied; ``scratch`` what other engines than
    the cores work in; ``kv_tile`` the blocks of a piece of the cache where that is not in L1;
    ``kv_window`` the blocks of a layer's cache that may be there as long as it has no more, 0 where none are.
    A pass can give the choices of up to ``verified`` tokens, whose logits have the room of ``logit_tokens``.
    ``split``: of some tile the cores split blocks.  ``shared_products``: another engine multiplies groups that have
    scales with several tokens for the cores.  ``gains_outside_l1``: the norms' gains are not in L1.
    ``multipliers``: bytes of the row multipliers that the cores apply after another engine, if they are in L1.
    ``in_place``: as in Plan.  ``remainders``: another engine leaves the last inputs of rows to the cores; their weights
    are on their way to its scratch before its next vector is made.  ``perms``: some inputs are permuted."""

    steps: tuple[Step, ...]
    slots: Mapping[str, SlotSizes]
    vocab: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    num_layers: int
    context: int
    cores: int
    team: int
    hands: int
    chunk: int
    tile: int
    kv_in_l1: bool
    kv_tile: int
    logits_in_l1: bool
    scratch: int = 0
    verified: int = 1
    logit_tokens: int = 1
    kv_window: int = 0
    split: bool = False
    shared_products: bool = False
    gains_outside_l1: bool = False
    multipliers: int = 0
    in_place: bool = False
    remainders: bool = False
    perms: bool = False

    @property
    def shared(self) -> int:
        """The most tokens of which cores have shares when vectors are made: half the team, more have whole ones, but of
        permuted inputs."""
        return self.chunk if self.perms else max(1, min(self.chunk, self.team // 2))

    def hands_of(self, tokens: int) -> int:
        """Cores that take heads of so many tokens: of one all that can, if the busiest has fewer of them then."""
        fewer = -(-self.heads // self.hands) < -(-self.heads // self.cores)
        return self.hands if tokens > 1 or fewer else self.cores

    @property
    def kv_layer_in_l1(self) -> bool:
        """Whether a cache that is not in L1 always comes there a layer at a time."""
        return 0 < self.context <= 4 * self.kv_window

    def cache_in_l1(self, positions: int) -> bool:
        """Whether the cache that a layer attends to is in L1 when it has so many positions."""
        return self.kv_in_l1 or -(-positions // 4) <= self.kv_window

    @property
    def starts_next_cache(self) -> bool:
        """Whether a layer's cache can come into L1: the step whose matrix is gate and up starts the next
        layer's, so there has to be one."""
        starts = sum(s.in_layer and s.op.how(s, self.steps) == "SC_SILU" for s in self.steps)
        return starts == 1

    @property
    def fetches_gains(self) -> bool:
        """Whether a norm's gains come into L1 while the matrices before it are multiplied: where they are
        outside L1, and a layer has one step that starts the next layer's."""
        return self.gains_outside_l1 and self.starts_next_cache

    @property
    def attends(self) -> int:
        """The place of the step that reads the cache, before which every layer has to go with every token."""
        return next(at for at, step in enumerate(self.steps) if step.op.READS_CACHE)

    def brings_cache(self, step: Step) -> bool:
        """Whether a layer's cache is prefetched into L1 during a step: the one that makes its keys and values."""
        heads = self._by_name[self.steps[self.attends].inputs[0]]
        return self.in_place and self.kv_window > 0 and step.name == heads.inputs[0]

    def made_in_place(self, vector: str) -> bool:
        """Whether vectors of several tokens take the place of what they are made from: those that would need more room
        of their own than a norm's."""
        step = self._by_name[vector]
        return self.in_place and step.op.IN_PLACE and self.slot(step).k > self.hidden

    def source(self, vector: str) -> str:
        """The buffer that holds what a vector is made from."""
        return self.buffer(self._by_name[vector].inputs[0])

    @cached_property
    def _by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def buffer(self, value: str) -> str:
        """The buffer that holds a value."""
        step = self._by_name[value]
        return step.op.buffer(step, self)

    def width(self, value: str) -> int:
        """Elements of a value per token, padding included."""
        step = self._by_name[value]
        return step.op.width(step, self)

    def slot(self, step: Step) -> SlotSizes:
        """Sizes of the matrix that a step multiplies with, or else of the one that reads its result."""
        return self.slots[slot_of(step, self.steps)]

    @property
    def tops(self) -> int:
        """Bytes of each core's largest logit, of as many tokens as a pass can verify."""
        return TOP_BYTES * self.cores * self.verified

    def words(self, n: int) -> int:
        """Bytes of ``n`` int32 per token."""
        return 4 * self.chunk * n


@dataclass(frozen=True)
class Turn:
    """One execution of a step: for ``tokens`` from ``position`` on.

    ``matrix``: what it multiplies with, or what the op that reads its result does; None: neither.
    ``tiles``: row blocks of each tile of it, none where it is read in place.  ``table``: the matrix of
    which rows are embedded; ``outside``: it is in flash.
    """

    sizes: PassSizes
    tokens: int
    position: int
    matrix: MatrixShape | None
    tiles: tuple[int, ...]
    table: MatrixShape
    outside: bool = False


def slot_of(step: Step, steps: Iterable[Step]) -> str:
    """The slot of a step's matrix, or else of the one that reads its result; "" if neither is."""
    reading = (s.matrix for s in steps if step.name in s.inputs and s.matrix is not None)
    return step.matrix or next(reading, "")


def loop_of(steps: Sequence[Step]) -> tuple[int, int]:
    """Indices of the first and the last step of the layer loop."""
    inside = [i for i, step in enumerate(steps) if step.in_layer]
    return inside[0], inside[-1]


def numbers_of(steps: Iterable[Step]) -> dict[str, str]:
    """Every number that sc_layer has for the ops of a layer -> its type, in the order of the steps."""
    return {name: t for step in steps if step.in_layer for name, t in step.op.NUMBERS.items()}
