"""Speed estimates of planned and compiled models, by the cost model of the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shrinkc.core import artifact
from shrinkc.core.errors import BadArtifact, UsageError
from shrinkc.core.parsing import check_fields, parse_json
from shrinkc.costs import CostTable, cost_table
from shrinkc.engines import CORES, ENGINES
from shrinkc.ir.graph import Graph
from shrinkc.memory.cycles import PassCost, Passes, cost_of, resource_label
from shrinkc.memory.parts import Buffer, Placement, Table
from shrinkc.memory.plan import Plan
from shrinkc.pictures.timeline import Chart, Span
from shrinkc.schedule.shapes import ModelShape, shapes_of_graph
from shrinkc.simulate.profile import Counts, Phase
from shrinkc.targets import L1, MEMORIES, SIZES, TARGETS, Target, with_sizes

POSITION = 64  # default number of cached tokens assumed for the decode estimate


@dataclass(frozen=True)
class Speed:
    """Estimated cycles of a decode step at ``position`` and of the prefill of ``position`` tokens, at ``clock_mhz``.

    ``asked``: the clock was given; otherwise it is the simulator's default."""

    position: int
    clock_mhz: float
    asked: bool
    decode: PassCost
    prefill: PassCost
    table: CostTable

    def tokens_per_second(self, cost: PassCost, tokens: int = 1) -> float:
        """Return the tokens per second of forward passes over ``tokens``."""
        return tokens * 1e6 * self.clock_mhz / cost.cycles

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        table, passes = self.table, self.table.passes
        return {
            "position": self.position,
            "clock_mhz": self.clock_mhz,
            "decode": self._pass_json(self.decode, 1),
            "prefill": self._pass_json(self.prefill, self.position),
            "error": {
                "passes": None if passes is None else asdict(passes),
                "ops": {op: asdict(e) for op, e in table.errors.items()},
            },
            "not_calibrated": list(self.decode.unknown),
            "model": dict(table.made),
        }

    def _pass_json(self, cost: PassCost, tokens: int) -> dict[str, object]:
        return {
            "tokens": tokens,
            "cycles_per_token": round(cost.cycles / tokens, 1),
            "tokens_per_second": round(self.tokens_per_second(cost, tokens), 3),
            "limit": cost.limit,
            "busy": {name: round(part, 4) for name, part in cost.busy.items()},
            "ops": {op: round(cycles / tokens, 1) for op, cycles in cost.ops.items()},
        }


def check_speed(position: int | None, clock_mhz: float | None) -> None:
    """Raise UsageError for values that are impossible for every model."""
    if position is not None and position < 1:
        raise UsageError(f"--position {position} is not possible.", "allowed: 1 and more.")
    if clock_mhz is not None and not 0 < clock_mhz < 1e6:
        raise UsageError(
            f"--clock {clock_mhz:g} is not possible.", "allowed: above 0 and below 1000000 MHz."
        )


