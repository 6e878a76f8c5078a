"""How fast a planned or compiled model is expected to be, by the cost model of its target."""

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
from shrinkc.targets import L1, MEMORIES, TARGETS, Target

POSITION = 64  # of the decode step that is stated where nothing else is asked for


@dataclass(frozen=True)
class Speed:
    """Cycles of a decode step at ``position``, and of the prefill of as many tokens before it, at a clock
    of ``clock_mhz``.  ``asked``: the clock was given, else it is the simulator's default."""

    position: int
    clock_mhz: float
    asked: bool
    decode: PassCost
    prefill: PassCost
    table: CostTable

    def tokens_per_second(self, cost: PassCost, tokens: int = 1) -> float:
        """Of passes over that many tokens."""
        return tokens * 1e6 * self.clock_mhz / cost.cycles

    def to_json(self) -> dict[str, object]:
        """The same for programs."""
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
    """UsageError for values that no model has."""
    if position is not None and position < 1:
        raise UsageError(f"--position {position} is not possible.", "allowed: 1 and more.")
    if clock_mhz is not None and not 0 < clock_mhz < 1e6:
        raise UsageError(
            f"--clock {clock_mhz:g} is not possible.", "allowed: above 0 and below 1000000 MHz."
        )


def speed_of(
    shape: ModelShape, plan: Plan, target: Target, position: int | None, clock_mhz: float | None
) -> Speed | None:
    """None where the target was not calibrated.  UsageError for a position outside the context."""
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
        cost_of([passes.steps(1, at)], table).plain(table),
        cost_of(passes.prompt(at), table).plain(table), table,
    )  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """What the counters of a profile build are expected to say: of the prefill, and of ``times`` decode
    steps together."""

    prefill: PassCost
    decode: PassCost
    times: int

    def ops(self) -> tuple[dict[str, float], dict[str, float]]:
        """By op, of the prefill and of the mean decode step."""
        mean = {op: cycles / max(self.times, 1) for op, cycles in self.decode.ops.items()}
        return self.prefill.ops, mean


def predicted_run(
    directory: Path, graph: Graph, target: Target, prompt: int, steps: Sequence[tuple[int, int]]
) -> Predicted | None:
    """Of a compiled directory, for a prompt of that many tokens and decode steps of (tokens, position); None
    where the target was not calibrated.  BadArtifact where another version wrote the plan."""
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
    """What a compiled directory is for; BadArtifact where nobody knows it."""
    if manifest.target not in TARGETS:
        raise BadArtifact(
            f"{directory / artifact.MANIFEST} names the target '{manifest.target}', which is not "
            f"one of {', '.join(TARGETS)}.",
            "compile the model again.",
        )
    return TARGETS[manifest.target]


def read_plan(path: Path) -> Plan:
    """The plan of a compiled directory; BadArtifact where another version wrote it."""
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
    """Raises what a plan is no plan for whose values are of other types than it says, that divides by nothing,
    or that is of memories or engines that nobody knows."""
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
    """The steps of a phase; what the model says of them is that phase's share by step."""
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
    """What the mean core did, as a timeline tells it."""
    stalls = c.load_stalls + c.icache
    return {
        "working": max(0.0, c.active - stalls), "stalls": stalls, "barrier": c.barrier,
        "transfers": c.transfers,
    }  # fmt: skip
