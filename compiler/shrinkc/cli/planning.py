"""From a model directory and options to a memory plan, before any weight is read.

``plan`` stops here and ``compile`` goes on from here, so both say the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from shrinkc.cli.fitting import CONTEXT_LEAST, alternatives, shortfalls
from shrinkc.cli.units import show_size
from shrinkc.core.artifact import Option
from shrinkc.core.errors import DoesNotFit, QuantizeError, UsageError
from shrinkc.core.shell import name_of, quoted
from shrinkc.importer import Formats, LlamaConfig, Outline, adapter_ranks, read_outline
from shrinkc.importer.gptq import find_adapter
from shrinkc.importer.repeats import repeated_layers
from shrinkc.memory.plan import Plan, make_plan
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
from shrinkc.report.memory_map import LEVEL_NAMES
from shrinkc.schedule.shapes import ModelShape, shapes_of_config
from shrinkc.targets import Target, target_named

DEFAULT_CONTEXT = 256
CONTEXT_MAX = 4094  # more probabilities overflow the attention's sum (ir/rules.py)

# Taken of a decode table that is not there; SmolLM2's has 6.8, one of 512 pieces 1.9.
BYTES_PER_PIECE = 8

_SLOT_OF = {module: slot for slot, modules in MODULES.items() for module in modules}


@dataclass(frozen=True)
class PlanRequest:
    """What to compile, for what, and how.  ``given`` are the options of ``quant`` on the command line."""

    model: Path
    target: str
    quant: QuantOptions
    context: int | None = None
    l1: int | None = None
    adapter: Path | None = None
    given: frozenset[str] = frozenset()

    @classmethod
    def from_options(
        cls,
        *,
        model: Path,
        target: str,
        bits: str | None,
        group: int | None,
        short_last_group: bool,
        asymmetric: bool,
        head_bits: str | None,
        context: int | None,
        l1: int | None,
        adapter: Path | None,
    ) -> PlanRequest:
        """From the command line's values."""
        quant = QuantOptions(
            bits=int(bits or 8), group=group, asymmetric=asymmetric, head_bits=int(head_bits or 8),
            short_last_group=short_last_group,
        )  # fmt: skip
        given = {
            "--bits": bits, "--group": group, "--short-last-group": short_last_group,
            "--asymmetric": asymmetric, "--head-bits": head_bits,
        }  # fmt: skip
        names = frozenset(name for name, value in given.items() if value not in (None, False))
        return cls(model, target, quant, context, l1, adapter, names)


