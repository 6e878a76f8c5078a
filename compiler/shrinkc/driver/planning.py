"""Planning of a model from its configuration and headers, without reading weights.

``plan`` ends here and ``compile`` continues from here, so their results agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from shrinkc.core.errors import DoesNotFit, Lack, QuantizeError, UsageError
from shrinkc.core.words import show_size
from shrinkc.driver.fitting import CONTEXT_LEAST, alternatives, lacks_weights, shortfalls
from shrinkc.driver.passes import PASSES, Draft, check_weight_groups
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned, Shortfall, fixed_options
from shrinkc.engines import CORES, engine_named
from shrinkc.importer import Checkpoint, LlamaConfig
from shrinkc.model import SLOT_MODULES, window_notes
from shrinkc.quantize import QuantOptions, check_sizes
from shrinkc.schedule.shapes import default_context, permutation_entries
from shrinkc.storage import KV_BITS
from shrinkc.targets import MIB, MOST, SIZES, Target, target_named, with_sizes

# a longer context leaves fewer than 12 bits for a probability (ir/ops/attention.py)
CONTEXT_MAX = 4096

# Assumed for a missing decode table; SmolLM2's has 6.8, a table of 512 pieces 1.9.
BYTES_PER_PIECE = 8

_SLOT_OF = {module: slot for slot, modules in SLOT_MODULES.items() for module in modules}


def prepare(request: PlanRequest, *, whole: bool = False) -> Planned | Shortfall:
    """Read config, tokenizer and headers of weights and adapter, and plan.

    Unless ``whole`` is set, a model without weights and tokenizer is enough; notes then list assumptions.
    Raises the errors of the importer, UsageError, or QuantizeError.
    """
    target = _target(request)
    checkpoint = request.opened(whole=whole)
    config = checkpoint.config
    check_sizes(config, request.quant.kv_bits)
    context = _context(request, config)
    fixed = fixed_options(config, checkpoint.formats, request.quant)
    if refused := sorted(request.given & fixed):
        raise QuantizeError(
            f"{checkpoint.name} is quantised already: {', '.join(refused)} cannot change its "
            "integers.",
            f"leave {'it' if len(refused) == 1 else 'them'} out; the checkpoint's own format is used.",
        )
    if request.l1 is not None and target.board:
        raise UsageError(
            "--l1 is not possible with --ram and --flash.",
            "leave --l1 out; a smaller --ram says the same.",
        )
    if request.l1 is not None and request.l1 > target.l1:
        raise UsageError(
            f"--l1 {request.l1} is more than the L1 memory of {target.name}, {target.l1} bytes.",
            "leave --l1 out to use all of it.",
        )
    piece_bytes, notes = _pieces(checkpoint)
    notes += window_notes(config, context)
    draft = Draft(
        config, piece_bytes, _ranks(checkpoint), checkpoint.formats, checkpoint.repeats,
        permutation_entries(config, checkpoint.permuted), request.quant, context, target,
        target.l1 if request.l1 is None else request.l1,
    )  # fmt: skip
    widths = None
    if request.fit:
        from shrinkc.driver.widths import choose_widths  # a moment that other plans need not take

        draft, widths = choose_widths(check_weight_groups(draft), request)
    for step in PASSES:
        try:
            draft = step(draft)
        except DoesNotFit:
            lacks = shortfalls(draft.shape, target, draft.l1)
            search = partial(_alternatives, draft, request, fixed, lacks)
            return Shortfall(checkpoint.name, target, context, lacks, notes, search)
    return Planned(
        request, checkpoint, context, target, draft.shape, draft.plan, notes, draft.choices,
        draft.quant, widths,
    )  # fmt: skip


def _alternatives(
    draft: Draft, request: PlanRequest, fixed: Collection[str], lacks: Sequence[Lack]
) -> list[str]:
    """Return changes of options that make the model fit."""
    if request.fit:
        fixed = {*fixed, "--bits", "--embedding-bits"}

    def fits(quant: QuantOptions, context: int, l1: int) -> bool:
        return replace(draft, quant=quant, context=context, l1=l1).fits

    found = alternatives(fits, draft.quant, draft.context, draft.l1, draft.target.l1, fixed)
    if all(map(lacks_weights, lacks)):
        found = [*_with_fit(draft, request), *found]
    elif _fits_with_narrow_cache(draft):
        found.append(f"--kv-bits {KV_BITS[-1]}")
    return found + [f"--{name} {size // MIB}MiB" for name, size in _larger_parts(draft)]


def _fits_with_narrow_cache(draft: Draft) -> bool:
    """Return whether fewer bits of keys and values make the model fit."""
    quant = replace(draft.quant, kv_bits=KV_BITS[-1])
    try:
        check_sizes(draft.config, quant.kv_bits)
    except QuantizeError:
        return False
    return quant != draft.quant and replace(draft, quant=quant).fits


def _with_fit(draft: Draft, request: PlanRequest) -> list[str]:
    """Return how --fit makes the model fit: beside the other options, or in place of widths; empty if it does not."""
    if request.fit:
        return []
    from shrinkc.driver.widths import smallest_widths

    given = [name for name in ("--bits", "--embedding-bits") if name in request.given]
    free = replace(request, bits=None, embedding_bits=None)
    try:
        if smallest_widths(draft, request).fits:
            return ["--fit"]
        if given and smallest_widths(draft, free).fits:
            return [f"--fit without {' and '.join(given)}"]
    except QuantizeError:  # all matrices are quantised already
        pass
    return []


def _larger_parts(draft: Draft) -> Iterator[tuple[str, int]]:
    """Yield each off-chip memory that needs only to be larger, with the least power of two that is enough."""
    for name in filter(draft.target.has, SIZES):
        size = MIB
        while size <= MOST:
            larger = replace(draft, target=draft.target.with_room(**{name: size}))
            if size > draft.target.room(name) and larger.fits:
                yield name, size
                break
            size *= 2


def _target(request: PlanRequest) -> Target:
    """Return the target with the requested code memory and engines."""
    target = with_sizes(target_named(request.target), request.sizes)
    if request.code is not None:
        if request.code not in target.code:
            raise UsageError(
                f"--code {request.code}: {target.name} cannot keep code in that memory.",
                f"allowed: {', '.join(target.code)}." if target.code else "leave --code out.",
            )
        target = target.with_code(request.code)
    names = request.engine_names
    if names is None:
        return target
    for name in names:
        if name not in target.engines:
            raise UsageError(
                f"--engines {','.join(names)}: {target.name} has no engine '{name}'.",
                f"allowed: {', '.join(target.engines)}, separated by commas; the cores run all other "
                "matrices.",
            )
    # an engine with a second layout needs the engine of the first
    kept = {CORES, *names, *(engine_named(name).costs_as for name in names)}
    return replace(target, engines=tuple(name for name in target.engines if name in kept))


def _pieces(checkpoint: Checkpoint) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of the decode table, and notes."""
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
            "the model was trained for"
            if most == config.max_position
            else "integer attention supports"
        )
        raise UsageError(
            f"--context {request.context} is not possible: {limit} at most {most} tokens.",
            f"allowed: {CONTEXT_LEAST} to {most}.",
        )
    return request.context


def _ranks(checkpoint: Checkpoint) -> list[dict[str, int]]:
    """Return slot -> rank of its adapter, per layer.

    Adapters of q, k and v (and of gate and up) share one adapter, so their ranks add up.
    """
    ranks: list[dict[str, int]] = [{} for _ in range(checkpoint.config.num_layers)]
    for (index, module), rank in checkpoint.ranks.items():
        layer, slot = ranks[index], _SLOT_OF[module]
        layer[slot] = layer.get(slot, 0) + rank
    return ranks
