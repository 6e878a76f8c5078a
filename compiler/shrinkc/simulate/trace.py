"""Traces: times of each core and unit, as a file for Perfetto, from a program built with PROFILE=1 TRACE=1.

The file is JSON of the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.  One microsecond of the
viewer is one cycle.  Cycles between two operations, in which the program counts and prints, are cut out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from shrinkc.abi import Line, Time, Unit
from shrinkc.core.errors import RunFailed

_OUTSIDE = "-"  # the layer of an op that is in none
_CYCLES = 1 << 32  # after which a core's clock begins at 0 again
_LOST = "lost"
_UNITS = {unit.value: unit for unit in Unit}
_PASSES, _CLUSTER, _OTHERS = 1, 2, 3  # processes of the file

Event = dict[str, object]


@dataclass(frozen=True)
class Part:
    """One core's part of an op, in cycles of its clock.  ``arrived``: at the barrier that ends the op."""

    core: int
    begin: int
    arrived: int
    end: int
    active: int


@dataclass(frozen=True)
class Op:
    """One op of one forward pass.  ``layer``: None outside the layers.  ``number``: of the pass."""

    number: int
    phase: str
    layer: int | None
    name: str
    parts: tuple[Part, ...]

    @property
    def begin(self) -> int:
        return min(part.begin for part in self.parts)

    @property
    def end(self) -> int:
        return max(part.end for part in self.parts)


@dataclass(frozen=True)
class Span:
    """A core's wait for a unit's transfer, or work of an engine from its first job to the end of its last."""

    unit: Unit
    core: int
    begin: int
    end: int


@dataclass(frozen=True)
class Trace:
    """A run's trace.

    Attributes:
        ops: Operations in order of execution.
        controller: Number of the controller; the workers have the numbers below it.
        attended: The controller's parts of the layers' operations.
        spans: Waits for transfers, and the work of the engine.
        lost: Number of spans that the program had no memory for.
    """

    ops: tuple[Op, ...]
    controller: int
    attended: tuple[Part, ...] = ()
    spans: tuple[Span, ...] = ()
    lost: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the object of the file."""
        return {
            "traceEvents": [*self._lanes(), *sorted(self._slices(), key=_order)],
            "displayTimeUnit": "ns",
            "otherData": {"unit": "1 microsecond is 1 cycle", "lost_spans": self.lost},
        }

    def lines(self) -> list[str]:
        """Return notes for the user."""
        if not self.lost:
            return []
        return [f"note: the trace lacks {self.lost} waits, which the program had no memory for"]

    def _lanes(self) -> list[Event]:
        """Return the names of the lanes."""
        units = {span.unit for span in self.spans}
        cores = [f"worker {core}" for core in range(self.controller)] + ["controller"]
        processes = {
            _PASSES: ("model", ["passes and layers"]),
            _CLUSTER: ("cluster", cores),
            _OTHERS: ("units", [unit.label if unit in units else "" for unit in Unit]),
        }
        out: list[Event] = []
        for pid, (process, lanes) in processes.items():
            if not any(lanes):
                continue
            out.append(_meta("process_name", pid, 0, name=process))
            out.append(_meta("process_sort_index", pid, 0, sort_index=pid))
            for tid, lane in enumerate(lanes):
                if lane:
                    out.append(_meta("thread_name", pid, tid, name=lane))
                    out.append(_meta("thread_sort_index", pid, tid, sort_index=tid))
        return out

    def _slices(self) -> list[Event]:
        clock = _Clock(self.ops)
        out = self._passes(clock)
        at_work: dict[tuple[int, int], tuple[int, int]] = {}  # op, core -> begin, arrival
        parts = [(i, op, part) for i, op in enumerate(self.ops) for part in op.parts]
        for part in self.attended:
            i = clock.op_at(part.end)
            parts.append((i, self.ops[i], _within(part, self.ops[i])))
        for i, op, part in parts:
            at_work[i, part.core] = part.begin, part.arrived
            out += _part_slices(op, part, clock)
        waits: dict[Unit, list[tuple[int, int]]] = {unit: [] for unit in Unit}
        for span in self.spans:
            i = clock.op_at(span.begin)
            if span.unit.works:
                waits[span.unit].append((clock.time(span.begin), clock.time(span.end)))
                continue
            low, high = at_work.get((i, span.core), (self.ops[i].begin, self.ops[i].end))
            begin, end = max(span.begin, low), min(span.end, high)
            if begin < end:  # else it lies between two ops
                times = clock.time(begin), clock.time(end)
                waits[span.unit].append(times)
                name = f"wait for {span.unit.label}"
                out.append(_slice(name, _CLUSTER, span.core, *times, {}))
        for tid, (unit, spans) in enumerate(waits.items()):
            name = "jobs" if unit.works else "cores wait"
            out += [_slice(name, _OTHERS, tid, *times, {}) for times in _united(spans)]
        return out

    def _passes(self, clock: _Clock) -> list[Event]:
        """Return slices of the passes, and of the layers in them."""
        out = []
        first = 1
        for number, found in groupby(self.ops, key=lambda op: op.number):
            ops = list(found)
            name = "prefill" if ops[0].phase == Time.PREFILL else f"decode step {first}"
            first += ops[0].phase == Time.DECODE
            times = clock.time(ops[0].begin), clock.time(ops[-1].end)
            out.append(_slice(name, _PASSES, 0, *times, {"pass": number}))
            for layer, inner in groupby(ops, key=lambda op: op.layer):
                if layer is not None:
                    of = list(inner)
                    times = clock.time(of[0].begin), clock.time(of[-1].end)
                    out.append(_slice(f"layer {layer}", _PASSES, 0, *times, {"layer": layer}))
        return out


@dataclass
class _Clock:
    """Time of the trace: that of the cores, without what is between two ops."""

    ops: Sequence[Op]
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = 0
        for op in self.ops:
            self.begins.append(op.begin)
            self.ends.append(op.end)
            self.starts.append(at)
            at += op.end - op.begin

    def op_at(self, cycle: int) -> int:
        """Return the last op that has begun."""
        return max(0, bisect_right(self.begins, cycle) - 1)

    def time(self, cycle: int) -> int:
        i = self.op_at(cycle)
        return self.starts[i] + min(max(cycle, self.begins[i]), self.ends[i]) - self.begins[i]


def _within(part: Part, op: Op) -> Part:
    """Return the controller's part without what it did before and after the op."""
    begin, end = min(max(part.begin, op.begin), op.end), min(max(part.end, op.begin), op.end)
    arrived = min(max(part.arrived, begin), end)
    return Part(part.core, begin, arrived, end, min(part.active, end - begin))


