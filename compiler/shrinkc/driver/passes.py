"""Planning passes in order.  Each takes a draft of a plan and returns one with more decisions made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property

from shrinkc.core.errors import DoesNotFit, QuantizeError
from shrinkc.engines import CORES, ON_CORES, Choices, engine_named
from shrinkc.importer import Formats, LlamaConfig
from shrinkc.memory import planner
from shrinkc.memory.plan import Plan
from shrinkc.memory.verify import verify
from shrinkc.quantize import QuantOptions, grouped_inputs
from shrinkc.quantize.weights import check_groups
from shrinkc.schedule import choose
from shrinkc.schedule.shapes import ModelShape, Ranks, shapes_of_config
from shrinkc.storage import WIDEST, WORD
from shrinkc.targets import Target


@dataclass(frozen=True)
class Draft:
    """Incomplete plan.

    Inputs: the model's config, bytes of its decode table, ranks of low-rank adapters, formats of
    quantised matrices, per layer the first one with equal weights, numbers of entries of
    permutations (act-order), and the options.  Results of passes: ``choices`` and ``made``.
    """

    config: LlamaConfig
    piece_bytes: int
    ranks: Ranks
    formats: Formats | None
    repeats: tuple[int, ...]
    perms: int
    quant: QuantOptions
    context: int
    target: Target
    l1: int  # bytes
    choices: Choices = ON_CORES
    made: Plan | None = None

    @cached_property
    def matrices(self) -> choose.Multiplied:
        """Return the matrices of a forward pass."""
        return choose.multiplied(self.config, self.quant, self.ranks, self.formats, self.repeats)

    @cached_property
    def shape(self) -> ModelShape:
        """Return the sizes of all matrices as their engines store them."""
        return shapes_of_config(
            self.config, self.quant, self.context, self.piece_bytes, self.ranks, self.formats,
            self.repeats, self.choices, self.perms,
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """Return the plan made by ``place``."""
        assert self.made is not None, "nothing is placed yet"
        return self.made

    @property
    def fits(self) -> bool:
        """Return whether all passes succeed."""
        try:
            draft = choose_engines(check_weight_groups(self))
            planner.check_fits(draft.shape, draft.target, draft.l1)
        except (DoesNotFit, QuantizeError):
            return False
        return True


def check_weight_groups(draft: Draft) -> Draft:
    """Refuse a group size that does not divide the inputs, or whose scales make the model no smaller."""
    quant = draft.quant

    def stored_bytes(quant: QuantOptions) -> int:
        shape = choose_engines(replace(draft, quant=quant)).shape
        return sum(m.bytes for m in shape.stored)

    def saves(group: int) -> bool:
        wide = replace(quant, bits=WIDEST, embedding_bits=WIDEST, group_size=None, asymmetric=False)
        return stored_bytes(replace(quant, group_size=group)) < stored_bytes(wide)

    narrow = min(quant.bits, quant.embedding_bits) < WIDEST
    inputs = grouped_inputs(draft.config, draft.formats or (), quant)
    check_groups(inputs, quant.group_size, quant.short_last_group, saves if narrow else None)
    return draft


def choose_engines(draft: Draft) -> Draft:
    """Choose the fastest engine for every matrix, or the cores if other engines leave too little memory.

    The choice assumes all of L1, so that the L1 budget does not affect integers.
    """
    barred: dict[str, str] = {}
    while True:
        choices = choose.choose_engines(draft.matrices, draft.target, barred)
        chosen = replace(draft, choices=choices)
        others = choices.engines - {CORES}
        if not others:
            return chosen
        try:
            planner.check_fits(chosen.shape, draft.target)
            return chosen
        except DoesNotFit as refused:
            lack = refused.lacks[0]
            short = f"would leave {lack.level} {lack.excess} bytes short there"
            barred |= dict.fromkeys(others, short)


def place(draft: Draft) -> Draft:
    """Place everything in memory.  Raises DoesNotFit."""
    return replace(draft, made=planner.make_plan(draft.shape, draft.target, draft.l1))


def duplicate_weights(draft: Draft) -> Draft:
    """Add a second layout of matrices for decoding in otherwise unused memory."""
    target, plan = draft.target, draft.plan
    if not any(engine_named(name).second_layout for name in target.engines):
        return draft
    free = {level: have - plan.used[level] for level, have in plan.capacity.items()}
    # if not all fit, leave out second layouts that would make vectors take more of L1
    vectors = next(b.bytes for b in plan.l1 if b.name == "xq")
    for widest in (None, vectors // WORD):
        found = choose.choose_second_layouts(draft.choices, draft.matrices, target, free, widest)
        if found.engines == draft.choices.engines:
            return replace(draft, choices=found)
        with suppress(DoesNotFit):
            larger = place(replace(draft, choices=found))
            if _as_before(larger.plan, plan):
                return larger
    return replace(draft, choices=choose.without_second_layouts(draft.choices, found))


def _as_before(plan: Plan, before: Plan) -> bool:
    """Return whether all other parts keep their memories and sizes, so that second layouts take only free memory."""
    held = {"l1", "lower_buffers", "tables", "placements", "used", "notes"}
    sizes = {f.name for f in fields(Plan)} - held

    def levels(of: Plan) -> list[object]:
        return [
            {name: level for name, level in of.kv_layers.items() if level},
            {b.name for b in of.l1},
            {x.name: x.level for x in of.tables},
            {x.name: x.level for x in of.placements},
        ]

    return levels(plan) == levels(before) and all(
        getattr(plan, name) == getattr(before, name) for name in sizes
    )


def verify_plan(draft: Draft) -> Draft:
    """Check the plan with independent code.  Raises PlanInvalid."""
    verify(draft.plan, draft.shape, draft.target)
    return draft


PASSES: tuple[Callable[[Draft], Draft], ...] = (
    check_weight_groups,
    choose_engines,
    place,
    duplicate_weights,
    verify_plan,
)
