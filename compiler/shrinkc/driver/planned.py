"""Results of planning: Planned for a model that fits, Shortfall for one that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from shrinkc.core.artifact import Option
from shrinkc.core.errors import DoesNotFit, Lack
from shrinkc.core.shell import name_of, quoted
from shrinkc.core.words import show_size
from shrinkc.driver.estimating import Speed, speed_of
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.engines import CORES, ON_CORES, Choices, engine_named
from shrinkc.importer import Checkpoint, Formats, LlamaConfig
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.memory.planner import make_plan
from shrinkc.memory.verify import verify
from shrinkc.pictures.memory import memory_map
from shrinkc.quantize import EMBEDDING, HEAD, QuantOptions, float_inputs
from shrinkc.schedule.shapes import ModelShape
from shrinkc.targets import Target, sizes_of

if TYPE_CHECKING:
    from shrinkc.driver.widths import ChosenWidths


@dataclass(frozen=True)
class Planned:
    """A model that fits: its plan, and what the plan was made from.

    Attributes:
        fits: True.
        plan: Where everything lies: ``used`` and ``capacity`` in bytes by memory, buffers, tiles.
        context: Tokens that prompt and answer may take together.
        notes: Assumptions made because the checkpoint is incomplete.
        checkpoint: The opened model.
        target: The target.
        shape: Sizes of all matrices.
        choices: The engine of each matrix.
        quant: Formats of float matrices, with those that ``fit`` chose.
        widths: What ``fit`` chose, with bytes and estimated costs; None without ``fit``.
        request: The options.
    """

    request: PlanRequest
    checkpoint: Checkpoint
    context: int
    target: Target
    shape: ModelShape
    plan: Plan
    notes: tuple[str, ...] = ()
    choices: Choices = ON_CORES
    quant: QuantOptions = field(default_factory=QuantOptions)
    widths: ChosenWidths | None = None

    fits: ClassVar[Literal[True]] = True

    def __repr__(self) -> str:
        used = ", ".join(
            f"{self.target.kind(level).short} {show_size(used)}" for level, used in self.plan.used.items() if used
        )  # fmt: skip
        return f"<Planned {self.name} for {self.target.name}, context {self.context}: {used}>"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.checkpoint.name

    @property
    def config(self) -> LlamaConfig:
        """Configuration of the model."""
        return self.checkpoint.config

    @property
    def formats(self) -> Formats | None:
        """Formats of matrices that the checkpoint stores as integers."""
        return self.checkpoint.formats

    @property
    def options(self) -> dict[str, Option]:
        """All options that affect the program, without paths."""
        q, r = self.request.quant, self.request
        adapter = self.checkpoint.adapter if self.checkpoint.adapter_given else None
        fixed = fixed_options(self.config, self.formats, q)
        return {
            "target": self.target.name,
            "fit": r.fit,
            "sensitivity": None if r.sensitivity is None else name_of(r.sensitivity),
            # None where it is chosen, or fixed by the checkpoint
            "bits": r.bits if r.fit or "--bits" in fixed else q.bits,
            "group_size": q.group_size,
            "short_last_group": q.short_last_group,
            "asymmetric": q.asymmetric,
            "embedding_bits": r.embedding_bits
            if r.fit or "--embedding-bits" in fixed
            else q.embedding_bits,
            "kv_bits": q.kv_bits,
            "context": self.context,
            "l1": None if self.target.board else self.plan.l1_budget,
            **self._sizes,
            "code": self.target.code[0] if self.target.code else None,
            "adapter": None if adapter is None else name_of(adapter),
            "engines": ",".join(self.target.engines),
        }

    @property
    def _sizes(self) -> dict[str, Option]:
        """The sizes of memories that were given or could have been."""
        if self.target.board:
            return {name: self.request.sizes[name] for name in sizes_of(self.target)}
        return {
            name: self.target.room(name) for name in sizes_of(self.target) if self.target.has(name)
        }

    @property
    def command(self) -> str:
        """Command line for an identical program, with all defaults and without paths."""
        words = ["shrinkc", "compile", self.name]
        for name, value in self.options.items():
            option = "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                words += [option, str(value)]
        return quoted(*words)

    @cached_property
    def speed(self) -> Speed | None:
        """Estimated cycles and tokens per second.  None for a target without a cost model.

        Raises:
            UsageError: The position is outside the context.
        """
        r = self.request
        return speed_of(self.shape, self.plan, self.target, r.position, r.clock)

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all matrices with scales and padding, without duplicated weights."""
        again = dict(self.shape.shared)
        stored = sum(p.bytes for p in self.plan.placements if p.name not in again)
        return stored - self.copy_bytes

    @property
    def copy_bytes(self) -> int:
        """Bytes of duplicated weights for faster decoding."""
        engines = [(m, engine_named(m.engine)) for m in self.shape.stored]
        return sum(
            m.bytes - replace(m, store=engine_named(e.costs_as).store).bytes
            for m, e in engines
            if e.second_layout
        )

    def for_shape(self, shape: ModelShape) -> Planned:
        """Return a copy with a plan for ``shape``.  Headers of a quantised checkpoint do not contain column
        orders and zero points, so the final shape is known only after reading the weights."""
        if shape == self.shape:
            return self
        plan = make_plan(shape, self.target, self.request.l1)
        verify(plan, shape, self.target)
        return replace(self, shape=shape, plan=plan)

    def picture(self) -> str:
        """Return the memory map as SVG."""
        return memory_map(self.name, self.plan, self.shape)

    @property
    def products(self) -> list[str]:
        """Return the cores' matrices whose groups another engine multiplies with several tokens of a prompt at once.

        The head is not among them, because of a prompt it needs only the last token."""
        sizes = planned_sizes(self.shape, self.target, self.plan)
        if not sizes.shared_products or self.plan.chunk == 1:
            return []
        layers = itertools.chain.from_iterable(self.shape.layers)
        return [m.name for m in layers if m.engine == CORES and m.product_words]

    def to_json(self) -> dict[str, object]:
        """Return the object that ``--json`` prints."""
        p = self.plan
        return {
            "model": self.name,
            "command": self.command,
            "options": self.options,
            "fits": True,
            "memory": {
                level: {"used": p.used[level], "available": have}
                for level, have in p.capacity.items()
            },
            "stack_bytes": dict(self.target.program.stacks),
            "weight_bytes": self.weight_bytes,
            "copy_bytes": self.copy_bytes,
            "chunk": p.chunk,
            "tile_bytes": p.tile_bytes,
            "kv_in_l1": p.kv_in_l1,
            "kv_layers": p.kv_layers,
            "kv_streamed": p.kv_streamed > 0,
            "tables": {x.name: {"level": x.level, "bytes": x.bytes} for x in p.tables},
            "logits_in_l1": p.logits_in_l1,
            "notes": list(self.notes),
            **({} if self.widths is None else {"widths": self.widths.to_json()}),
            **self._engines_json(),
        }

    def _engines_json(self) -> dict[str, object]:
        """Return the engine choice of every matrix that has one."""
        found = {
            name: {"engine": c.engine, "cycles": c.cycles, "refused": dict(c.refused)}
            for name, c in self.choices.by_name.items()
        }
        return {"engines": found, "prompt_products": self.products} if found else {}


