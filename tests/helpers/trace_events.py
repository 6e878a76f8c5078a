"""Rules of the Trace Event Format, for what ``shrinkc run --trace`` writes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Lanes = dict[tuple[str, str], list[dict[str, Any]]]


def check_trace(found: dict[str, Any]) -> Lanes:
    """The slices of each lane by the names of process and lane; what holds for every file holds for this one."""
    assert found.keys() >= {"traceEvents", "displayTimeUnit"}
    events = found["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    names = {
        (e["pid"], e["tid"]): (processes[e["pid"]], e["args"]["name"])
        for e in events
        if e["name"] == "thread_name"
    }
    assert len(set(names.values())) == len(names)
    slices = [e for e in events if e["ph"] == "X"]
    assert [e["ts"] for e in slices] == sorted(e["ts"] for e in slices)
    lanes: Lanes = defaultdict(list)
    for e in slices:
        assert e["dur"] >= 0 and e["ts"] >= 0 and e["name"]
        lanes[names[e["pid"], e["tid"]]].append(e)
    assert set(lanes) == set(names.values())
    for lane, inside in lanes.items():
        ends: list[int] = []
        for e in inside:
            while ends and ends[-1] <= e["ts"]:
                ends.pop()
            assert not ends or e["ts"] + e["dur"] <= ends[-1], (lane, e)
            ends.append(e["ts"] + e["dur"])
    return dict(lanes)
