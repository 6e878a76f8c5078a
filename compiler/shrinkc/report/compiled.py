"""The sections of a compiled directory's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shrinkc.core.words import listed
from shrinkc.report.levels import level_picture
from shrinkc.report.parts import (
    NONE,
    Card,
    Data,
    Figure,
    Samples,
    Section,
    Table,
    Text,
    layer_name,
    number,
    pairs,
    percent,
    size,
)
from shrinkc.report.roofline import roofline
from shrinkc.report.timeline import Chart, Span, timeline

_RESOURCES = {"cores": "cores", "dma": "DMA", "flash": "HyperBus"}


def sections(data: Data) -> list[Section]:
    """In the order of the page."""
    return [
        _verdict(data),
        _memory(data),
        _weights(data),
        _cycles(data),
        _timeline(data),
        _roofline(data),
        _accuracy(data),
    ]


# ---- verdict ----


def _verdict(data: Data) -> Section:
    v, made, model = data["verdict"], data["made"], data["model"]
    cards = [
        Card("Fits?", "yes" if v["fits"] else "no", f"{made['target']}, context {model['context']}", good=v["fits"]),
        _speed(v),
        _limit(v),
        _measured(v),
        _proof(v),
    ]  # fmt: skip
    cards += [
        Card(level["label"], percent(level["share"]), f"{size(level['used'])} of {size(level['available'])}",
             level["share"])
        for level in data["memory"]
    ]  # fmt: skip
    about = [(key.replace("_", " "), f"{value:,}") for key, value in model.items()]
    about += [(f"option {key}", value) for key, value in made["options"].items()]
    about += [
        ("compiled by", f"shrinkc {made['shrinkc']}"),
        ("reported by", f"shrinkc {data['shrinkc']}"),
    ]
    return Section(
        "verdict", "Verdict", source_said="The command that made it:", source=made["command"], cards=cards,
        tables=[pairs("Model and options", about, folded=True)], notes=data["notes"],
    )  # fmt: skip


def _speed(v: Data) -> Card:
    if v["tokens_per_second"] is None:
        return Card("Tokens per second", "not estimated", "this target was not calibrated")
    note = (
        f"estimated: {number(v['cycles_per_token'])} cycles per token at position {v['position']}, "
        f"{v['clock_mhz']:g} MHz ({v['clock_said_by']})"
    )
    if v["error_median"] is not None:
        note += f"; off by {percent(v['error_median'])} in the median, {percent(v['error_p90'])} in 9 of 10"
    return Card("Tokens per second", number(v["tokens_per_second"], 1), note)


def _limit(v: Data) -> Card:
    if v["limit"] is None:
        return Card("Limiting resource", NONE, "not estimated")
    return Card(
        "Limiting resource",
        v["limit"],
        f"busy {percent(v['limit_busy'], 0)} of a decode step, estimated",
    )


def _measured(v: Data) -> Card:
    if not v["measured_cycles"]:
        return Card(
            "Measured", "no profiled run", "shrinkc run DIR --on gvsoc --profile leaves one"
        )
    cycles = v["measured_cycles"]
    name = "decode" if "decode" in cycles else "prefill"
    note = f"{name}, with the counters of a profile build, on {v['run_on']} ({v['run']})"
    return Card("Measured", f"{number(cycles[name])} cycles", note)


def _proof(v: Data) -> Card:
    if v["compared"] is None:
        return Card(
            "Proved", "no verified run", "a run compares every integer with the interpreter's"
        )
    ok = v["mismatched"] == 0 and v["compared"] > 0
    note = f"{number(v['compared'])} values compared, {number(v['mismatched'])} mismatched, on {v['run_on']}"
    return Card("Proved", "yes" if ok else "no", note, good=ok)


# ---- memory ----


def _memory(data: Data) -> Section:
    said = (
        "Each memory: addresses downwards, the steps of one pass across. A buffer is drawn in the steps that need what "
        "it holds; weights are always there, and full in the step that reads them. Point at a "
        "region, or go into the picture and use the arrow keys, to see its name, bytes and address."
    )
    figures = [
        Figure(
            level_picture(level, data["steps"]),
            f"{level['label']}, {len(level['regions'])} regions",
        )
        for level in data["memory"]
    ]
    rows = [
        (r["name"], level["label"], r["kind"], number(r["offset"]), number(r["bytes"]),
         data["steps"][r["first"]], data["steps"][r["last"]])
        for level in data["memory"] for r in level["regions"] if r["kind"] != "weights"
    ]  # fmt: skip
    head = ("name", "memory", "kind", "#address", "#bytes", "from", "to")
    table = Table("Buffers and tables", head, rows, folded=True)
    return Section("memory", "Memory map", said, figures=figures, tables=[table])


# ---- weights ----


def _weights(data: Data) -> Section:
    weights = data["weights"]
    whole = sum(w["bytes"] for w in weights)
    slots: dict[tuple[Any, ...], list[Data]] = {}
    for w in weights:
        key = (
            w["slot"],
            w["rows"],
            w["inputs"],
            w["bits"],
            w["scale_per"],
            w["engine"],
            w["memory"],
        )
        slots.setdefault(key, []).append(w)
    rows = []
    for (slot, n, k, bits, per, engine, memory), ws in slots.items():
        total = sum(w["bytes"] for w in ws)
        rows.append(
            (slot, number(len(ws)), f"{n:,} × {k:,}", number(bits), f"{per}", engine, memory, _tiles(ws),
             number(total), percent(total / max(whole, 1)))
        )  # fmt: skip
    head = (
        "matrix", "#count", "#rows × inputs", "#bits", "#scale per", "runs on", "lies in", "#tiles each",
        "#bytes", "#share",
    )  # fmt: skip
    every = [
        (w["name"], w["memory"], w["engine"], number(w["offset"]), number(w["bytes"]), number(w["tiles"]),
         number(w["tile_bytes"]), w["same_as"] or "")
        for w in weights
    ]  # fmt: skip
    s = data["schedule"]
    cores = ""
    if s["tile_bytes"]:
        cores = f"what the cores multiply comes to L1 in tiles of up to {size(s['tile_bytes'])}, "
    said = (
        f"{size(whole)} of weights, scales and offsets, as they are stored. A prompt goes in chunks of "
        f"{s['chunk']} tokens; {cores}other engines read weights in place and take no tiles."
    )
    return Section(
        "weights", "Weights and tiles", said,
        tables=[
            Table("Where the bytes of weights go", head, rows),
            Table("Every matrix", ("name", "lies in", "runs on", "#address", "#bytes", "#tiles", "#bytes of a tile",
                                   "same as"), every, folded=True),
        ],
    )  # fmt: skip


def _tiles(ws: Sequence[Data]) -> str:
    counts = sorted({w["tiles"] for w in ws})
    return NONE if counts == [0] else " to ".join(map(str, sorted({counts[0], counts[-1]})))


# ---- cycles ----


def _cycles(data: Data) -> Section:
    tables: list[Table] = []
    for phase in data["phases"]:
        tables += [_ops_table(phase), _layers_table(phase)]
    missing = sorted({name for phase in data["phases"] for name in phase["not_calibrated"]})
    notes = [f"not calibrated, and counted as nothing: {listed(missing)}"] if missing else []
    return Section(
        "cycles", "Cycles per op and per layer", _cycles_said(data), tables=tables, notes=notes
    )


def _cycles_said(data: Data) -> str:
    if data["verdict"]["measured_cycles"]:
        return (
            "Measured by the counters of a profile build on the simulator, and estimated by the cost model for "
            "the same run, with the same counters; a plain build is faster."
        )
    if data["speed"] is None:
        return "Neither measured nor estimated: no profiled run lies here, and this target was not calibrated."
    made = data["speed"]["model"]
    return (
        "All of these are estimated by the cost model"
        + (
            f" (fitted on {made['date']} to {made['simulator']})"
            if {"date", "simulator"} <= made.keys()
            else ""
        )
        + "; none was measured. 'shrinkc run DIR --on gvsoc --profile' measures them."
    )


def _ops_table(phase: Data) -> Table:
    measured, estimated = phase["measured"], phase["estimated"]
    ops = phase["ops"]
    off = estimated / measured - 1 if measured and estimated else None
    whole = {
        "op": "all", "kind": "", "limit": "", "estimated": estimated, "measured": measured, "off": off,
        **{key: sum(o[key] for o in ops) for key in ("products", "bytes")},
    }  # fmt: skip
    rows = []
    for o in (*ops, whole):
        share = (o["measured"] or o["estimated"] or 0.0) / (measured or estimated or 1.0)
        cells = [o["op"], o["kind"], number(o["estimated"])]
        cells += [number(o["measured"]), percent(o["off"], sign=True)] if measured else []
        cells += [percent(share), o["limit"] or NONE, number(o["products"]), number(o["bytes"])]
        rows.append(cells)
    beside = ("#measured cycles", "#estimate off") if measured else ()
    head = (
        "op", "kind", "#estimated cycles", *beside, "#share", "busiest, estimated", "#products", "#bytes",
    )  # fmt: skip
    return Table(f"{phase['phase']}: {phase['title']}, ops of all layers", head, rows)


def _layers_table(phase: Data) -> Table:
    kinds = ("estimated", "measured") if phase["measured"] else ("estimated",)
    rows = [
        (layer_name(row["layer"]), *(number(row[kind]) for kind in kinds))
        for row in phase["layers"]
    ]
    head = ("layer", *(f"#{kind} cycles" for kind in kinds))
    return Table(f"{phase['phase']}: layers", head, rows, folded=True)


# ---- timeline ----


def _timeline(data: Data) -> Section:
    figures = []
    for phase in data["phases"]:
        kinds = [k for k in ("measured", "estimated") if phase[k] is not None]
        if kinds:
            charts = [_chart(phase, kind) for kind in kinds]
            svg = timeline(f"{phase['phase']}: {phase['title']}", charts)
            figures.append(Figure(svg, f"{phase['phase']}, {listed(kinds)}"))
    said = (
        "Every step of every layer, as long as it takes. The upper lane is what the mean core does; an estimate "
        "tells apart only working, waiting for transfers, and waiting for another engine (shown as asleep). The "
        "lanes below it show how busy the DMA, the HyperBus and engines are, always by the cost model."
    )
    return Section("timeline", "Timeline", said if figures else "", figures=figures)


def _chart(phase: Data, kind: str) -> Chart:
    spans = []
    for step in phase["steps"]:
        parts = step[f"{kind}_parts"]
        if parts is None:  # a whole phase is measured, but for what is in no layer of it
            continue
        busy = {_RESOURCES.get(n, n): cycles for n, cycles in step["busy"].items() if n != "cores"}
        spans.append(Span(step["op"], step["layer"], step[kind], parts, busy))
    return Chart(f"{kind}, in operations", spans)


# ---- roofline ----


def _roofline(data: Data) -> Section:
    figures: list[Figure] = []
    ceilings: dict[tuple[str, float], tuple[str, Data]] = {}
    for phase in data["phases"]:
        lines = data["roofline"].get(phase["phase"], ())
        svg = roofline(f"{phase['phase']}: {phase['title']}", phase["points"], lines)
        if svg is not None:
            figures.append(Figure(svg, f"{phase['phase']}, {len(phase['ops'])} ops"))
            ceilings |= {(c["name"], c["per_cycle"]): (phase["phase"], c) for c in lines}
    if not figures:
        return Section("roofline", "Roofline")
    rows = [
        (c["name"], number(c["per_cycle"], 3), f"{c['of']} per cycle", c["said_by"])
        for _, c in ceilings.values()
    ]
    ops = [
        (phase["phase"], o["op"], number(o["layers"]), number(o["products_per_byte"], 3),
         number(o["estimated_products_per_cycle"], 3), number(o["measured_products_per_cycle"], 3), o["source"])
        for phase in data["phases"] for o in phase["points"]
    ]  # fmt: skip
    said = (
        "Products are multiplications with the addition behind them; ops that only shift or compare count one per "
        "element. Bytes are operands and results, each once: weights as stored, the cache, activations. A dot is an "
        "op of all layers whose weights come from the same place. It stays below the flat line of what computes it, "
        "and below the rising line of where its bytes come from, but for those that came while another op worked."
    )
    return Section(
        "roofline", "Roofline", said, figures=figures,
        tables=[
            Table("Ceilings and what says so", ("ceiling", "#value", "unit", "from"), rows),
            Table("Ops", ("phase", "op", "#times", "#products per byte", "#estimated products per cycle",
                          "#measured products per cycle", "bytes from"), ops, folded=True),
        ],
    )  # fmt: skip


# ---- accuracy ----


def _accuracy(data: Data) -> Section:
    tables, samples = [], []
    for found in data["accuracy"]:
        about = listed([str(v) for v in found["of"].values()])
        if found["rows"]:
            rows = [(r["measure"], r["value"], r["error"] or NONE, r["of"]) for r in found["rows"]]
            head = ("measure", "#value", "#standard error", "of")
            tables.append(Table(f"{found['file']}: {about}", head, rows))
        samples += [
            Samples(s["prompt"], [Text(found["file"], s["text"])]) for s in found["samples"]
        ]
    notes = [] if data["accuracy"] else [
        "No evaluation lies here. 'shrinkc eval DIR --text FILE -o DIR/eval.json' measures one, and the next report "
        "has it."
    ]  # fmt: skip
    return Section("accuracy", "Accuracy", tables=tables, samples=samples, notes=notes)
