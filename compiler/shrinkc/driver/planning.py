"""From a model directory and options to a memory plan, before any weight is read.

``plan`` stops here and ``compile`` goes on from here, so both say the same.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from shrinkc.core.artifact import Option
from shrinkc.core.errors import DoesNotFit, Lack, QuantizeError, UsageError
from shrinkc.core.shell import name_of, quoted
from shrinkc.core.words import show_size
from shrinkc.driver.estimating import Speed, check_speed, speed_of
from shrinkc.driver.fitting import CONTEXT_LEAST, alternatives, shortfalls
from shrinkc.driver.opening import open_model
from shrinkc.engines import CORES, NEUREKA, ON_CORES, Choices
from shrinkc.importer import Checkpoint, Formats, LlamaConfig
from shrinkc.memory.plan import Plan, planned_sizes
from shrinkc.memory.planner import check_fits, make_plan
from shrinkc.memory.verify import verify
from shrinkc.model import check_window, window_notes
from shrinkc.quantize import (
    EMBEDDING,
    HEAD,
    MODULES,
    QuantOptions,
    check_sizes,
    float_inputs,
    grouped_inputs,
    inputs_of,
)
from shrinkc.quantize.weights import check_groups
from shrinkc.report.memory_map import memory_map
from shrinkc.schedule.choose import choose_engines
from shrinkc.schedule.shapes import ModelShape, default_context, shapes_of_config
from shrinkc.storage import WIDEST
from shrinkc.targets import MEMORIES, Target, target_named

CONTEXT_MAX = 4096  # beyond, a probability has fewer than 12 bits (ir/ops/attention.py)

# Taken of a decode table that is not there; SmolLM2's has 6.8, one of 512 pieces 1.9.
BYTES_PER_PIECE = 8

_TABLES = {"rope": "RoPE table", "pieces": "token texts"}

_SLOT_OF = {module: slot for slot, modules in MODULES.items() for module in modules}


@dataclass(frozen=True)
class PlanRequest:
    """What to compile, for what, and how.  ``given`` are the options of ``quant`` that were given,
    ``engines`` the target's that may run matrices beside the cores (None: all), ``code`` the memory that
    the decode path's code lies in (None: the target's first), ``position`` and ``clock_mhz`` those that a
    speed is stated for.

    ``model`` is a path, to which an ``adapter`` may be given, or was opened already with its own.
    """

    model: Path | Checkpoint
    target: str
    quant: QuantOptions
    context: int | None = None
    l1: int | None = None
    adapter: Path | None = None
    given: frozenset[str] = frozenset()
    engines: tuple[str, ...] | None = None
    code: str | None = None
    position: int | None = None
    clock_mhz: float | None = None

    @classmethod
    def from_options(
        cls,
        *,
        model: Path | Checkpoint,
        target: str,
        bits: int | str | None,
        group: int | None,
        short_last_group: bool,
        asymmetric: bool,
        head_bits: int | str | None,
        context: int | None,
        l1: int | None,
        adapter: Path | None,
        engines: str | Sequence[str] | None,
        code: str | None = None,
        position: int | None = None,
        clock: float | None = None,
    ) -> PlanRequest:
        """From the values of options (``engines``: names, or a text with commas between them);
        QuantizeError for a width that is not possible, UsageError for a position or clock."""
        check_speed(position, clock)
        if isinstance(model, Checkpoint) and adapter is not None:
            raise UsageError(
                f"--adapter {adapter}: {model.name} was opened already.",
                "give the adapter to 'open'.",
            )
        quant = QuantOptions(
            bits=WIDEST if bits is None else int(bits), group=group, asymmetric=asymmetric,
            head_bits=WIDEST if head_bits is None else int(head_bits),
            short_last_group=short_last_group,
        )  # fmt: skip
        given = {
            "--bits": bits, "--group": group, "--short-last-group": short_last_group,
            "--asymmetric": asymmetric, "--head-bits": head_bits,
        }  # fmt: skip
        names = frozenset(name for name, value in given.items() if value not in (None, False))
        if isinstance(engines, str):
            engines = [name.strip() for name in engines.split(",")]
        chosen = None if engines is None else tuple(engines)
        return cls(model, target, quant, context, l1, adapter, names, chosen, code, position, clock)

    def opened(self, *, whole: bool) -> Checkpoint:
        """The checkpoint, with its weights if it has to be ``whole``."""
        if not isinstance(self.model, Checkpoint):
            return open_model(self.model, self.adapter, whole=whole)
        if not whole or self.model.whole:
            return self.model
        adapter = self.model.adapter if self.model.adapter_given else None
        return open_model(Path(self.model.hub or self.model.path), adapter, whole=True)


@dataclass(frozen=True)
class Planned:
    """A plan and what it was made from: the model fits.

    ``plan`` says where everything lies; ``context`` is in tokens; ``notes`` are what had to be
    assumed where the checkpoint is not whole.  ``choices``: which engine runs which matrix.
    """

    request: PlanRequest
    checkpoint: Checkpoint
    context: int
    target: Target
    shape: ModelShape
    plan: Plan
    notes: tuple[str, ...] = ()
    choices: Choices = ON_CORES

    fits: ClassVar[Literal[True]] = True

    @property
    def name(self) -> str:
        """Of the model."""
        return self.checkpoint.name

    @property
    def config(self) -> LlamaConfig:
        """Of the model."""
        return self.checkpoint.config

    @property
    def formats(self) -> Formats | None:
        """Of the matrices that the checkpoint stores as integers."""
        return self.checkpoint.formats

    @property
    def options(self) -> dict[str, Option]:
        """Every option that decides the program, without paths."""
        q = self.request.quant
        adapter = self.checkpoint.adapter if self.checkpoint.adapter_given else None
        fixed = fixed_options(self.config, self.formats, q)
        return {
            "target": self.target.name,
            "bits": None if "--bits" in fixed else q.bits,
            "group": q.group,
            "short_last_group": q.short_last_group,
            "asymmetric": q.asymmetric,
            "head_bits": None if "--head-bits" in fixed else q.head_bits,
            "context": self.context,
            "l1": self.plan.l1_budget,
            "code": self.target.code[0] if self.target.code else None,
            "adapter": None if adapter is None else name_of(adapter),
            "engines": ",".join(self.target.engines),
        }

    @property
    def command(self) -> str:
        """The command line that makes the same program: names instead of paths, nothing implied."""
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
        """What the cost model says of it; None for a target that was not calibrated.

        UsageError for a position outside the context.
        """
        r = self.request
        return speed_of(self.shape, self.plan, self.target, r.position, r.clock_mhz)

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of all matrices, scales and padding included."""
        again = dict(self.shape.shared)
        return sum(p.bytes for p in self.plan.placements if p.name not in again)

    def _widths(self) -> str:
        q = self.request.quant
        known = self.formats or {}
        fixed = fixed_options(self.config, self.formats, q)
        said = []
        if "--bits" not in fixed:
            group = f" in groups of {q.group}" if q.group else ""
            said.append(f"{q.bits} bit{' asymmetric' if q.asymmetric else ''}{group}")
        counts = Counter(
            (bits, group if group < inputs_of(self.config, name) else 0, asymmetric)
            for name, (bits, group, asymmetric) in known.items()
        )
        for (bits, size, asymmetric), count in sorted(counts.items()):
            kind = " asymmetric" if asymmetric else ""
            groups = f" in groups of {size}" if size else ""
            said.append(f"{bits} bit{kind}{groups} ({count} of the checkpoint's matrices)")
        if "--head-bits" not in fixed:
            tables = {EMBEDDING: "embedding", HEAD: "head"}
            if self.config.tie_embeddings:
                tables = {EMBEDDING: "embedding and head"}
            floats = [label for name, label in tables.items() if name not in known]
            said.append(f"{' and '.join(floats)} at {q.head_bits} bit")
        if self.shape.shared:
            said.append(f"{len(self.shape.shared)} matrices that repeat others not stored again")
        return ", ".join(said)

    def for_shape(self, shape: ModelShape) -> Planned:
        """With a plan for ``shape``: what the headers of a quantised checkpoint leave open (column
        orders, zero points that all lie in the middle) is known once it is read."""
        if shape == self.shape:
            return self
        plan = make_plan(shape, self.target, self.request.l1)
        verify(plan, shape, self.target)
        return replace(self, shape=shape, plan=plan)

    def lines(self) -> list[str]:
        """A summary for people."""
        c, p = self.config, self.plan
        implied = " (default)" if self.request.context is None else ""
        cut = [x for x in p.placements if x.name != "embedding" and x.engine == CORES]
        tiles = sum(-(-x.blocks // x.tile_blocks) for x in cut)
        out = [
            f"{self.name} for {self.target.name}: {c.num_layers} layers, hidden {c.hidden_size}, "
            f"vocabulary {c.vocab_size}, context {self.context}{implied}",
            f"  weights     {show_size(self.weight_bytes)} at {self._widths()}",
        ]
        for level, have in p.capacity.items():
            used, label = p.used[level], MEMORIES[level].short
            if used or level in ("l1", "l2"):
                share = f"{100 * used / have:.0f} %" if have else "-"
                out.append(
                    f"  {label:<11} {show_size(used):>10} of {show_size(have):>10}  {share:>5}"
                )
        out.append(
            f"  schedule    chunks of {p.chunk} tokens, {tiles} tiles of up to "
            f"{show_size(p.tile_bytes)} per pass, KV cache in {self._cache_places()}, logits in "
            f"{'L1' if p.logits_in_l1 else 'L2'}"
        )
        away = [x for x in p.tables if x.level != "l2"]
        out += [
            f"  {_TABLES[x.name]:<11} {show_size(x.bytes):>10} in {MEMORIES[x.level].label}, to leave L2 to others"
            for x in away
        ]
        out += [f"  engines     {line}" for line in self._engine_lines()]
        return out + [f"  note        {note}" for note in self.notes]

    def picture(self) -> str:
        """The memory map, as an SVG document."""
        return memory_map(self.plan, self.name)

    def _cache_places(self) -> str:
        """The memories that hold the cache, with their layers where they are several."""
        layers = self.plan.kv_layers
        if not layers:
            return "L1"
        if len(layers) == 1:
            return MEMORIES[next(iter(layers))].label
        parts = [f"{MEMORIES[level].label} ({count} layers)" for level, count in layers.items()]
        return " and ".join(parts)

    @property
    def products(self) -> list[str]:
        """The matrices of the cores of which N-EUREKA multiplies the segments with the tokens of a prompt at once;
        the head is not among them: of a prompt it takes the last token alone."""
        sizes = planned_sizes(self.shape, self.target, self.plan)
        if not sizes.several_on_neureka or self.plan.chunk == 1:
            return []
        layers = itertools.chain.from_iterable(self.shape.layers)
        return [m.name for m in layers if m.engine == CORES and m.product_words]

    def _engine_lines(self) -> list[str]:
        """Who runs how much, and why not more; nothing where the target has the cores alone."""
        chosen = self.choices.by_name
        runs = Counter(c.engine for c in chosen.values())
        out = [
            f"{engine}: {runs[engine]} of {len(chosen)} matrices, estimated "
            f"{sum(c.cycles for c in chosen.values() if c.engine == engine)} cycles per token"
            for engine in self.target.engines
            if chosen
        ]
        if products := self.products:
            out.append(
                f"in a prompt {NEUREKA.name} multiplies the groups of {len(products)} of the cores' matrices, "
                "which add them up"
            )
        why: dict[tuple[str, str], list[str]] = {}
        for name, choice in chosen.items():
            for engine, reason in choice.refused:
                why.setdefault((engine, reason), []).append(name)
        for (engine, reason), names in why.items():
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            out.append(f"not on {engine}: {names[0]}{more} {reason}")
        return out

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
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
            "weight_bytes": self.weight_bytes,
            "chunk": p.chunk,
            "tile_bytes": p.tile_bytes,
            "kv_in_l1": p.kv_in_l1,
            "kv_layers": p.kv_layers,
            "tables": {x.name: {"level": x.level, "bytes": x.bytes} for x in p.tables},
            "logits_in_l1": p.logits_in_l1,
            "notes": list(self.notes),
            **self._engines_json(),
        }

    def _engines_json(self) -> dict[str, object]:
        """The choice of every matrix, where there is one."""
        found = {
            name: {"engine": c.engine, "cycles": c.cycles, "refused": dict(c.refused)}
            for name, c in self.choices.by_name.items()
        }
        return {"engines": found, "prompt_products": self.products} if found else {}


def fixed_options(
    config: LlamaConfig, formats: Formats | None, quant: QuantOptions
) -> frozenset[str]:
    """The options that a quantised checkpoint leaves nothing to decide for."""
    known = formats or {}
    fixed: set[str] = set()
    tables = {EMBEDDING} if config.tie_embeddings else {EMBEDDING, HEAD}
    if tables <= known.keys():
        fixed.add("--head-bits")
    if not float_inputs(config, known):
        fixed |= {"--bits", "--asymmetric"}
        if not quant.grouped_tables or "--head-bits" in fixed:
            fixed |= {"--group", "--short-last-group"}
    return frozenset(fixed)


@dataclass(frozen=True)
class Shortfall:
    """A model that does not fit: what every memory lacks.

    ``context`` is in tokens; see :class:`shrinkc.core.errors.Lack` for levels and bytes.
    """

    name: str
    target: Target
    context: int
    lacks: tuple[Lack, ...]
    notes: tuple[str, ...] = ()
    _search: Callable[[], list[str]] = field(default=list, repr=False, compare=False)

    fits: ClassVar[Literal[False]] = False

    @cached_property
    def alternatives(self) -> tuple[str, ...]:
        """Changes of options, as the command line writes them, each one checked to fit; made of
        many plans when first asked for."""
        return tuple(self._search())

    @property
    def error(self) -> DoesNotFit:
        """The refusal that says all of it."""
        hint = (
            f"these were checked to fit: {'; '.join(self.alternatives)}."
            if self.alternatives
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
        while True:
            choices = choose_engines(config, quant, ranks, known, repeats, target, barred)
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
    verify(plan, shape, target)
    return Planned(request, checkpoint, context, target, shape, plan, notes, choices)


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
    kept = {CORES, *request.engines}
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
