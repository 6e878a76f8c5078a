"""Output of `compile` and `plan` for a model that fits: the answer first, details on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shrinkc.core.words import listed, show_rounded, show_share, show_size
from shrinkc.driver.estimating import Speed
from shrinkc.driver.planned import Planned, fixed_options
from shrinkc.engines import CORES, engine_named, product_engine
from shrinkc.memory.cycles import PassCost, resource_label
from shrinkc.quantize import EMBEDDING, HEAD, inputs_of
from shrinkc.targets import L1, L2

if TYPE_CHECKING:
    from shrinkc.driver.widths import ChosenWidth, ChosenWidths

_TABLES = {"rope": "RoPE table", "pieces": "token texts"}
_WIDTH = 14


def summary(planned: Planned, verbose: bool) -> list[str]:
    """Return lines of text.  ``verbose``: add the schedule, modes of engines and errors of the estimates."""
    c = planned.config
    default = " by default" if planned.request.context is None else ""
    rows = [*_speed(planned), *_weights(planned)]
    for level, have in planned.plan.capacity.items():
        used = planned.plan.used[level]
        if used or level in (L1, L2):
            rows.append((planned.target.kind(level).label, show_share(used, have)))
    rows += _engines(planned)
    rows += [("note", note) for note in planned.notes]
    if verbose:
        rows += [*_stacks(planned), *_estimate(planned.speed)]
        rows += [*_schedule(planned), *_modes(planned)]
    return [
        f"{planned.name} fits {planned.target.name} ({c.num_layers} layers, hidden {c.hidden_size}, "
        f"vocabulary {c.vocab_size}, context {planned.context}{default})",
        "",
        *(f"  {name:<{_WIDTH}} {text}" for name, text in rows),
    ]


Row = tuple[str, str]


def _speed(planned: Planned) -> list[Row]:
    """Return cycles and tokens per second of both phases, and the median error of such estimates."""
    speed = planned.speed
    if speed is None:
        return [("speed", f"not estimated: there is no cost model for {planned.target.name}")]
    out = []
    for name, cost, tokens in (
        ("decode", speed.decode, 1),
        ("prefill", speed.prefill, speed.position),
    ):
        cycles = show_rounded(cost.cycles / tokens)
        rate = show_rounded(speed.tokens_per_second(cost, tokens))
        clock = f"at {speed.clock_mhz:g} MHz"
        out.append((name, f"{cycles} cycles per token, {rate} tokens/s {clock}"))
    error = speed.table.passes
    said = [] if error is None else [f"median error {100 * error.median:.1f} %"]
    if not speed.asked:
        said.append(f"{speed.clock_mhz:g} MHz is GVSoC's default clock")
    return [*out, ("estimates", "; ".join(said))] if said else out


def _weights(planned: Planned) -> list[Row]:
    """Return stored bytes and the width of every kind of matrix."""
    if planned.widths is not None:
        return _chosen(planned, planned.widths)
    q, known = planned.request.quant, planned.formats or {}
    fixed = fixed_options(planned.config, planned.formats, q)
    said = [] if "--bits" in fixed else [_width(q.bits, q.asymmetric, q.group_size or 0)]
    counts = Counter(
        (bits, bool(zero), group if group < inputs_of(planned.config, name) else 0)
        for name, (bits, group, zero) in known.items()
    )
    said += [
        f"{_width(*kind)} ({count} matrices of the checkpoint)"
        for kind, count in sorted(counts.items())
    ]
    if "--embedding-bits" not in fixed:
        names = {EMBEDDING: "embedding", HEAD: "LM head"}
        if planned.config.tie_embeddings:
            names = {EMBEDDING: "embedding and LM head"}
        floats = [label for name, label in names.items() if name not in known]
        said.append(f"{' and '.join(floats)} {q.embedding_bits} bit")
    if planned.shape.shared:
        said.append(f"{len(planned.shape.shared)} matrices equal others and are stored once")
    rows = [("weights", f"{show_size(planned.weight_bytes)}: {', '.join(said)}")]
    if planned.copy_bytes:
        rows.append(("second layout", f"{show_size(planned.copy_bytes)} more, for faster decoding"))
    return rows


def _chosen(planned: Planned, widths: ChosenWidths) -> list[Row]:
    """Return stored bytes, the estimated cost, and the widths that --fit chose for each kind of matrix."""
    text = (
        f"{show_size(planned.weight_bytes)}: widths chosen by --fit from {widths.source}, estimated cost "
        f"{show_rounded(widths.cost)} ({widths.unit})"
    )
    if planned.formats:
        text += f"; {len(planned.formats)} matrices keep the checkpoint's widths"
    rows = [("weights", text)]
    kinds: dict[str, list[ChosenWidth]] = {}
    for m in widths.matrices:
        kinds.setdefault(m.kind, []).append(m)
    tied = planned.config.tie_embeddings
    labels = {"head": "embedding/head" if tied else "LM head"}
    for kind, matrices in kinds.items():
        layers: dict[str, list[int]] = {}
        for m in matrices:
            layers.setdefault(m.width, []).append(m.layer)
        said = [width + _layers(of) * (len(layers) > 1) for width, of in layers.items()]
        size = show_size(sum(m.bytes for m in matrices))
        rows.append((labels.get(kind, kind), f"{', '.join(said)}: {size}"))
    if planned.copy_bytes:
        rows.append(("second layout", f"{show_size(planned.copy_bytes)} more, for faster decoding"))
    return rows


def _layers(numbers: Sequence[int]) -> str:
    """Return ascending numbers of layers as text: `` (layers 0-3, 7)``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs]
    return f" (layer{'s' * (len(numbers) > 1)} {', '.join(texts)})"


