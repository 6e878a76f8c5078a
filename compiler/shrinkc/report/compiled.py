"""Report page of a compiled directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shrinkc
from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, BadData, ShrinkcError
from shrinkc.core.progress import Reporter
from shrinkc.core.shell import name_of, printable
from shrinkc.core.words import listed
from shrinkc.costs import cost_table
from shrinkc.driver.estimating import POSITION, Speed, check_speed, read_plan, speed_of, target_of
from shrinkc.engines import CORES, engine_named
from shrinkc.evaluation.rows import figures
from shrinkc.importer.jsonfile import read_json_object
from shrinkc.ir.graph import Graph
from shrinkc.ir.serialize import load
from shrinkc.memory.cycles import Passes, resource_label
from shrinkc.memory.parts import Placement
from shrinkc.memory.plan import Plan
from shrinkc.pictures.memory import Memory, memories_of, memory_picture
from shrinkc.pictures.roofline import Ceiling, Point, roofline
from shrinkc.pictures.timeline import Chart, timeline
from shrinkc.report.cycles import Phase, Steps, ceilings, phase
from shrinkc.report.page import (
    NONE,
    Card,
    Column,
    Figure,
    Page,
    Samples,
    Section,
    Source,
    Table,
    Value,
    change,
    digits,
    number,
    percent,
    size,
)
from shrinkc.report.runs import Run, run_of
from shrinkc.schedule.shapes import ModelShape, shapes_of_graph
from shrinkc.storage import MatrixShape
from shrinkc.targets import Target

KIND = "compiled directory"
EVAL_MOST = 64 << 20  # bytes; larger files are not opened
NEITHER = "give a directory made by 'shrinkc compile' or 'shrinkc compress'."


@dataclass(frozen=True)
class _Compiled:
    """Contents of a compiled directory, and estimates."""

    manifest: artifact.Manifest
    plan: Plan
    graph: Graph
    run: Run | None
    speed: Speed | None
    phases: Sequence[Phase]
    ceilings: Mapping[str, Sequence[Ceiling]]  # by phase


def compiled_page(
    directory: Path,
    *,
    position: int | None = None,
    clock_mhz: float | None = None,
    run: Path | None = None,
    evals: Sequence[Path] = (),
    reporter: Reporter,
) -> Page:
    """Return the page of a compiled directory.

    ``run``: output of ``shrinkc run --json`` (None: the directory's profile of the last ``--profile``, if any).
    ``evals``: files of ``shrinkc eval``, in addition to those in the directory.
    Raises BadArtifact if ``directory`` is not a compiled one or was changed, BadData if a file of a run or an
    evaluation is invalid or belongs to another model, UsageError for an impossible position or clock.
    is none or of another model, UsageError for a position or clock that is not possible.
    """
    check_speed(position, clock_mhz)
    if not (directory / artifact.MANIFEST).is_file():
        raise BadArtifact(
            f"{directory} is neither a compiled directory nor a compression run.", NEITHER
        )
    manifest = artifact.read_manifest(directory)
    target = target_of(directory, manifest)
    with reporter.stage("reading the program"):
        artifact.check_files(directory, manifest, (artifact.PLAN, artifact.IR))
        plan, graph = read_plan(directory / artifact.PLAN), load(directory / artifact.IR)
        shape = shapes_of_graph(graph, 0)
        if not {m.name for m in shape.matrices} <= {p.name for p in plan.placements}:
            raise BadArtifact(
                f"{directory / artifact.PLAN} has no place for some matrices of the integer model.",
                "compile the model again.",
            )
        changed = artifact.changed_files(directory, manifest)
    found = run_of(directory, run, manifest)
    speed = speed_of(shape, plan, target, position, clock_mhz)
    notes: list[str] = []
    if changed:
        notes.append(f"changed since it was compiled: {', '.join(changed)}")
    if found is not None and found.drafted:
        notes.append(
            "the run drafted tokens: its passes took more than one, estimates are of one each"
        )
    if speed is None:
        notes.append(f"cycles are not estimated: {target.name} was not calibrated")
    with reporter.stage("estimating"):
        phases, lines = _phases(plan, shape, target, position, found)
    c = _Compiled(manifest, plan, graph, found, speed, phases, lines)
    memories = memories_of(plan, shape)
    accuracy = _accuracy(directory, manifest, evals, notes)
    sections = [
        _verdict(c, memories, notes), _memory(memories, plan.steps), _weights(plan, shape), _cycles(c),
        _timeline(phases), _roofline(c), accuracy,
    ]  # fmt: skip
    return Page(KIND, manifest.model, name_of(directory), sections, notes)


def _phases(
    plan: Plan, shape: ModelShape, target: Target, position: int | None, run: Run | None
) -> tuple[list[Phase], dict[str, list[Ceiling]]]:
    """Return phases and their ceilings: those of the run's profile, or else a decode step at ``position`` and a
    prompt of ``position`` tokens."""
    passes, table = Passes(shape, plan, target), cost_table(target.name)
    phases = []
    if run is None or run.prefill is None:
        prompt = min(POSITION, plan.context - 1) if position is None else position
        step, title = [passes.steps(1, prompt)], f"a decode step at position {prompt}"
        phases.append(phase("decode", title, step, 1, table, None, False))
    else:
        prompt = run.prompt
        if (decode := run.decode) is not None:
            each = [passes.steps(1, prompt + i) for i in range(decode.steps)]
            title = f"a decode step, mean of {decode.steps} after {prompt} tokens"
            phases.append(phase("decode", title, each, decode.steps, table, decode, True))
    measured = None if run is None else run.prefill
    title, counted = f"a prompt of {prompt} tokens", measured is not None
    phases.append(phase("prefill", title, passes.prompt(prompt), 1, table, measured, counted))
    tokens = {"decode": 1, "prefill": min(prompt, plan.chunk)}
    lines = {p.name: ceilings(target, plan, passes, table, tokens[p.name]) for p in phases}
    return phases, lines


# ---- verdict ----


def _verdict(c: _Compiled, memories: Sequence[Memory], notes: Sequence[str]) -> Section:
    g, made = c.graph, c.manifest
    fits = all(c.plan.used[level] <= have for level, have in c.plan.capacity.items())
    cards = [
        Card("fits", "Fits?", "yes" if fits else "no", fits, f"{made.target}, context {g.context}", good=fits),
        _speed(c.speed), _limit(c.speed), _measured(c), _verified(c.run),
    ]  # fmt: skip
    cards += [
        Card(m.level, m.label, percent(m.share), m.share, f"{size(m.used)} of {size(m.available)}", m.share,
             also={f"{m.level}_used": m.used, f"{m.level}_available": m.available})
        for m in memories
    ]  # fmt: skip
    model = {
        "layers": g.num_layers, "hidden": g.hidden, "ffn": g.ffn, "heads": g.heads,
        "kv heads": g.kv_heads, "head size": g.head_dim, "vocabulary": g.vocab, "context": g.context,
        "operations": len(g.ops),
    }  # fmt: skip
    about: list[tuple[str, Value]] = [(key, f"{value:,}") for key, value in model.items()]
    about += [(f"option {key}", value) for key, value in made.options.items()]
    about.append(("compiled by", f"shrinkc {made.shrinkc}"))
    about.append(("reported by", f"shrinkc {shrinkc.__version__}"))
    columns = (Column("name"), Column("value"))
    return Section(
        "verdict", "Verdict", source=Source("command", "The command that made it:", made.command), cards=cards,
        tables=[Table("about", "Model and options", columns, about, folded=True)], notes=notes,
    )  # fmt: skip


def _speed(s: Speed | None) -> Card:
    key, title = "tokens_per_second", "Tokens per second"
    if s is None:
        return Card(key, title, "not estimated", None, "this target was not calibrated")
    rate, error = s.tokens_per_second(s.decode), s.table.passes
    whose = "--clock" if s.asked else "the simulator's default"
    note = (
        f"estimated: {number(s.decode.cycles)} cycles per token at position {s.position}, "
        f"{s.clock_mhz:g} MHz ({whose})"
    )
    if error is not None:
        note += f"; off by {percent(error.median)} in the median, {percent(error.p90)} in 9 of 10"
    also: dict[str, Value] = {
        "cycles_per_token": s.decode.cycles, "position": s.position, "clock_mhz": s.clock_mhz,
        "clock_said_by": whose, "error_median": None if error is None else error.median,
        "error_p90": None if error is None else error.p90,
    }  # fmt: skip
    return Card(key, title, number(rate, 1), rate, note, also=also)


def _limit(s: Speed | None) -> Card:
    if s is None:
        return Card("limit", "Limiting resource", NONE, None, "not estimated")
    name, busy = resource_label(s.decode.limit), s.decode.busy[s.decode.limit]
    note = f"busy {percent(busy, 0)} of a decode step, estimated"
    return Card("limit", "Limiting resource", name, name, note, also={"limit_busy": busy})


def _measured(c: _Compiled) -> Card:
    key, title = "measured_cycles", "Measured"
    found = [p for p in c.phases if p.measured is not None]
    if c.run is None or not found:
        note = "shrinkc run DIR --on gvsoc --profile leaves one"
        return Card(key, title, "no profiled run", None, note)
    name, cycles = found[0].name, found[0].measured or 0.0
    note = f"{name}, with the counters of a profile build, on {c.run.machine} ({printable(c.run.file)})"
    return Card(key, title, f"{number(cycles)} cycles", cycles, note, also={"measured_phase": name})


def _verified(run: Run | None) -> Card:
    if run is None or run.compared is None or run.mismatched is None:
        note = "a run compares every integer with the interpreter's"
        return Card("verified", "Verified bit for bit", "no verified run", None, note)
    ok = run.mismatched == 0 and run.compared > 0
    note = (
        f"{number(run.compared)} values checked, {number(run.mismatched)} differ, on {run.machine}"
    )
    also: dict[str, Value] = {
        "compared": run.compared, "mismatched": run.mismatched, "run": printable(run.file),
        "run_on": run.machine,
    }  # fmt: skip
    return Card(
        "verified", "Verified bit for bit", "yes" if ok else "no", ok, note, good=ok, also=also
    )


# ---- memory and weights ----

_COUNT = digits(0)


def _memory(memories: Sequence[Memory], steps: Sequence[str]) -> Section:
    said = (
        "Each memory: addresses downwards, the steps of one pass across. A buffer is drawn in the steps that need what "
        "it holds; weights are always there, and full in the step that reads them. Point at a "
        "region, or go into the picture and use the arrow keys, to see its name, bytes and address."
    )
    drawn = [
        Figure(memory_picture(m, steps), f"{m.label}, {len(m.regions)} regions") for m in memories
    ]
    rows = [
        (r.name, m.label, r.kind, r.offset, r.bytes, steps[r.first], steps[r.last],
         None if r.read is None else steps[r.read])
        for m in memories for r in m.regions
    ]  # fmt: skip
    columns = (
        Column("name"), Column("memory"), Column("kind"), Column("address", _COUNT), Column("bytes", _COUNT),
        Column("from"), Column("to"), Column("read_in"),
    )  # fmt: skip
    table = Table("regions", "Regions of all memories", columns, rows, folded=True)
    return Section("memory", "Memory map", said, figures=drawn, tables=[table])


def _weights(plan: Plan, shape: ModelShape) -> Section:
    placed, again = {p.name: p for p in plan.placements}, dict(shape.shared)
    stored = {m.name: 0 if m.name in again else placed[m.name].bytes for m in shape.matrices}
    slots: dict[tuple[Value, ...], list[MatrixShape]] = {}
    every = []
    for m in shape.matrices:
        p = placed[m.name]
        memory = " and ".join(plan.label(level) for level, _, _ in p.pieces)
        per = str(m.group) if m.grouped or m.asymmetric else "channel"
        engine = engine_named(p.engine).label
        slot = (m.name.split(".", 1)[-1], m.rows, m.k, m.bits, per, engine, memory)
        slots.setdefault(slot, []).append(m)
        tile = min(p.tile_blocks, p.blocks) * p.block_bytes if _tiles(p) else 0
        every.append(
            (m.name, memory, engine, p.offset, stored[m.name], _tiles(p), tile, again.get(m.name, ""))
        )  # fmt: skip
    whole, rows = sum(stored.values()), []
    for key, ms in slots.items():
        total, tiles = sum(stored[m.name] for m in ms), [_tiles(placed[m.name]) for m in ms]
        each = None if not any(tiles) else " to ".join(map(str, sorted({min(tiles), max(tiles)})))
        rows.append((key[0], len(ms), *key[1:], each, total, total / max(whole, 1)))
    read = "other engines read weights in place and take no tiles."
    if plan.board:
        read = "the core reads weights in place, in flash."
    elif plan.tile_bytes:
        read = (
            f"what the cores multiply comes to L1 in tiles of up to {size(plan.tile_bytes)}, {read}"
        )
    said = (
        f"{size(whole)} of weights, scales and offsets, as they are stored. A prompt goes in chunks of "
        f"{plan.chunk} tokens; {read}"
    )
    columns = (
        Column("matrix"), Column("count", _COUNT), Column("rows", _COUNT), Column("inputs", _COUNT),
        Column("bits", _COUNT), Column("scale_per", str), Column("runs_on"), Column("lies_in"),
        Column("tiles_each", str), Column("bytes", _COUNT), Column("share", percent),
    )  # fmt: skip
    all_columns = (
        Column("name"), Column("lies_in"), Column("runs_on"), Column("address", _COUNT),
        Column("bytes", _COUNT), Column("tiles", _COUNT), Column("tile_bytes", _COUNT, "bytes of a tile"),
        Column("same_as"),
    )  # fmt: skip
    return Section(
        "weights", "Weights and tiles", said,
        tables=[Table("slots", "Where the bytes of weights go", columns, rows),
                Table("matrices", "Every matrix", all_columns, every, folded=True)],
    )  # fmt: skip


def _tiles(p: Placement) -> int:
    """Return the number of tiles in which the matrix is copied to L1."""
    return -(-p.blocks // p.tile_blocks) if p.engine == CORES and p.name != "embedding" else 0


# ---- cycles ----


def _cycles(c: _Compiled) -> Section:
    tables: list[Table] = []
    for p in c.phases:
        tables += [_ops_table(p), _layers_table(p)]
    missing = sorted({name for p in c.phases for name in p.unknown})
    notes = [f"not calibrated, and counted as nothing: {listed(missing)}"] if missing else []
    if any(p.measured for p in c.phases):
        said = (
            "Measured by the counters of a profile build on the simulator, and estimated by the cost model for "
            "the same run, with the same counters; a plain build is faster."
        )
    elif c.speed is None:
        said = "Neither measured nor estimated: no profiled run lies here, and this target was not calibrated."
    else:
        made = c.speed.table.made
        fitted = {"date", "simulator"} <= made.keys()
        said = (
            "All of these are estimated by the cost model"
            + (f" (fitted on {made['date']} to {made['simulator']})" if fitted else "")
            + "; none was measured. 'shrinkc run DIR --on gvsoc --profile' measures them."
        )
    return Section("cycles", "Cycles per op and per layer", said, tables=tables, notes=notes)


def _ops_table(p: Phase) -> Table:
    whole = p.measured or p.all.estimated or 1.0

    def row(
        op: str, kind: str, steps: Steps, measured: float | None, limit: str | None
    ) -> list[Value]:
        estimated = steps.estimated
        off = estimated / measured - 1 if estimated and measured else None
        share = (measured or estimated or 0.0) / whole
        return [op, kind, estimated, measured, off, share, limit, steps.products, steps.bytes]

    rows = [row(s.first.op, s.first.kind, s, s.measured, s.limit) for s in p.ops]
    rows.append(row("all", "", p.all, p.measured, ""))
    columns = (
        Column("op"), Column("kind"), Column("estimated_cycles", _COUNT), Column("measured_cycles", _COUNT),
        Column("estimate_off", change), Column("share", percent), Column("busiest", title="busiest, estimated"),
        Column("products", _COUNT), Column("bytes", _COUNT),
    )  # fmt: skip
    return Table(f"{p.name}_ops", f"{p.name}: {p.title}, ops of all layers", columns, rows)


_LAYER = Column("layer", _COUNT, none="in no layer")
_CYCLES = (Column("estimated_cycles", _COUNT), Column("measured_cycles", _COUNT))


def _layers_table(p: Phase) -> Table:
    layers = p.by(lambda step: step.layer)
    rows = [(s.first.layer, s.estimated, s.measured) for s in layers]
    columns = (_LAYER, *_CYCLES)
    return Table(f"{p.name}_layers", f"{p.name}: layers", columns, rows, folded=True)


def _timeline(phases: Sequence[Phase]) -> Section:
    drawn, tables = [], []
    for p in phases:
        estimated, measured = zip(*(step.spans() for step in p.steps), strict=True)
        found = {
            kind: [span for span in spans if span is not None]
            for kind, spans in (("measured", measured), ("estimated", estimated))
            if any(spans)
        }
        if not found:
            continue
        charts = [Chart(f"{kind}, in operations", spans) for kind, spans in found.items()]
        svg = timeline(f"{p.name}: {p.title}", charts)
        drawn.append(Figure(svg, f"{p.name}, {listed([*found])}"))
        rows = [
            (s.layer, s.op, engine_named(s.engine).label, s.cycles, s.measured) for s in p.steps
        ]
        columns = (_LAYER, Column("op"), Column("engine"), *_CYCLES)
        tables.append(Table(f"{p.name}_steps", f"{p.name}: every step", columns, rows, folded=True))
    said = (
        "Every step of every layer, as long as it takes. The upper lane is what the mean core does; an estimate "
        "tells apart only working, waiting for transfers, and waiting for another engine (shown as asleep). The "
        "lanes below it show how busy the DMA, the HyperBus and engines are, always by the cost model."
    )
    return Section("timeline", "Timeline", said if drawn else "", figures=drawn, tables=tables)


def _roofline(c: _Compiled) -> Section:
    drawn, found = [], dict[tuple[str, float], Ceiling]()
    points: list[tuple[str, Point]] = []
    for p in c.phases:
        svg = roofline(f"{p.name}: {p.title}", p.points, c.ceilings[p.name])
        if svg is not None:
            drawn.append(Figure(svg, f"{p.name}, {len(p.ops)} ops"))
            found |= {(line.name, line.per_cycle): line for line in c.ceilings[p.name]}
            points += [(p.name, point) for point in p.points]
    if not drawn:
        return Section("roofline", "Roofline")
    said = (
        "Products are multiplications with the addition behind them; ops that only shift or compare count one per "
        "element. Bytes are operands and results, each once: weights as stored, the cache, activations. A dot is an "
        "op of all layers whose weights come from the same place. It stays below the flat line of what computes it, "
        "and below the rising line of where its bytes come from, but for those that came while another op worked."
    )
    lines = [
        (x.name, x.per_cycle, f"{x.of} per cycle", x.source, x.said_by) for x in found.values()
    ]
    line_columns = (
        Column("ceiling"), Column("value", digits(3)), Column("unit"), Column("bytes_from"), Column("from"),
    )  # fmt: skip
    ops = [
        (name, x.op, x.layers, x.per_byte, x.estimated, x.measured, x.source) for name, x in points
    ]
    op_columns = (
        Column("phase"), Column("op"), Column("times", _COUNT), Column("products_per_byte", digits(3)),
        Column("estimated_products_per_cycle", digits(3)), Column("measured_products_per_cycle", digits(3)),
        Column("bytes_from"),
    )  # fmt: skip
    return Section(
        "roofline", "Roofline", said, figures=drawn,
        tables=[Table("ceilings", "Ceilings and what says so", line_columns, lines),
                Table("points", "Ops", op_columns, ops, folded=True)],
    )  # fmt: skip


# ---- accuracy ----


_MEASURES = (Column("measure"), Column("value", str), Column("standard_error", str), Column("of"))


def _accuracy(
    directory: Path, manifest: artifact.Manifest, given: Sequence[Path], notes: list[str]
) -> Section:
    """Return given evaluations and those in the directory; unreadable files in the directory become notes."""
    tables, samples = list[Table](), list[Samples]()
    for path in given:
        _add_evaluation(path, read_json_object(path, BadData), tables, samples)
    known = {os.path.realpath(path) for path in given}
    for path in sorted(directory.glob("*.json")):
        ours = path.name in manifest.files or path.name == artifact.MANIFEST
        if ours or os.path.realpath(path) in known:
            continue
        try:
            if path.stat().st_size > EVAL_MOST:
                continue
            found = read_json_object(path, BadData)
            if isinstance(found.get("model"), dict) and artifact.MEASURES & found.keys():
                _add_evaluation(path, found, tables, samples)
        except (ShrinkcError, OSError) as error:
            notes.append(f"{path.name} was left out: {error}")
    none = [] if tables or samples else [
        "No evaluation lies here. 'shrinkc eval DIR --text FILE -o DIR/eval.json' measures one, and the next report "
        "has it."
    ]  # fmt: skip
    return Section("accuracy", "Accuracy", tables=tables, samples=samples, notes=none)


def _add_evaluation(
    path: Path, found: Mapping[str, Any], tables: list[Table], samples: list[Samples]
) -> None:
    """Add the evaluation ``found`` in ``path``.  Raises BadData if it is not an evaluation."""
    file = name_of(path)
    try:
        model = found["model"]
        about = listed([str(model[k]) for k in ("name", "kind", "dtype", "engine") if k in model])
        texts = found.get("samples", {}).get("texts", [])
        added = [Samples(str(t["prompt"]), [(file, str(t["text"]))]) for t in texts]
        rows = [(measure, value, error or None, of) for measure, value, error, of in figures(found)]
        if not rows and not added:
            raise KeyError("no figure")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadData(
            f"{path} is no evaluation of shrinkc: {error!r}.", "give what 'shrinkc eval -o FILE' wrote."
        ) from None  # fmt: skip
    samples += added
    if rows:
        tables.append(Table(file, f"{file}: {about}", _MEASURES, rows))
