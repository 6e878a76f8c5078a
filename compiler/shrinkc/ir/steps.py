"""Steps of a forward pass on the device, and their use of L1.

A step is an op, or an op fused with the product before it; the steps of a layer are listed once.  The planner needs
only steps and ``PassSizes``, which are known from a config before any weight is read.
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
    """Access of a step to a buffer.

    ``PREFETCHED``: it reads data that is in the buffer from the start of the pass.  ``KEEP``: it reads or writes data
    that lasts from pass to pass."""

    READ = "read"
    WRITE = "write"
    UPDATE = "update"
    SCRATCH = "scratch"
    PREFETCHED = "prefetched"
    KEEP = "keep"


@dataclass(frozen=True)
class Use:
    """A step's use of an L1 buffer of at least ``bytes`` bytes (0: the size that the writer needs)."""

    buffer: str
    access: Access
    bytes: int = 0


class OnDevice:
    """Execution of an op on the device, for planner and code generator.

    ``KERNEL`` is the step in C (forward.c) with ``kernel_parameter`` and ``NUMBERS`` as parameters.
    ``buffer`` and ``uses`` describe its L1 buffers, ``work`` and ``arithmetic`` its costs."""

    # executed by the kernel of the matrix product that computes its input
    FUSED: ClassVar[bool] = False
    KERNEL: ClassVar[str] = ""
    # the L1 buffer that holds the result
    BUFFER: ClassVar[str] = "y"
    # the L1 buffer for the result of a matrix that the op reads
    PRODUCT: ClassVar[str] = "y"
    # reads the KV cache; from this step on, the last layer processes only tokens whose logits are needed
    READS_CACHE: ClassVar[bool] = False
    # makes vectors that can overwrite their source
    IN_PLACE: ClassVar[bool] = False
    # per-layer parameters of the kernel: field of sc_layer -> C type of 8, 16 or 32 bits
    NUMBERS: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def buffer(cls, step: Step, sizes: PassSizes) -> str:
        """Return the L1 buffer that holds the result."""
        return cls.BUFFER

    @classmethod
    def width(cls, step: Step, sizes: PassSizes) -> int:
        """Return the elements of the result per token, padding included (here those of the first input)."""
        return sizes.width(step.inputs[0])

    @classmethod
    def uses(cls, step: Step, sizes: PassSizes) -> Iterable[Use]:
        """Return the step's uses of L1 buffers."""
        raise NotImplementedError(f"{cls.__name__} has no buffers")

    @classmethod
    def work(cls, step: Step, call: Call) -> Work:
        """Return the work of the busiest core in one call, as counts from which costs/ estimates cycles."""
        return Work({"calls": 1, "elements": call.tokens * cls.width(step, call.sizes)})

    @classmethod
    def arithmetic(cls, step: Step, call: Call) -> Arithmetic:
        """Return the arithmetic of all cores in one call (here one product per element, int32 in and out)."""
        elements = call.tokens * cls.width(step, call.sizes)
        return Arithmetic(elements, 8.0 * elements)

    @classmethod
    def kernel_parameter(cls, step: Step, steps: Sequence[Step]) -> int | str:
        """Return the kernel's parameter, an 8-bit number or its name in C."""
        return 0


@dataclass(frozen=True)
class Step:
    """One op of a pass.

    ``inputs`` are the names of its inputs in the first layer, without layer prefix.  In later layers, the last result
    of the previous layer takes the place of an input from before the first layer.  ``matrix``: the slot of the matrix
    that it multiplies with."""

    op: type[OnDevice]
    name: str
    inputs: tuple[str, ...]
    in_layer: bool
    matrix: str | None = None


