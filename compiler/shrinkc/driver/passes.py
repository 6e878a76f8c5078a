"""The planning passes, in their order: each takes a draft of a plan and returns one with more decided."""

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
    """A plan in the making.

    Given: the model's config, bytes of its decode table, ranks of low-rank adapters, formats of the
    integers that a checkpoint holds, per layer the first one with the same weights, entries of
    permutations (act-order), and the options.  ``choices`` and ``made`` are what passes have decided.
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
        """What a pass multiplies with."""
        return choose.multiplied(self.config, self.quant, self.ranks, self.formats, self.repeats)

    @cached_property
    def shape(self) -> ModelShape:
        """Of all matrices, as their engines store them."""
        return shapes_of_config(
            self.config, self.quant, self.context, self.piece_bytes, self.ranks, self.formats,
            self.repeats, self.choices, self.perms,
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """What ``place`` has made."""
        assert self.made is not None, "nothing is placed yet"
        return self.made

    @property
    def fits(self) -> bool:
        """Whether the passes would find a plan, and refuse none of the options."""
        try:
            draft = choose_engines(check_weight_groups(self))
            planner.check_fits(draft.shape, draft.target, draft.l1)
        except (DoesNotFit, QuantizeError):
            return False
        return True


def check_weight_groups(draft: Draft) -> Draft:
    """Refuses a group size that does not divide the inputs, or with whose scales the model is no smaller."""
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
    """Every matrix goes to the engine that is quickest; to the cores where others leave too little memory.

    Judged with all of L1, so that no budget of it changes a number.
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
    """Everything gets its place; raises DoesNotFit."""
    return replace(draft, made=planner.make_plan(draft.shape, draft.target, draft.l1))


def duplicate_weights(draft: Draft) -> Draft:
    """Matrices get a second layout for decoding where memory is left that nothing else uses."""
    target, plan = draft.target, draft.plan
    if not any(engine_named(name).second_layout for name in target.engines):
        return draft
    free = {level: have - plan.used[level] for level, have in plan.capacity.items()}
    # what would make vectors take more of L1 goes without, if there is no room for all
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
    """Whether all else has the memories and the sizes that it had: second layouts take what is left over."""
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
    """Code that made nothing of it checks the plan; raises PlanInvalid."""
    verify(draft.plan, draft.shape, draft.target)
    return draft


PASSES: tuple[Callable[[Draft], Draft], ...] = (
    check_weight_groups,
    choose_engines,
    place,
    duplicate_weights,
    verify_plan,
)
