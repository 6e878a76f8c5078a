"""Where the cycles of a compiled model go, for a report: estimated, measured where a profiled run is there,
and against the ceilings of its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shrinkc.costs import CostTable, Work
from shrinkc.costs.work import BESIDE, lane
from shrinkc.engines import CORES, MatrixSpec, engine_named
from shrinkc.memory.cycles import DMA, FLASH, LABELS, Passes, StepCost, StepWork, cost_of
from shrinkc.memory.plan import Plan
from shrinkc.storage import Offsets
from shrinkc.targets import Target

L1 = "l1"
SIMD = "SC_XPULP=1"  # of a target's defines: an instruction multiplies 4 pairs of bytes
BYTES_AT_ONCE = 4  # of that instruction, and of a load
LARGE = 4096  # rows and inputs of the matrix that an engine's ceiling is of

Row = dict[str, Any]


@dataclass(frozen=True)
class Phase:
    """``passes`` of a prompt, or decode steps; what is stated is their sum over ``times``.

    ``measured``: the phase as a profiled run tells it (simulate.profile, Phase.to_json), or None.
    ``counted``: the estimate is of a profile build, whose counters take time.
    """

    name: str
    title: str
    passes: Sequence[list[StepWork]]
    times: int
    measured: Mapping[str, Any] | None = None
    counted: bool = False


@dataclass
class _Sum:
    """Of one step of one layer over all passes."""

    kind: str
    estimated: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    waits: float = 0.0
    products: float = 0.0
    bytes: float = 0.0
    source: str = L1
    engine: str = CORES

    def add(self, work: StepWork, cost: StepCost | None) -> None:
        self.products += work.arithmetic.products
        self.bytes += work.arithmetic.bytes
        others = {who for name in work.work.features if (who := lane(name)) not in ("", BESIDE)}
        self.engine = next(iter(sorted(others)), self.engine)
        self.source = _source(work, self.source, self.engine)
        if cost is not None:
            self.estimated += cost.cycles
            self.waits += sum(cost.waits.values())
            for name, cycles in cost.busy.items():
                self.busy[name] = self.busy.get(name, 0.0) + cycles


def _source(work: StepWork, known: str, engine: str) -> str:
    """Where most of its bytes come from: flash, DMA, an engine that reads in place, or L1."""
    if work.work.fetched or any(tile.fetched for tile in work.tiles):
        return FLASH
    if known != FLASH and (work.tiles or work.work.moved):
        return DMA
    return engine if known == L1 and engine != CORES else known


def phase_json(phase: Phase, table: CostTable | None) -> Row:
    """``steps``: each op of each layer; ``ops``: summed over layers; ``points``: over layers whose bytes come
    from the same place; ``layers``: over a layer's ops, what is in none under null.  Cycles, products and
    bytes are of one pass."""
    passes = phase.passes
    costs: list[StepCost | None] = [None] * sum(map(len, passes))
    unknown: tuple[str, ...] = ()
    if table is not None:
        cost = cost_of(passes, table)
        unknown = cost.unknown
        costs = list(cost.steps if phase.counted else cost.plain(table).steps)
    sums: dict[tuple[int | None, str], _Sum] = {}
    flat = [work for each in passes for work in each]
    for work, known in zip(flat, costs, strict=True):
        sums.setdefault((work.layer, work.name), _Sum(work.op)).add(work, known)
    measured = _measured(phase.measured)
    steps = [
        _step(key, s, phase.times, table is not None, measured.get(key)) for key, s in sums.items()
    ]
    return {
        "phase": phase.name,
        "title": phase.title,
        "estimated": _total(steps, "estimated"),
        "measured": None if phase.measured is None else phase.measured["cycles"],
        "counters_included": phase.counted,
        "not_calibrated": list(unknown),
        "steps": steps,
        "ops": [_together(rows) for rows in _by(steps, "op").values()],
        "points": [
            _together(rows) | {"layers": len(rows)}
            for same in _by(steps, "op").values()
            for rows in _by(same, "source").values()
        ],
        "layers": [
            {"layer": layer, "estimated": _total(rows, "estimated"), "measured": _total(rows, "measured")}
            for layer, rows in _by(steps, "layer").items()
        ],
    }  # fmt: skip


def _measured(phase: Mapping[str, Any] | None) -> dict[tuple[int | None, str], Mapping[str, Any]]:
    if phase is None:
        return {}
    found = {(row["layer"], row["op"]): row for row in phase["layers"]}
    inside = {op for _, op in found}
    return found | {(None, row["op"]): row for row in phase["ops"] if row["op"] not in inside}


def _step(
    key: tuple[int | None, str], s: _Sum, times: int, priced: bool, measured: Mapping[str, Any] | None
) -> Row:  # fmt: skip
    estimated = s.estimated / times if priced else None
    parts = None
    if estimated is not None:
        waits = s.waits / times
        working = min(s.busy.get(CORES, 0.0) / times, max(0.0, estimated - waits))
        rest = max(0.0, estimated - waits - working)
        parts = {"working": working, "stalls": 0.0, "barrier": rest, "transfers": waits}
    out: Row = {
        "layer": key[0],
        "op": key[1],
        "kind": s.kind,
        "engine": s.engine,
        "source": s.source,
        "estimated": _rounded(estimated),
        "measured": None if measured is None else measured["cycles"],
        "products": round(s.products / times, 1),
        "bytes": round(s.bytes / times, 1),
        "busy": {name: round(cycles / times, 1) for name, cycles in s.busy.items() if cycles},
        "estimated_parts": parts and {name: round(v, 1) for name, v in parts.items()},
        "measured_parts": None,
    }
    if measured is not None:
        stalls = measured["load_stalls"] + measured["icache"]
        out["measured_parts"] = {
            "working": round(max(0.0, measured["active"] - stalls), 1), "stalls": round(stalls, 1),
            "barrier": measured["barrier"], "transfers": measured["transfers"],
        }  # fmt: skip
    return out


def _by(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    out: dict[Any, list[Row]] = {}
    for row in rows:
        out.setdefault(row[key], []).append(row)
    return out


def _total(rows: Iterable[Row], key: str) -> float | None:
    """None where one of them is not known."""
    values = [row[key] for row in rows]
    return None if any(v is None for v in values) else _rounded(sum(values))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _together(rows: list[Row]) -> Row:
    """An op of several layers: its place on a roofline, and what is busy longest."""
    estimated, measured = _total(rows, "estimated"), _total(rows, "measured")
    products, size = _total(rows, "products") or 0.0, _total(rows, "bytes") or 0.0
    busy: dict[str, float] = {}
    for row in rows:
        for name, cycles in row["busy"].items():
            busy[name] = busy.get(name, 0.0) + cycles
    first = rows[0]
    return {
        "op": first["op"],
        "kind": first["kind"],
        "engine": first["engine"],
        "source": ", ".join(sorted({r["source"] for r in rows})),
        "limit": _label(max(busy, key=lambda name: busy[name])) if busy else None,
        "estimated": estimated,
        "measured": measured,
        "off": None if not (estimated and measured) else round(estimated / measured - 1, 4),
        "products": products,
        "bytes": size,
        "products_per_byte": round(products / max(size, 1.0), 4),
        "estimated_products_per_cycle": None if not estimated else round(products / estimated, 4),
        "measured_products_per_cycle": None if not measured else round(products / measured, 4),
    }


def _label(resource: str) -> str:
    return LABELS.get(resource, resource)


# ---- ceilings ----


def ceilings(
    target: Target, plan: Plan, passes: Passes, table: CostTable | None, tokens: int
) -> list[Row]:
    """Of a pass of ``tokens``: ``per`` cycle as many products, or ``per`` byte (where ``source`` is where
    bytes come from) as many bytes, each with what says so."""
    bits = {m.bits for m in passes.shape.matrices}
    simd = SIMD in target.program.defines
    once = BYTES_AT_ONCE if simd else 1
    how = f"{target.cores} cores, {once} products of bytes an instruction" + " (Xpulp)" * simd
    out = [_ceiling("cores, activations of 8 bit", "products", once * target.cores, how)]
    if any(m.wide for m in passes.shape.matrices) and simd:
        half = once * target.cores / 2
        out.append(
            _ceiling("cores, of 16 bit", "products", half, f"{how}; of 16 bit each takes two")
        )
    for name in sorted({p.engine for p in plan.placements} - {CORES}):
        out.append(_engine_ceiling(name, max(bits), table, tokens))
    loads = f"{target.cores} cores, a load or store of {BYTES_AT_ONCE} bytes an instruction"
    out.append(_ceiling("L1", "bytes", float(BYTES_AT_ONCE * target.cores), loads, L1))
    if table is not None:
        fitted = f"cost model of {table.target}, fitted to {table.made.get('simulator', 'GVSoC')}"
        out.append(_ceiling("DMA", "bytes", table.dma, fitted, DMA))
        if any(level.name == FLASH for level in target.levels):
            out.append(_ceiling("flash", "bytes", table.flash, fitted, FLASH))
    return out


def _ceiling(name: str, of: str, per_cycle: float, said: str, source: str | None = None) -> Row:
    return {
        "name": name, "of": of, "per_cycle": round(per_cycle, 3), "source": source, "said_by": said,
    }  # fmt: skip


def _engine_ceiling(name: str, bits: int, table: CostTable | None, tokens: int) -> Row:
    engine = engine_named(name)
    spec = MatrixSpec("large", LARGE, LARGE, bits, None, Offsets.NONE)
    if table is not None and table.knows("linear"):
        work = Work(engine.work(engine.shape(spec), tokens, ()))
        cycles = table.cycles("linear", work).whole
        whose = f"cost model of {table.target}"
    else:
        cycles, whose = float(engine.cycles(spec, tokens)), f"estimate of engine {name}"
    said = f"{whose}: a matrix of {LARGE} by {LARGE}, {tokens} token{'s' * (tokens > 1)} at once"
    return _ceiling(name, "products", tokens * LARGE * LARGE / max(cycles, 1.0), said)
