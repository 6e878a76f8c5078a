"""Sweeps: plans of a model for all combinations of option values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shrinkc.core.errors import QuantizeError, ShrinkcError, UnsupportedModel, UsageError
from shrinkc.core.progress import Reporter
from shrinkc.core.words import show_size
from shrinkc.driver.estimating import POSITION, Speed
from shrinkc.driver.plan_request import PlanRequest
from shrinkc.driver.planned import Planned, Shortfall
from shrinkc.driver.planning import prepare
from shrinkc.memory.cycles import resource_label
from shrinkc.pictures.sweep import Row, sweep_picture
from shrinkc.targets import MEMORIES, SIZES, memory_kind

AXES = ("target", "bits", "embedding_bits", "group_size", "kv_bits", "context", "l1", *SIZES)
"""Options of a plan that a sweep can vary."""

ENERGY = "not estimated: no measurement on the chip to estimate it from"

Value = int | str | None


@dataclass(frozen=True)
class Point:
    """Combination of ``values`` of the axes, with its plan, its shortfall, or the error that refused it."""

    values: Mapping[str, Value]
    result: Planned | Shortfall | ShrinkcError

    @cached_property
    def speed(self) -> Speed | None:
        """Estimated speed; None if there is no plan or no cost model."""
        return self.result.speed if isinstance(self.result, Planned) else None

    @property
    def short(self) -> str:
        """Return the shortfall or the reason of the refusal; empty if the model fits."""
        if isinstance(self.result, Planned):
            return ""
        if isinstance(self.result, ShrinkcError):
            return f"refused: {self.result.message}"
        return ", ".join(
            f"{lack.label} short of {show_size(lack.excess)}" for lack in self.result.lacks
        )

    def to_json(self) -> dict[str, object]:
        """Return ``values`` and the object of ``plan --json``; ``fits`` is None if the combination is refused."""
        found: dict[str, object] = {"values": dict(self.values)}
        if isinstance(self.result, Planned):
            speed = None if self.speed is None else self.speed.to_json()
            return {**found, **self.result.to_json(), "speed": speed}
        if isinstance(self.result, ShrinkcError):
            return {**found, "fits": None, **self.result.to_json()}
        lacks = [lack.to_json() for lack in self.result.lacks]
        return {**found, "fits": False, "lacks": lacks, "notes": list(self.result.notes)}


@dataclass(frozen=True)
class Sweep:
    """All ``points``; the last axis varies fastest."""

    model: str
    axes: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def fits(self) -> bool:
        """Whether any point fits."""
        return any(isinstance(p.result, Planned) for p in self.points)

    @property
    def levels(self) -> list[str]:
        """Return the memories that any of the plans uses."""
        plans = [p.result.plan for p in self.points if isinstance(p.result, Planned)]
        return [v for v in MEMORIES if any(plan.used.get(v) for plan in plans)]

    @property
    def _names(self) -> list[str]:
        """Short names of ``levels``.  If all plans are for boards, these are RAM and flash."""
        plans = [p.result for p in self.points if isinstance(p.result, Planned)]
        board = all(plan.target.board for plan in plans)
        return [memory_kind(v, board=board).short for v in self.levels]

    @property
    def notes(self) -> list[str]:
        """Return the notes of all points, without repetitions."""
        found = [p.result.notes for p in self.points if not isinstance(p.result, ShrinkcError)]
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def lines(self) -> list[str]:
        """Return a table."""
        heads = [a.replace("_", "-") for a in self.axes]
        rows = [
            [*heads, "fits", *self._names, "cycles/token", "tokens/s", "limit"],
            *(self._row(point) for point in self.points),
        ]  # fmt: skip
        widths = [max(map(len, cells)) for cells in itertools.zip_longest(*rows, fillvalue="")]
        # in a row that does not fit, the shortfall replaces all further columns
        first = len(heads) + 1
        widths[first] = max(len(row[first]) for row in rows if len(row) > first + 1)
        out = [f"{self.model}: {len(self.points)} plans"]
        for row in rows:
            cells = [f"{c:>{w}}" for c, w in zip(row, widths, strict=False)]
            if len(row) == first + 1:
                cells[-1] = row[-1]
            out.append("  " + "  ".join(cells).rstrip())
        out += [f"  note     {note}" for note in self.notes]
        speeds = [p.speed for p in self.points if p.speed is not None]
        if speeds:
            out += [f"  {line}" for line in _speed_lines(speeds)]
        plans = [p.result for p in self.points if isinstance(p.result, Planned)]
        without = dict.fromkeys(plan.target.name for plan in plans if plan.speed is None)
        out += [f"  speed    not estimated: {name} was not calibrated" for name in without]
        return [*out, f"  energy   {ENERGY}"]

    def _row(self, point: Point) -> list[str]:
        cells = [shown(axis, point.values[axis]) for axis in self.axes]
        if not isinstance(point.result, Planned):
            return [*cells, "no" if isinstance(point.result, Shortfall) else "-", point.short]
        used, speed = point.result.plan.used, point.speed
        cells += ["yes", *(show_size(used.get(v, 0)) for v in self.levels)]
        if speed is None:
            return [*cells, "-", "-", "-"]
        limit = speed.decode.limit
        return [
            *cells, f"{speed.decode.cycles:,.0f}", f"{speed.tokens_per_second(speed.decode):,.2f}",
            f"{resource_label(limit)} {100 * speed.decode.busy[limit]:.0f} %",
        ]  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return {
            "model": self.model,
            "axes": {a: list(dict.fromkeys(p.values[a] for p in self.points)) for a in self.axes},
            "points": [p.to_json() for p in self.points],
            "energy": None,
        }

    def picture(self) -> str:
        """Return an SVG with a row per combination and bars of memories and cycles."""
        rows = []
        for point in self.points:
            labels = [shown(axis, point.values[axis]) for axis in self.axes]
            bars, cycles, said = list[tuple[int, int]](), None, point.short
            if isinstance(point.result, Planned):
                plan = point.result.plan
                bars = [(plan.used.get(v, 0), plan.capacity.get(v, 0)) for v in self.levels]
                if (speed := point.speed) is not None:
                    cycles = speed.decode.cycles
                    rate, limit = speed.tokens_per_second(speed.decode), speed.decode.limit
                    said = f"{cycles:,.0f} cycles, {rate:,.2f} tokens/s, {resource_label(limit)}"
            rows.append(Row(labels, bars, cycles, said))
        heads = [a.replace("_", "-") for a in self.axes]
        return sweep_picture(f"{self.model}: what fits, and how fast", heads, self._names, rows)


def _speed_lines(speeds: Sequence[Speed]) -> list[str]:
    """Return lines about position, clock and error, which all rows share."""
    s = speeds[0]
    whose = "" if s.asked else ", the simulator's default clock"
    out = [f"speed    of a decode step at position {s.position}, at {s.clock_mhz:g} MHz{whose}"]
    for table in {s.table.target: s.table for s in speeds}.values():
        if e := table.passes:
            out.append(
                f"error    {table.target}: {100 * e.median:.1f} % in the median, {100 * e.p90:.1f} % at "
                "most in 9 of 10"
            )
    return out


def shown(axis: str, value: Value) -> str:
    """Return the text of a value in a table."""
    if value is None:
        return "channel"
    size = axis in ("l1", *SIZES) and isinstance(value, int)
    return show_size(int(value)) if size else str(value)


def sweep(
    axes: Mapping[str, Sequence[Value]], options: Mapping[str, Any], reporter: Reporter
) -> Sweep:
    """Plan every combination of the ``axes``' values.  ``options`` are those of PlanRequest; axes override them.


    The checkpoint is opened once.  A combination that is impossible for the model (a context, a group size) is a
    point too.  If all are refused, the first refusal is raised.
    """
    checkpoint = PlanRequest(**options).opened(whole=False)
    given = {**options, "model": checkpoint, "adapter": None}
    combinations = list(itertools.product(*axes.values()))
    points: list[Point] = []
    with reporter.stage("planning") as update:
        for values in combinations:
            chosen = dict(zip(axes, values, strict=True))
            point = Point(chosen, _planned(given | chosen))
            points.append(point)
            update(len(points), len(combinations))
    points = list(_at_one_position(points))
    with reporter.stage("estimating") as update:
        for done, point in enumerate(points):
            update(done, len(points))
            _ = point.speed  # computed here, while progress is shown
    refused = [p.result for p in points if isinstance(p.result, ShrinkcError)]
    if len(refused) == len(points):
        raise refused[0]
    return Sweep(checkpoint.name, tuple(axes), tuple(points))


def _planned(options: Mapping[str, Any]) -> Planned | Shortfall | ShrinkcError:
    try:
        found = prepare(PlanRequest(**options))
        if isinstance(found, Planned) and options.get("position") is not None:
            _ = found.speed  # raises if the position is outside the context
        return found
    except (QuantizeError, UnsupportedModel, UsageError) as error:
        return error


def _at_one_position(points: Sequence[Point]) -> Iterator[Point]:
    """Yield the points with speeds at one position, which every context has, so that they can be compared."""
    plans = [p.result for p in points if isinstance(p.result, Planned)]
    most = min([POSITION, *(plan.context - 1 for plan in plans)])
    for point in points:
        found = point.result
        if isinstance(found, Planned) and found.request.position is None:
            found = replace(found, request=replace(found.request, position=most))
        yield replace(point, result=found)