def fixed_options(
    config: LlamaConfig, formats: Formats | None, quant: QuantOptions
) -> frozenset[str]:
    """Return the options that a quantised checkpoint determines."""
    known = formats or {}
    fixed: set[str] = set()
    tables = {EMBEDDING} if config.tie_embeddings else {EMBEDDING, HEAD}
    if tables <= known.keys():
        fixed.add("--embedding-bits")
    if not float_inputs(config, known):
        fixed |= {"--bits", "--asymmetric"}
        if not quant.grouped_embeddings or "--embedding-bits" in fixed:
            fixed |= {"--group-size", "--short-last-group"}
    return frozenset(fixed)


@dataclass(frozen=True)
class Shortfall:
    """A model that does not fit, with the memories that are too small.

    Attributes:
        fits: False.
        name: The model.
        target: The target.
        context: Requested tokens for prompt and answer together.
        lacks: One entry for each memory that is too small.
        notes: Assumptions made because the checkpoint is incomplete.
    """

    name: str
    target: Target
    context: int
    lacks: tuple[Lack, ...]
    notes: tuple[str, ...] = ()
    _search: Callable[[], list[str]] = field(default=list, repr=False, compare=False)

    fits: ClassVar[Literal[False]] = False

    def __repr__(self) -> str:
        lacks = ", ".join(f"{x.level} lacks {show_size(x.excess)}" for x in self.lacks)
        return f"<Shortfall {self.name} for {self.target.name}, context {self.context}: {lacks}>"

    @cached_property
    def alternatives(self) -> tuple[str, ...]:
        """Changes of options, as the command line writes them.  Each was checked to fit.

        They are searched for when this is first read, which takes many plans.
        """
        return tuple(self._search())

    @property
    def error(self) -> DoesNotFit:
        """The exception that `compile` raises for it."""
        hint = (
            f"these were checked to fit: {'; '.join(self.alternatives)}."
            if self.alternatives
            else "no shorter context or narrower weights make it fit these sizes; give more --ram or --flash."
            if self.target.board
            else "no shorter context, narrower weights or larger L1 makes it fit this target, nor "
            "all of them together."
        )
        return DoesNotFit(
            f"{self.name} at context {self.context} on {self.target.name}: "
            + " ".join([*map(str, self.lacks), *(f"Note: {n}." for n in self.notes)]),
            hint,
            self.lacks,
            self.alternatives,
        )
