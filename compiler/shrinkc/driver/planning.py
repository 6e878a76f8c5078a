"""From a model directory and options to a memory plan, before any weight is read.

``plan`` stops here and ``compile`` goes on from here, so both say the same.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace

from shrinkc.core.errors import DoesNotFit, QuantizeError, UsageError
from shrinkc.core.words import show_size
from shrinkc.driver.fitting import CONTEXT_LEAST, alternatives, shortfalls
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned, Shortfall, fixed_options
from shrinkc.engines import CORES, Choices, engine_named
from shrinkc.importer import Checkpoint, LlamaConfig
from shrinkc.memory.plan import Plan
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import verify
from shrinkc.model import check_window, window_notes
from shrinkc.quantize import MODULES, QuantOptions, check_sizes, grouped_inputs
from shrinkc.quantize.weights import check_groups
from shrinkc.schedule.choose import choose_copies, choose_engines, multiplied, without_copies
from shrinkc.schedule.shapes import ModelShape, default_context, shapes_of_config
from shrinkc.storage import WIDEST, WORD
from shrinkc.targets import Target, target_named

CONTEXT_MAX = 4096  # beyond, a probability has fewer than 12 bits (ir/ops/attention.py)

# Taken of a decode table that is not there; SmolLM2's has 6.8, one of 512 pieces 1.9.
BYTES_PER_PIECE = 8

_SLOT_OF = {module: slot for slot, modules in MODULES.items() for module in modules}


def prepare(request: PlanRequest, *, whole: bool = False) -> Planned | Shortfall:
    """Reads config, tokenizer and the headers of weights and adapter, and plans.

    Unless the model has to be ``whole``, its sizes alone will do; notes then say what is assumed.
    Raises what the importer raises, UsageError, or QuantizeError.
    """
    target = _target(request)
    checkpoint = request.opened(whole=whole)
    known, config = checkpoint.formats, checkpoint.config
    check_sizes(config)
    context = _context(request, config)
    check_window(config, context)
    quant = request.quant
    fixed = fixed_options(config, known, quant)
    if refused := sorted(request.given & fixed):
        raise QuantizeError(
            f"{checkpoint.name} is quantised already: {', '.join(refused)} cannot change its "
            "integers.",
            f"leave {'it' if len(refused) == 1 else 'them'} out; the checkpoint decides.",
        )
    if request.l1 is not None and request.l1 > target.l1:
        raise UsageError(
            f"--l1 {request.l1} is more than the {target.l1} bytes of {target.name}.",
            "leave --l1 out to use all of it.",
        )
    piece_bytes, notes = _pieces(checkpoint)
    notes += window_notes(config, context)
    ranks, repeats = _ranks(checkpoint), checkpoint.repeats

    def chosen(quant: QuantOptions, context: int) -> tuple[Choices, ModelShape]:
        """The engines that are best, and the shapes; the cores' where others leave too little memory.

        Judged with all of L1, so that no budget changes a number.
        """
        barred: dict[str, str] = {}
        matrices = multiplied(config, quant, ranks, known, repeats)
        while True:
            choices = choose_engines(matrices, target, barred)
            shape = shapes_of_config(
                config, quant, context, piece_bytes, ranks, known, repeats, choices
            )
            others = choices.engines - {CORES}
            try:
                if others:
                    check_fits(shape, target)
                return choices, shape
            except DoesNotFit as refused:
                lack = refused.lacks[0]
                short = f"would leave {lack.level} {lack.excess} bytes short there"
                barred |= dict.fromkeys(others, short)

    def shape_for(quant: QuantOptions, context: int) -> ModelShape:
        return chosen(quant, context)[1]

    def check(quant: QuantOptions) -> None:
        wide = replace(quant, bits=WIDEST, head_bits=WIDEST, group=None, asymmetric=False)

        def saves(group: int) -> bool:
            asked = shape_for(replace(quant, group=group), context)
            return stored_bytes(asked) < stored_bytes(shape_for(wide, context))

        narrow = min(quant.bits, quant.head_bits) < WIDEST
        inputs = grouped_inputs(config, known or (), quant)
        check_groups(inputs, quant.group, quant.short_last_group, saves if narrow else None)

    def fits(quant: QuantOptions, context: int, l1: int) -> bool:
        try:
            check(quant)
            check_fits(shape_for(quant, context), target, l1)
        except (DoesNotFit, QuantizeError):
            return False
        return True

    check(quant)
    choices, shape = chosen(quant, context)
    try:
        plan = make_plan(shape, target, request.l1)
    except DoesNotFit:
        l1 = target.l1 if request.l1 is None else request.l1

        def search() -> list[str]:
            return alternatives(fits, quant, context, l1, target.l1, fixed)

        lacks = shortfalls(shape, target, request.l1)
        return Shortfall(checkpoint.name, target, context, lacks, notes, search)
    free = {level: have - plan.used[level] for level, have in plan.capacity.items()}
    matrices = multiplied(config, quant, ranks, known, repeats)
    # what would make vectors take more of L1 goes without, if there is no room for all
    vectors = next(b.bytes for b in plan.l1 if b.name == "xq")
    for widest in (None, vectors // WORD):
        found = choose_copies(choices, matrices, target, free, widest)
        copied = found.engines != choices.engines
        larger = shapes_of_config(config, quant, context, piece_bytes, ranks, known, repeats, found)
        with suppress(DoesNotFit):
            of_larger = make_plan(larger, target, request.l1) if copied else plan
            if _as_before(of_larger, plan):
                choices, shape, plan = found, larger, of_larger
                break
    else:
        choices = without_copies(choices, found)
    verify(plan, shape, target)
    return Planned(request, checkpoint, context, target, shape, plan, notes, choices)


def _as_before(plan: Plan, before: Plan) -> bool:
    """Whether all else has the memories and the sizes that it had: copies take what is left over."""
    held = {"l1", "beside", "tables", "placements", "used", "notes"}
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


def stored_bytes(shape: ModelShape) -> int:
    """Bytes of all matrices, scales and padding included."""
    return sum(m.bytes for m in shape.stored)


def _target(request: PlanRequest) -> Target:
    """The target, with its code where it was asked for, and those of its engines that were."""
    target = target_named(request.target)
    if request.code is not None:
        if request.code not in target.code:
            raise UsageError(
                f"--code {request.code}: {target.name} cannot have its code there.",
                f"allowed: {', '.join(target.code)}." if target.code else "leave --code out.",
            )
        target = target.with_code(request.code)
    if request.engines is None:
        return target
    for name in request.engines:
        if name not in target.engines:
            raise UsageError(
                f"--engines {','.join(request.engines)}: {target.name} has no engine '{name}'.",
                f"allowed: {', '.join(target.engines)}, with commas between them; the cores run what "
                "no other does.",
            )
    # one that has copies of what another one runs brings that along
    kept = {CORES, *request.engines, *(engine_named(name).costs_as for name in request.engines)}
    return replace(target, engines=tuple(name for name in target.engines if name in kept))


def _pieces(checkpoint: Checkpoint) -> tuple[int, tuple[str, ...]]:
    """Bytes of the decode table, and the notes."""
    if checkpoint.tokenizer is not None:
        return sum(map(len, checkpoint.tokenizer.decode_table())), checkpoint.notes
    size = BYTES_PER_PIECE * checkpoint.config.vocab_size
    *notes, last = checkpoint.notes
    assumed = f"its decode table is taken as {BYTES_PER_PIECE} bytes per token ({show_size(size)})"
    return size, (*notes, f"{last}; {assumed}")


def _context(request: PlanRequest, config: LlamaConfig) -> int:
    if request.context is None:
        return default_context(config)
    most = min(config.max_position, CONTEXT_MAX)
    if not CONTEXT_LEAST <= request.context <= most:
        limit = (
            "the model was made for"
            if most == config.max_position
            else "the integer attention can sum over"
        )
        raise UsageError(
            f"--context {request.context} is not possible; {most} positions are what {limit}.",
            f"allowed: {CONTEXT_LEAST} to {most}.",
        )
    return request.context


def _ranks(checkpoint: Checkpoint) -> list[dict[str, int]]:
    """Per layer: slot -> rank of its side path.

    Adapters of q, k and v (and of gate and up) share one side path, so their ranks add up.
    """
    ranks: list[dict[str, int]] = [{} for _ in range(checkpoint.config.num_layers)]
    for (index, module), rank in checkpoint.ranks.items():
        layer, slot = ranks[index], _SLOT_OF[module]
        layer[slot] = layer.get(slot, 0) + rank
    return ranks