def speed_of(
    shape: ModelShape, plan: Plan, target: Target, position: int | None, clock_mhz: float | None
) -> Speed | None:
    """Return the estimate; None for an uncalibrated target.  Raises UsageError if ``position`` exceeds the context."""
    check_speed(position, clock_mhz)
    last = plan.context - 1
    if position is not None and position > last:
        raise UsageError(
            f"--position {position} is not possible at context {plan.context}.",
            f"allowed: 1 to {last}; or give a longer --context.",
        )
    table = cost_table(target.name)
    if table is None:
        return None
    at = min(POSITION, last) if position is None else position
    passes = Passes(shape, plan, target)
    return Speed(
        at, table.clock_mhz if clock_mhz is None else clock_mhz, clock_mhz is not None,
        cost_of([passes.steps(1, at)], table).without_probes(table),
        cost_of(passes.prompt(at), table).without_probes(table), table,
    )  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """Estimated counters of a profile build: of the prefill, and the sum of ``times`` decode
    steps."""

    prefill: PassCost
    decode: PassCost
    times: int

    def ops(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return cycles by op of the prefill and of the mean decode step."""
        mean = {op: cycles / max(self.times, 1) for op, cycles in self.decode.ops.items()}
        return self.prefill.ops, mean


def predicted_run(
    directory: Path, graph: Graph, target: Target, prompt: int, steps: Sequence[tuple[int, int]]
) -> Predicted | None:
    """Return the estimate for a prompt of ``prompt`` tokens and decode steps of (tokens, position); None if the
    target is not calibrated.  Raises BadArtifact if another version wrote the plan."""
    table = cost_table(target.name)
    if table is None:
        return None
    passes = Passes(shapes_of_graph(graph, 0), read_plan(directory / artifact.PLAN), target)
    return Predicted(
        cost_of(passes.prompt(prompt), table),
        cost_of([passes.steps(tokens, at, tokens) for tokens, at in steps], table),
        len(steps),
    )


def target_of(directory: Path, manifest: artifact.Manifest) -> Target:
    """Return the target of a compiled directory.  Raises BadArtifact if it is unknown."""
    if manifest.target not in TARGETS:
        raise BadArtifact(
            f"{directory / artifact.MANIFEST} names the target '{manifest.target}', which is not "
            f"one of {', '.join(TARGETS)}.",
            "compile the model again.",
        )
    options = manifest.options
    sizes = {name: size for name in SIZES if isinstance(size := options.get(name), int)}
    return with_sizes(TARGETS[manifest.target], sizes)


def read_plan(path: Path) -> Plan:
    """Return the plan of a compiled directory.  Raises BadArtifact if another version wrote it."""
    try:
        found: Mapping[str, object] = parse_json(path.read_text(encoding="utf-8"))
        plan = Plan.of_json(found)
        _check(plan)
        return plan
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadArtifact(
            f"{path} is not a memory plan of this version of shrinkc: {error}.",
            "compile the model again.",
        ) from None


def _check(plan: Plan) -> None:
    """Raise ValueError, TypeError or KeyError for wrong types, sizes of 0 that would be divisors, and unknown
    memories or engines."""
    kept: list[Buffer | Table | Placement] = [
        *plan.l1,
        *plan.lower_buffers,
        *plan.tables,
        *plan.placements,
    ]
    for part in (plan, *kept):
        check_fields(part)
    counts = [*plan.used.values(), *plan.capacity.values(), *plan.kv_layers.values()]
    if not all(type(n) is int for n in counts) or not all(type(s) is str for s in plan.steps):
        raise TypeError("a size is no integer, or a step no name")
    levels = {*plan.used, *plan.capacity, *plan.kv_layers, *(x.level for x in kept)}
    levels |= {p.chip_level for p in plan.placements if p.interleave}
    if not levels <= {*MEMORIES} or not {L1} <= plan.used.keys() == plan.capacity.keys():
        raise ValueError("a memory is missing or not known")
    if unknown := {p.engine for p in plan.placements} - {*ENGINES}:
        raise ValueError(f"there is no engine {sorted(unknown)[0]!r}")
    parts = [n for p in plan.placements for n in (p.blocks, p.tile_blocks, p.block_bytes)]
    if min([plan.chunk, len(plan.steps), len(plan.l1), *parts]) < 1 or plan.context < 2:
        raise ValueError("there is nothing of what there has to be some")
    steps = set(range(len(plan.steps)))
    lives = [b.live for b in (*plan.l1, *plan.lower_buffers)]
    if any(type(at) is not int for live in lives for at in live):
        raise TypeError("a step is no integer")
    if not all(live and {*live} <= steps and [*live] == sorted({*live}) for live in lives):
        raise ValueError("a buffer lives outside of the pass")


def profile_chart(title: str, phase: Phase, cost: PassCost | None) -> Chart:
    """Return a chart of a phase's steps; busy cycles are those of the cost model."""
    busy: dict[tuple[int | None, str], dict[str, float]] = {}
    for step in () if cost is None else cost.steps:
        mine = busy.setdefault((step.layer, step.name), {})
        for name, cycles in step.busy.items():
            if name != CORES:
                label = resource_label(name)
                mine[label] = mine.get(label, 0.0) + cycles / phase.steps
    spans = [
        Span(name, layer, c.elapsed, parts_of(c), busy.get((layer, name), {}))
        for (layer, name), c in phase.counts.items()
    ]
    return Chart(title, spans)


def parts_of(c: Counts) -> dict[str, float]:
    """Return the mean core's cycles by activity of a timeline."""
    stalls = c.load_stalls + c.icache
    return {
        "working": max(0.0, c.active - stalls), "stalls": stalls, "barrier": c.barrier,
        "transfers": c.transfers,
    }  # fmt: skip
