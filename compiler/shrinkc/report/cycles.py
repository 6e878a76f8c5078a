"""Cycles of a compiled model by step: estimated, measured if there is a profiled run, and compared with the
ceilings of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from shrinkc.costs import CostTable, Work
from shrinkc.costs.work import OVERLAPPED, lane
from shrinkc.driver.estimating import parts_of
from shrinkc.engines import CORES, MatrixSpec, engine_named
from shrinkc.memory.cycles import DMA, FLASH, Passes, StepCost, StepWork, cost_of, resource_label
from shrinkc.memory.plan import Plan
from shrinkc.pictures.roofline import Ceiling, Point
from shrinkc.pictures.timeline import Span
from shrinkc.simulate.profile import Counts
from shrinkc.simulate.profile import Phase as Measured
from shrinkc.storage import Offsets
from shrinkc.targets import FETCHED, L1, Target

SIMD = "SC_XPULP=1"  # in a target's defines: one instruction multiplies 4 pairs of bytes
BYTES_AT_ONCE = 4  # per SIMD instruction and per load
LARGE = 4096  # rows and inputs of the matrix from which an engine's ceiling is computed


@dataclass
class Step:
    """Step of a forward pass in one layer (None: outside the layers).

    ``cycles`` and ``waits`` for transfers are estimated (None: not calibrated), ``counts`` measured (None: not
    measured).  ``busy``: cycles of each resource.  Also products, bytes of operands and results, and their source."""

    layer: int | None
    op: str
    kind: str
    cycles: float | None
    counts: Counts | None
    waits: float = 0.0
    products: float = 0.0
    bytes: float = 0.0
    source: str = L1
    engine: str = CORES
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> float | None:
        return None if self.counts is None else self.counts.elapsed

    def add(self, work: StepWork, cost: StepCost | None, times: int) -> None:
        """Add this step of one pass, divided by ``times``."""
        self.products += work.arithmetic.products / times
        self.bytes += work.arithmetic.bytes / times
        others = {who for name in work.work.features if (who := lane(name)) not in ("", OVERLAPPED)}
        self.engine = next(iter(sorted(others)), self.engine)
        self.source = _source(work, self.source, self.engine)
        if cost is not None:
            self.cycles = (self.cycles or 0.0) + cost.cycles / times
            self.waits += sum(cost.waits.values()) / times
            for name, cycles in cost.busy.items():
                self.busy[name] = self.busy.get(name, 0.0) + cycles / times

    def spans(self) -> tuple[Span | None, Span | None]:
        """Return the estimated and the measured span."""
        busy = {
            resource_label(n): cycles for n, cycles in self.busy.items() if cycles and n != CORES
        }
        found: list[Span | None] = [None, None]
        if self.cycles is not None:
            working = min(self.busy.get(CORES, 0.0), max(0.0, self.cycles - self.waits))
            rest = max(0.0, self.cycles - self.waits - working)
            parts = {"working": working, "barrier": rest, "transfers": self.waits}
            found[0] = Span(self.op, self.layer, self.cycles, parts, busy)
        if self.counts is not None:
            found[1] = Span(self.op, self.layer, self.counts.elapsed, parts_of(self.counts), busy)
        return found[0], found[1]


def _source(work: StepWork, known: str, engine: str) -> str:
    """Return the source of most bytes: flash, DMA, an engine that reads in place, or L1."""
    if work.work.fetched or any(tile.fetched for tile in work.tiles):
        return FLASH
    if known != FLASH and (work.tiles or work.work.moved):
        return DMA
    return engine_named(engine).label if known == L1 and engine != CORES else known


@dataclass(frozen=True)
class Steps:
    """Sum of several steps: an op in all layers, or a layer."""

    steps: Sequence[Step]

    @property
    def first(self) -> Step:
        return self.steps[0]

    @cached_property
    def estimated(self) -> float | None:
        """Return the sum of cycles; None if a step has none."""
        return _total(step.cycles for step in self.steps)

    @cached_property
    def measured(self) -> float | None:
        """Return the sum of cycles; None if a step has none."""
        return _total(step.measured for step in self.steps)

    @property
    def products(self) -> float:
        return sum(step.products for step in self.steps)

    @property
    def bytes(self) -> float:
        return sum(step.bytes for step in self.steps)

    @property
    def limit(self) -> str | None:
        """Return the resource that is busy longest."""
        busy: dict[str, float] = {}
        for step in self.steps:
            for name, cycles in step.busy.items():
                busy[name] = busy.get(name, 0.0) + cycles
        if not any(busy.values()):
            return None
        longest = max(busy, key=lambda name: busy[name])
        return resource_label(longest)

    @property
    def point(self) -> Point:
        """Return the point on a roofline."""
        e, m = self.estimated, self.measured
        return Point(
            self.first.op, self.first.kind, self.first.source, len(self.steps),
            self.products / max(self.bytes, 1.0), self.products / e if e else None, self.products / m if m else None,
        )  # fmt: skip


def _total(values: Iterable[float | None]) -> float | None:
    known = [*values]
    return None if None in known else sum(v for v in known if v is not None)


@dataclass(frozen=True)
class Phase:
    """Phase of a run: prefill or decode.  Cycles, products and bytes are per forward pass.

    ``measured``: total cycles by the run's clock; None: not measured.  ``unknown``: uncalibrated features, which
    count as 0 cycles.
    """

    name: str
    title: str
    steps: Sequence[Step]
    measured: float | None
    unknown: Sequence[str]

    @cached_property
    def all(self) -> Steps:
        return Steps(self.steps)

    def by(self, key: Callable[[Step], object]) -> list[Steps]:
        """Return the steps grouped by ``key``, in order of execution."""
        found: dict[object, list[Step]] = {}
        for step in self.steps:
            found.setdefault(key(step), []).append(step)
        return [Steps(steps) for steps in found.values()]

    @property
    def ops(self) -> list[Steps]:
        """Return each op, summed over all layers."""
        return self.by(lambda step: step.op)

    @property
    def points(self) -> list[Point]:
        """Return roofline points: each op, summed over the layers with the same source of bytes."""
        return [steps.point for steps in self.by(lambda step: (step.op, step.source))]


def phase(
    name: str, title: str, passes: Sequence[list[StepWork]], times: int, table: CostTable | None,
    measured: Measured | None, counted: bool,
) -> Phase:  # fmt: skip
    """Return the phase with the sum of ``passes`` divided by ``times``.  ``counted``: estimate a profile build, whose
    counters take time."""
    costs: Sequence[StepCost | None] = [None] * sum(map(len, passes))
    unknown: tuple[str, ...] = ()
    if table is not None:
        cost = cost_of(passes, table)
        unknown = cost.unknown
        costs = cost.steps if counted else cost.without_probes(table).steps
    counts: Mapping[tuple[int | None, str], Counts] = {} if measured is None else measured.counts
    steps: dict[tuple[int | None, str], Step] = {}
    for work, known in zip((w for each in passes for w in each), costs, strict=True):
        key = (work.layer, work.name)
        step = steps.setdefault(key, Step(*key, work.op, None, counts.get(key)))
        step.add(work, known, times)
    clock = None if measured is None else measured.cycles
    return Phase(name, title, [*steps.values()], clock, unknown)


# ---- ceilings ----


def ceilings(
    target: Target, plan: Plan, passes: Passes, table: CostTable | None, tokens: int
) -> list[Ceiling]:
    """Return the ceilings of a forward pass of ``tokens``."""
    bits = {m.bits for m in passes.shape.matrices}
    simd = SIMD in target.program.defines
    once = BYTES_AT_ONCE if simd else 1
    how = f"{target.cores} cores, {once} products of bytes an instruction" + " (Xpulp)" * simd
    out = [Ceiling("cores, activations of 8 bit", "products", once * target.cores, how)]
    if any(m.wide for m in passes.shape.matrices) and simd:
        half = f"{how}; of 16 bit each takes two"
        out.append(Ceiling("cores, of 16 bit", "products", once * target.cores / 2, half))
    for name in sorted({p.engine for p in plan.placements} - {CORES}):
        out.append(_engine_ceiling(name, max(bits), table, tokens))
    loads = f"{target.cores} cores, a load or store of {BYTES_AT_ONCE} bytes an instruction"
    out.append(Ceiling("L1", "bytes", BYTES_AT_ONCE * target.cores, loads, L1))
    if table is not None:
        fitted = f"cost model of {table.target}, fitted to {table.made.get('simulator', 'GVSoC')}"
        out.append(Ceiling("DMA", "bytes", table.dma, fitted, DMA))
        for level in target.levels:
            if level.access == FETCHED:
                out.append(Ceiling(level.label, "bytes", table.flash, fitted, FLASH))
    return out


def _engine_ceiling(name: str, bits: int, table: CostTable | None, tokens: int) -> Ceiling:
    engine = engine_named(name)
    spec = MatrixSpec("large", LARGE, LARGE, bits, None, Offsets.NONE)
    if table is not None and "linear" in table.ops:
        work = Work(engine.work(engine.shape(spec), tokens, ()))
        cycles = table.cycles("linear", work).whole
        whose = f"cost model of {table.target}"
    else:
        cycles, whose = float(engine.cycles(spec, tokens)), f"estimate of {engine.label}"
    said = f"{whose}: a matrix of {LARGE} by {LARGE}, {tokens} token{'s' * (tokens > 1)} at once"
    return Ceiling(engine.label, "products", tokens * LARGE * LARGE / max(cycles, 1.0), said)
