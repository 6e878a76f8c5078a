"""Profiles: cycles per operation, from the output of a program built with PROFILE=1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from shrinkc.abi import Line, Time
from shrinkc.core.errors import RunFailed
from shrinkc.core.parsing import as_number, as_text

_OUTSIDE = "-"  # the layer of an op that is in none
_FIELDS = 12


@dataclass(frozen=True)
class Counts:
    """Counts of one op, or of several added; in cycles, except for ``instructions``.

    Mean over the cores: ``elapsed`` from the end of the previous op to the end of this one on all cores, ``active``
    cycles, and stalls for the use of a value just loaded (``load_stalls``) and for the instruction cache (``icache``).
    ``transfers``: waits for DMA and flash of the core that waits longest, because the others wait for it.
    ``busiest``: active cycles of the busiest core.
    """

    elapsed: float = 0.0
    active: float = 0.0
    instructions: float = 0.0
    load_stalls: float = 0.0
    icache: float = 0.0
    transfers: float = 0.0
    busiest: float = 0.0

    @property
    def barrier(self) -> float:
        """Cycles of waiting for other cores."""
        return max(0.0, self.elapsed - self.active - self.transfers)

    @property
    def load_imbalance(self) -> float:
        """Active cycles of the busiest core, divided by those of the mean core."""
        return self.busiest / max(self.active, 1)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __truediv__(self, n: float) -> Counts:
        return Counts(*(v / n for v in _values(self)))

    def to_json(self) -> dict[str, float]:
        names = ("active", "instructions", "load_stalls", "icache", "transfers", "barrier")
        shown = {"cycles": self.elapsed} | {name: getattr(self, name) for name in names}
        rounded = {name: round(value, 1) for name, value in shown.items()}
        return {**rounded, "load_imbalance": round(self.load_imbalance, 3)}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Counts:
        """Read counts from JSON.  Raises KeyError, TypeError or ValueError for other data."""
        names = ("cycles", "active", "instructions", "load_stalls", "icache", "transfers")
        values = [as_number(found[name]) for name in names]
        values.append(as_number(found["load_imbalance"]) * max(values[1], 1))
        return cls(*values)


def _values(counts: Counts) -> tuple[float, ...]:
    return tuple(getattr(counts, f.name) for f in fields(counts))


@dataclass(frozen=True)
class Phase:
    """Counts of the prefill or of the mean decode step.

    ``steps``: number of steps.  ``cycles``: of one step, by the run's clock.  ``counts``: by layer (None: outside the
    layers) and name of the op in the graph, in order of execution.  ``predicted``: op -> estimated cycles; empty
    without a cost table.
    """

    steps: int
    cycles: float
    counts: dict[tuple[int | None, str], Counts]
    predicted: Mapping[str, float] = field(default_factory=dict)

    @property
    def ops(self) -> dict[str, Counts]:
        """Counts by op, summed over the layers, in order of execution."""
        out: dict[str, Counts] = {}
        for (_, op), counts in self.counts.items():
            out[op] = out.get(op, Counts()) + counts
        return out

    @property
    def total(self) -> Counts:
        """Sum of all ops."""
        return sum(self.counts.values(), Counts())

    def lines(self, title: str) -> list[str]:
        """Return a table as text: a row per op, summed over the layers, and a row for all ops."""
        total = self.total
        ops = {**self.ops, "all": total}
        width = max(map(len, ops))
        expected = {**self.predicted, "all": sum(self.predicted.values())}
        columns = _COLUMNS[:1] + (_PREDICTED if self.predicted else ()) + _COLUMNS[1:]
        head = f"{'':{width}}" + "".join(f"{name:>{w}}" for name, w in columns)
        rows = []
        for op, counts in ops.items():
            cells = _cells(counts, total)
            if self.predicted:
                cells[1:1] = _deviation(expected.get(op), counts.elapsed)
            rows.append(f"{op:{width}}" + _aligned(cells, columns))
        counted = f"{total.elapsed:.0f} of {self.cycles:.0f} cycles are in operations"
        return [f"profile of {title}: {counted}", head, *rows]

    def to_json(self) -> dict[str, object]:
        """Return JSON: ``ops`` summed over the layers, ``layers`` with each op of each layer; ``predicted`` is null
        without a cost table."""
        expected = {op: round(cycles, 1) for op, cycles in self.predicted.items()}
        return {
            "steps": self.steps,
            "cycles": round(self.cycles, 1),
            "counted": round(self.total.elapsed, 1),
            "predicted": round(sum(self.predicted.values()), 1) if self.predicted else None,
            "ops": [
                {"op": op, **counts.to_json(), "predicted": expected.get(op)}
                for op, counts in self.ops.items()
            ],
            "layers": [
                {"layer": layer, "op": op, **counts.to_json()}
                for (layer, op), counts in self.counts.items()
                if layer is not None
            ],
        }

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Phase:
        """Read a phase from JSON.  Raises KeyError, TypeError or ValueError for other data."""
        counts: dict[tuple[int | None, str], Counts] = {
            (int(as_number(row["layer"])), as_text(row["op"])): Counts.of_json(row)
            for row in found["layers"]
        }
        inside = {op for _, op in counts}
        for row in found["ops"]:
            if as_text(row["op"]) not in inside:
                counts[None, row["op"]] = Counts.of_json(row)
        return cls(int(as_number(found["steps"])), as_number(found["cycles"]), counts)


_COLUMNS = (
    ("cycles", 10), ("share", 8), ("instr.", 10), ("load-use", 10), ("icache", 9), ("barrier", 9),
    ("transfer", 10), ("load imbalance", 16),
)  # fmt: skip
_PREDICTED = (("predicted", 11), ("off", 9))


def _deviation(expected: float | None, measured: float) -> list[str]:
    """Return the cells with the prediction and its deviation from the measurement."""
    if expected is None:
        return ["-", "-"]
    return [f"{expected:.0f}", f"{100 * (expected / max(measured, 1) - 1):+.1f} %"]


def _cells(c: Counts, total: Counts) -> list[str]:
    return [
        f"{c.elapsed:.0f}", f"{100 * c.elapsed / max(total.elapsed, 1):.1f} %",
        f"{c.instructions:.0f}", f"{c.load_stalls:.0f}", f"{c.icache:.0f}", f"{c.barrier:.0f}",
        f"{c.transfers:.0f}", f"{c.load_imbalance:.2f}",
    ]  # fmt: skip


def _aligned(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    return "".join(f"{cell:>{w}}" for cell, (_, w) in zip(cells, columns, strict=True))


@dataclass(frozen=True)
class Profile:
    """Cycles by operation; ``decode`` is None for a run without decode steps."""

    prefill: Phase
    decode: Phase | None

    def lines(self) -> list[str]:
        """Return the tables as text."""
        out = self.prefill.lines("the prefill")
        if self.decode is not None:
            out += self.decode.lines(f"a decode step, mean of {self.decode.steps}")
        return out

    def to_json(self) -> dict[str, object]:
        """Return the profile as JSON."""
        decode = None if self.decode is None else self.decode.to_json()
        return {"prefill": self.prefill.to_json(), "decode": decode}

    def with_predictions(
        self, prefill: Mapping[str, float], decode: Mapping[str, float]
    ) -> Profile:
        """Return the profile with the estimated cycles of every op."""
        last = None if self.decode is None else replace(self.decode, predicted=decode)
        return Profile(replace(self.prefill, predicted=prefill), last)


def read_profile(
    lines: Iterable[str], prefill_time: int | None, decode_times: list[int]
) -> Profile | None:
    """Read the profile from a run's output (port_profile.c); None if there is none.

    The times are those of the same run (Record).  Raises RunFailed for a damaged line.
    """
    counts: dict[str, dict[tuple[int | None, str], Counts]] = {Time.PREFILL: {}, Time.DECODE: {}}
    for line in lines:
        f = line.split()
        if f[:1] != [Line.PROFILE]:
            continue
        if len(f) != _FIELDS or f[1] not in counts or not all(map(str.isdecimal, f[4:])):
            raise _not_a_profile(line)
        if f[2] != _OUTSIDE and not f[2].isdecimal():
            raise _not_a_profile(line)
        cores, *values = map(int, f[4:])
        if cores < 1:
            raise _not_a_profile(line)
        *sums, transfers, busiest = values
        one = Counts(*(v / cores for v in sums))
        one = replace(one, transfers=float(transfers), busiest=float(busiest))
        key = (None if f[2] == _OUTSIDE else int(f[2]), f[3])
        counts[f[1]][key] = counts[f[1]].get(key, Counts()) + one
    if not counts[Time.PREFILL] or prefill_time is None:
        return None
    steps = len(decode_times)
    decode = {key: c / max(steps, 1) for key, c in counts[Time.DECODE].items()}
    return Profile(
        Phase(1, float(prefill_time), counts[Time.PREFILL]),
        Phase(steps, sum(decode_times) / steps, decode) if steps else None,
    )


def _not_a_profile(line: str) -> RunFailed:
    return RunFailed(f"the program printed '{line}', which is no line of a profile.")