def _width(bits: int, asymmetric: bool, group: int) -> str:
    scales = f"group size {group}" if group else "per channel"
    return f"{bits} bit {'asymmetric ' if asymmetric else ''}{scales}"


def _units(planned: Planned) -> dict[str, list[str]]:
    """Return compute unit (except the cores) -> its engines, which are its modes, on this target."""
    out: dict[str, list[str]] = {}
    for name in planned.target.engines:
        if name != CORES:
            out.setdefault(engine_named(name).unit, []).append(name)
    return out


def _engines(planned: Planned) -> list[Row]:
    """Return a line per compute unit except the cores: the number of matrices that it runs."""
    runs = Counter(choice.engine for choice in planned.choices.by_name.values())
    total = sum(runs.values())
    out = []
    for unit, names in _units(planned).items() if total else ():
        count = sum(runs[name] for name in names)
        if count == total:
            text = f"runs all {total} matrices"
        elif count:
            text = f"runs {count} of {total} matrices, the cores run the others"
        else:
            text = f"runs none of the {total} matrices, the cores run them all"
        helper = product_engine(names)
        if planned.products and helper is not None and helper.unit == unit:
            text += f"; helps with {len(planned.products)} of those in prefill"
        out.append((unit, text))
    return out


def _stacks(planned: Planned) -> list[Row]:
    """Return the bytes of each stack, which are part of the memories' sizes."""
    stacks = planned.target.program.stacks
    if not stacks:
        return []
    return [
        ("stacks", listed([f"{bytes_:,} bytes per {owner}" for owner, bytes_ in stacks.items()]))
    ]


def _estimate(speed: Speed | None) -> list[Row]:
    if speed is None:
        return []
    out = [
        ("estimated for", f"{speed.position} cached tokens (decode), {speed.position} prompt tokens (prefill)"),
        ("limited by", f"{_limit(speed.decode)} in decode, {_limit(speed.prefill)} in prefill"),
    ]  # fmt: skip
    if e := speed.table.passes:
        text = f"median {100 * e.median:.1f} %, 90th percentile {100 * e.p90:.1f} % ({e.samples} held-out runs)"
        out.append(("error", text))
    if unknown := speed.decode.unknown:
        out.append(("not counted", f"{', '.join(unknown)}: the cost model does not know them"))
    return out


def _limit(cost: PassCost) -> str:
    name = cost.limit
    label = resource_label(name)
    return f"{label} (busy {100 * cost.busy[name]:.0f} %)"


def _schedule(planned: Planned) -> list[Row]:
    p = planned.plan
    cut = [x for x in p.placements if x.name != "embedding" and x.engine == CORES]
    tiles = sum(-(-x.blocks // x.tile_blocks) for x in cut)
    layers = p.kv_layers or {L1: planned.config.num_layers}
    cache = [
        f"{f'{count} layers ' if len(layers) > 1 else ''}in {planned.target.kind(level).label}"
        for level, count in layers.items()
    ]
    return [
        ("prefill chunk", f"{p.chunk} tokens"),
        ("weights", "read in place in flash")
        if planned.target.board
        else ("weight tiles", f"{tiles} per forward pass, of at most {show_size(p.tile_bytes)}"),
        (
            "KV cache",
            f"{planned.request.kv_bits} bit, {listed(cache)}"
            + ", streamed through L2 and L1" * (p.kv_streamed > 0),
        ),
        ("logits", f"in {planned.target.kind(L1 if p.logits_in_l1 else L2).label}"),
        *(
            (_TABLES[x.name], f"{show_size(x.bytes)} in {planned.target.kind(x.level).label}")
            for x in p.tables
            if x.level != L2
        ),
    ]


def _modes(planned: Planned) -> list[Row]:
    """Return cycles of every engine that runs a matrix, and the reasons why others run none or no more."""
    choices = planned.choices.by_name
    out = []
    for name in planned.target.engines:
        mine = [c.cycles for c in choices.values() if c.engine == name]
        if mine:
            text = f"matrices: {len(mine)}, cycles per token: {show_rounded(sum(mine))}"
            out.append((engine_named(name).label, text))
    why: dict[tuple[str, str], list[str]] = {}
    for name, choice in choices.items():
        for engine, reason in choice.refused:
            why.setdefault((engine, reason), []).append(name)
    for (engine, reason), names in why.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        out.append(("not chosen", f"{engine_named(engine).label}: {names[0]}{more} {reason}"))
    return out