def _part_slices(op: Op, part: Part, clock: _Clock) -> list[Event]:
    args: dict[str, object] = {"active": part.active}
    if op.layer is not None:
        args["layer"] = op.layer
    begin, arrived, end = (clock.time(cycle) for cycle in (part.begin, part.arrived, part.end))
    out = [_slice(op.name, _CLUSTER, part.core, begin, end, args)]
    if arrived < end:
        out.append(_slice("wait for the other cores", _CLUSTER, part.core, arrived, end, {}))
    return out


def _slice(
    name: str, pid: int, tid: int, begin: int, end: int, args: dict[str, object]
) -> dict[str, object]:
    return {
        "name": name, "ph": "X", "pid": pid, "tid": tid, "ts": begin, "dur": end - begin, "args": args,
    }  # fmt: skip


def _meta(what: str, pid: int, tid: int, **args: object) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _order(event: Event) -> tuple[int, int]:
    """Return a key by which a slice comes before those inside it."""
    begin, length = event["ts"], event["dur"]
    assert isinstance(begin, int) and isinstance(length, int)
    return begin, -length


def _united(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap as one, because slices of a lane must not overlap."""
    out: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if out and begin < out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        elif begin < end:
            out.append((begin, end))
    return out


@dataclass
class _Unwrapped:
    """Cycles without the wrap of 32 bits."""

    last: int | None = None

    def __call__(self, cycle: int) -> int:
        half, last = _CYCLES // 2, cycle if self.last is None else self.last
        self.last = last + (cycle - last + half) % _CYCLES - half
        return self.last


def read_trace(lines: Iterable[str]) -> Trace | None:
    """Read the trace from a run's output (port_profile.c); None if there is none.

    Raises RunFailed for a damaged line.
    """
    ops: list[Op] = []
    attended: list[Part] = []
    spans: list[Span] = []
    controller = lost = number = 0
    unwrapped = _Unwrapped()
    for line in lines:
        f = line.split()
        if f[:1] == [Line.TIME]:
            number += 1
        if f[:1] == [Line.CORES]:
            first, *values = _numbers(f, line)
            if not values or len(values) % 4:
                raise _not_a_trace(line)
            parts = []
            for i in range(0, len(values), 4):
                begin, arrived, end = (unwrapped(v) for v in values[i : i + 3])
                if not begin <= arrived <= end:
                    raise _not_a_trace(line)
                parts.append(Part(first + i // 4, begin, arrived, end, values[i + 3]))
            controller = controller or len(parts)
            layer = None if f[2] == _OUTSIDE else int(f[2])
            if first == controller and layer is not None:
                attended += parts
            else:
                ops.append(Op(number, f[1], layer, f[3], tuple(parts)))
        if f[:1] == [Line.SPANS]:
            core, *values = _numbers(f, line)
            if f[3] == _LOST and len(values) == 1:
                lost += values[0]
            elif f[3] in _UNITS and len(values) == 2:
                begin, end = map(unwrapped, values)
                if begin > end:
                    raise _not_a_trace(line)
                spans.append(Span(_UNITS[f[3]], core, begin, end))
            else:
                raise _not_a_trace(line)
    if not ops:
        return None
    return Trace(tuple(ops), controller, tuple(attended), tuple(spans), lost)


def _numbers(f: Sequence[str], line: str) -> list[int]:
    """Return the numbers of a line after its phase, layer and name."""
    phases = {phase.value for phase in Time}
    if len(f) < 6 or f[1] not in phases or not all(map(str.isdecimal, f[4:])):
        raise _not_a_trace(line)
    if f[2] != _OUTSIDE and not f[2].isdecimal():
        raise _not_a_trace(line)
    return [int(word) for word in f[4:]]


def _not_a_trace(line: str) -> RunFailed:
    return RunFailed(f"the program printed '{line}', which is no line of a trace.")