@dataclass(frozen=True)
class SlotSizes:
    """Maximum sizes of the matrices of one slot, over all layers."""

    rows: int
    k: int
    words: int  # of the input vector in a pass of one token
    several_words: int  # of each token's input vector in a pass of several tokens
    groups: int  # group scales of the input vector, 0 for 16-bit activations
    x_blocks: int
    asymmetric: bool
    rank: int
    adapter_words: int  # of the vector between a and b of the adapter
    sums: int = 0  # bytes of a token's sums when the cores multiply several tokens
    widened: int = 0  # bytes of weights widened to 8 bits for that
    # words of groups that another engine can multiply with several tokens
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
    """Sizes of a pass of up to ``chunk`` tokens, from which ops compute their buffers.

    ``rope_tables``: the number of RoPE tables.  ``kv_bits``: bits of keys and values in the KV cache.
    ``windows``: per layer the positions that a token attends to, 0 for all; empty if all layers attend to all.
    ``cores``: the workers.  ``team``: the workers, and the controller if it takes part in a pass.  ``head_cores``: the
    cores that can compute attention heads.
    ``tile``: bytes of a weight tile, 0 if no weights are copied.  ``scratch``: bytes of L1 for other engines.
    ``kv_tile``: blocks of a piece of the KV cache that is not in L1.  ``kv_window``: the most blocks with which one
    layer's cache is copied into L1 as a whole; 0 if it never is.
    ``kv_streamed``: the tokens whose heads attend at the same time while a layer's cache streams from HyperRAM, in
    pieces of keys and values; 0 if it does not.
    ``verified``: the most tokens for which a pass can choose the next token.  ``logit_tokens``: the number of tokens
    for which the logits buffer has room.
    ``split``: the cores split the blocks of some tile.  ``shared_products``: another engine multiplies grouped matrices
    with several tokens for the cores.  ``multipliers``: bytes of row multipliers in L1 that the cores apply to results
    of other engines.  ``in_place``: see Plan.  ``remainders``: another engine leaves the last inputs of rows to the
    cores, whose weights are copied to its scratch before its next vector is made.  ``perms``: some inputs are permuted.
    """

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
    head_cores: int
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
    norm_weights_outside_l1: bool = False
    multipliers: int = 0
    in_place: bool = False
    remainders: bool = False
    perms: bool = False
    windows: tuple[int, ...] = ()
    rope_tables: int = 1
    kv_bits: int = 8
    kv_streamed: int = 0

    @property
    def turn(self) -> int:
        """The most tokens that attend at the same time while a cache streams from HyperRAM."""
        return min(self.chunk, self.kv_streamed)

    @property
    def cached(self) -> tuple[int, ...]:
        """The positions that the KV cache of each layer holds."""
        windows = self.windows or (0,) * self.num_layers
        return tuple(cached_positions(self.context, window, self.chunk) for window in windows)

    @property
    def most_cached(self) -> int:
        """The most positions that the KV cache of a layer holds."""
        return max(self.cached)

    @property
    def shared(self) -> int:
        """The most tokens whose vectors are made by several cores together.

        At most half as many as the team; of further tokens each core makes whole vectors.  Permuted inputs are always
        shared."""
        return self.chunk if self.perms else max(1, min(self.chunk, self.team // 2))

    def head_cores_for(self, tokens: int) -> int:
        """Return how many cores compute the heads of ``tokens`` tokens.

        For one token the controller helps only if the busiest core then has fewer heads."""
        fewer = -(-self.heads // self.head_cores) < -(-self.heads // self.cores)
        return self.head_cores if tokens > 1 or fewer else self.cores

    @property
    def kv_layer_in_l1(self) -> bool:
        """Whether every layer's KV cache is copied into L1 as a whole at all positions."""
        return 0 < self.most_cached <= 4 * self.kv_window

    def cache_in_l1(self, positions: int, window: int = 0) -> bool:
        """Return whether the KV cache of a layer with that window is in L1 during attention to ``positions``."""
        held = min(positions, cached_positions(self.context, window, self.chunk))
        return self.kv_in_l1 or -(-held // 4) <= self.kv_window

    @property
    def prefetches_next_cache(self) -> bool:
        """Whether the next layer's KV cache can be prefetched: the step with gate and up starts the copy."""
        starts = sum(
            s.in_layer and s.op.kernel_parameter(s, self.steps) == "SC_SILU" for s in self.steps
        )
        return starts == 1

    @property
    def prefetches_norm_weights(self) -> bool:
        """Whether the weights of the next norm are copied into L1 during the matrix products before it."""
        return self.norm_weights_outside_l1 and self.prefetches_next_cache

    @property
    def attention_step(self) -> int:
        """Index of the step that reads the KV cache; the steps before it process all tokens in every layer."""
        return next(at for at, step in enumerate(self.steps) if step.op.READS_CACHE)

    def prefetches_cache(self, step: Step) -> bool:
        """Return whether a step prefetches the layer's own KV cache: the one that computes keys and values."""
        heads = self._by_name[self.steps[self.attention_step].inputs[0]]
        return self.in_place and self.kv_window > 0 and step.name == heads.inputs[0]

    def made_in_place(self, vector: str) -> bool:
        """Return whether a vector of several tokens overwrites its source: only those longer than a norm's."""
        step = self._by_name[vector]
        return self.in_place and step.op.IN_PLACE and self.slot(step).k > self.hidden

    def source(self, vector: str) -> str:
        """Return the buffer with the values from which a vector is made."""
        return self.buffer(self._by_name[vector].inputs[0])

    @cached_property
    def _by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def buffer(self, value: str) -> str:
        """Return the buffer that holds a value."""
        step = self._by_name[value]
        return step.op.buffer(step, self)

    def width(self, value: str) -> int:
        """Return the elements of a value per token, padding included."""
        step = self._by_name[value]
        return step.op.width(step, self)

    def slot(self, step: Step) -> SlotSizes:
        """Return the sizes of the matrix that a step multiplies with, or else of the one that reads its result."""
        return self.slots[slot_of(step, self.steps)]

    @property
    def tops(self) -> int:
        """Bytes for the largest logit of each core and of each token that a pass can verify."""
        return TOP_BYTES * self.cores * self.verified

    def product(self, step: Step) -> str:
        """Return the buffer for the result of a step's matrix, which the step that reads it chooses."""
        return next(s.op.PRODUCT for s in self.steps if step.name in s.inputs)

    def words(self, n: int) -> int:
        """Return the bytes of ``n`` int32 per token of a chunk."""
        return 4 * self.chunk * n


def cached_positions(context: int, window: int, chunk: int) -> int:
    """Return the positions that the KV cache of a layer holds; ``window`` 0: the layer attends to all positions.

    A window slides over a ring of positions.  A pass writes the positions of all its tokens before the first of them
    attends, so the ring has ``chunk`` - 1 positions more than the window."""
    return min(context, window + chunk - 1) if window else context


@dataclass(frozen=True)
class Call:
    """One execution of a step, for ``tokens`` tokens from ``position`` on.

    ``matrix``: the matrix that it multiplies with, or else the one that reads its result, or None.  ``tiles``: row
    blocks per tile of it, empty if it is read in place.  ``embedding``: the matrix with the embedding's rows;
    ``embedding_in_flash``: whether it is in flash.  ``window``: the positions that a token attends to, 0 for all.
    """

    sizes: PassSizes
    tokens: int
    position: int
    matrix: MatrixShape | None
    tiles: tuple[int, ...]
    embedding: MatrixShape
    embedding_in_flash: bool = False
    window: int = 0

    @property
    def cached(self) -> int:
        """Positions of the KV cache that are in use after the pass."""
        end = self.position + self.tokens
        return min(end, cached_positions(self.sizes.context, self.window, self.sizes.chunk))

    def seen(self, position: int) -> int:
        """Return how many positions a token at ``position`` attends to."""
        return min(position + 1, self.window or position + 1)


def slot_of(step: Step, steps: Iterable[Step]) -> str:
    """Return the slot of a step's matrix, or else of the one that reads its result, or ""."""
    reading = (s.matrix for s in steps if step.name in s.inputs and s.matrix is not None)
    return step.matrix or next(reading, "")


def loop_of(steps: Sequence[Step]) -> tuple[int, int]:
    """Return the indices of the first and last step of a layer."""
    inside = [i for i, step in enumerate(steps) if step.in_layer]
    return inside[0], inside[-1]


def numbers_of(steps: Iterable[Step]) -> dict[str, str]:
    """Return field of sc_layer -> C type of all per-layer parameters, in the order of the steps."""
    return {name: t for step in steps if step.in_layer for name, t in step.op.NUMBERS.items()}