@dataclass(frozen=True)
class Prepared:
    """A plan and what it was made from."""

    request: PlanRequest
    name: str
    config: LlamaConfig
    context: int
    target: Target
    shape: ModelShape
    plan: Plan
    formats: Formats | None
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Option]:
        """Every option that decides the program, without paths."""
        q = self.request.quant
        adapter = self.request.adapter
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
            "adapter": None if adapter is None else name_of(adapter),
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

    def for_shape(self, shape: ModelShape) -> Prepared:
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
        tiles = sum(-(-x.blocks // x.tile_blocks) for x in p.placements if x.name != "embedding")
        yes = {True: "L1", False: "L2"}
        out = [
            f"{self.name} for {self.target.name}: {c.num_layers} layers, hidden {c.hidden_size}, "
            f"vocabulary {c.vocab_size}, context {self.context}{implied}",
            f"  weights     {show_size(self.weight_bytes)} at {self._widths()}",
        ]
        for level, label in LEVEL_NAMES.items():
            used, have = p.used[level], p.capacity[level]
            if used or level in ("l1", "l2"):
                share = f"{100 * used / have:.0f} %" if have else "-"
                out.append(
                    f"  {label:<11} {show_size(used):>10} of {show_size(have):>10}  {share:>5}"
                )
        out.append(
            f"  schedule    chunks of {p.chunk} tokens, {tiles} tiles of up to "
            f"{show_size(p.tile_bytes)} per pass, KV cache in {yes[p.kv_in_l1]}, logits in "
            f"{yes[p.logits_in_l1]}"
        )
        return out + [f"  note        {note}" for note in self.notes]

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
        p = self.plan
        return {
            "model": self.name,
            "command": self.command,
            "options": self.options,
            "fits": True,
            "memory": {
                level: {"used": p.used[level], "available": p.capacity[level]}
                for level in LEVEL_NAMES
            },
            "weight_bytes": self.weight_bytes,
            "chunk": p.chunk,
            "tile_bytes": p.tile_bytes,
            "kv_in_l1": p.kv_in_l1,
            "logits_in_l1": p.logits_in_l1,
            "notes": list(self.notes),
        }


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
        if quant.head_bits == 8 or "--head-bits" in fixed:  # a 4-bit head has groups too
            fixed |= {"--group", "--short-last-group"}
    return frozenset(fixed)


def prepare(request: PlanRequest, *, whole: bool = False) -> Prepared:
    """Reads config, tokenizer and the headers of weights and adapter, and plans.

    Unless the model has to be ``whole``, its sizes alone will do; notes then say what is assumed.
    Raises what the importer raises, UsageError, QuantizeError, or DoesNotFit with changes that
    were checked to fit.
    """
    target = target_named(request.target)
    outline = read_outline(request.model, whole=whole)
    known, config = outline.formats, outline.config
    check_sizes(config)
    context = _context(request, config)
    check_window(config, context)
    quant = request.quant
    fixed = fixed_options(config, known, quant)
    if refused := sorted(request.given & fixed):
        raise QuantizeError(
            f"{outline.name} is quantised already: {', '.join(refused)} cannot change its "
            "integers.",
            f"leave {'it' if len(refused) == 1 else 'them'} out; the checkpoint decides.",
        )
    if request.l1 is not None and request.l1 > target.l1:
        raise UsageError(
            f"--l1 {request.l1} is more than the {target.l1} bytes of {target.name}.",
            "leave --l1 out to use all of it.",
        )
    piece_bytes, notes = _pieces(outline)
    notes += window_notes(config, context)
    adapter = request.adapter
    if adapter is None and known is not None and request.model.is_dir():
        adapter = find_adapter(request.model)  # one that comes with the checkpoint is loaded too
    ranks = _ranks(adapter, config, known or {})
    repeats = repeated_layers(request.model)

    def shape_for(quant: QuantOptions, context: int) -> ModelShape:
        return shapes_of_config(config, quant, context, piece_bytes, ranks, known, repeats)

    def check(quant: QuantOptions) -> None:
        wide = replace(quant, bits=8, head_bits=8, group=None, asymmetric=False)

        def saves(group: int) -> bool:
            narrow = shape_for(replace(quant, group=group), context)
            return stored_bytes(narrow) < stored_bytes(shape_for(wide, context))

        grouped = min(quant.bits, quant.head_bits) < 8
        inputs = grouped_inputs(config, known or (), quant)
        check_groups(inputs, quant.group, quant.short_last_group, saves if grouped else None)

    def fits(quant: QuantOptions, context: int, l1: int) -> bool:
        try:
            check(quant)
            make_plan(shape_for(quant, context), target, l1)
        except (DoesNotFit, QuantizeError):
            return False
        return True

    check(quant)
    shape = shape_for(quant, context)
    try:
        plan = make_plan(shape, target, request.l1)
    except DoesNotFit:
        l1 = target.l1 if request.l1 is None else request.l1
        found = alternatives(fits, quant, context, l1, target.l1, fixed)
        hint = (
            f"these were checked to fit: {'; '.join(found)}."
            if found
            else "no shorter context, narrower weights or larger L1 makes it fit this target, nor "
            "all of them together."
        )
        raise DoesNotFit(
            f"{outline.name} at context {context} on {target.name}: "
            + " ".join([*shortfalls(shape, target, request.l1), *(f"Note: {n}." for n in notes)]),
            hint,
        ) from None
    verify(plan, shape, target)
    return Prepared(request, outline.name, config, context, target, shape, plan, known, notes)


def stored_bytes(shape: ModelShape) -> int:
    """Bytes of all matrices, scales and padding included."""
    return sum(m.bytes for m in shape.stored)


def _pieces(outline: Outline) -> tuple[int, tuple[str, ...]]:
    """Bytes of the decode table, and the notes."""
    if outline.tokenizer is not None:
        return sum(map(len, outline.tokenizer.decode_table())), outline.notes
    size = BYTES_PER_PIECE * outline.config.vocab_size
    *notes, last = outline.notes
    assumed = f"its decode table is taken as {BYTES_PER_PIECE} bytes per token ({show_size(size)})"
    return size, (*notes, f"{last}; {assumed}")


def _context(request: PlanRequest, config: LlamaConfig) -> int:
    most = min(config.max_position, CONTEXT_MAX)
    if request.context is None:
        return min(most, DEFAULT_CONTEXT)
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


def _ranks(adapter: Path | None, config: LlamaConfig, known: Formats) -> list[dict[str, int]]:
    """Per layer: slot -> rank of its side path, from the header of the adapter's file alone.

    Adapters of q, k and v (and of gate and up) share one side path, so their ranks add up.
    """
    ranks: list[dict[str, int]] = [{} for _ in range(config.num_layers)]
    if adapter is not None:
        for (index, module), rank in adapter_ranks(adapter, config, known).items():
            layer, slot = ranks[index], _SLOT_OF[module]
            layer[slot] = layer.get(slot, 0) + rank
    return ranks
