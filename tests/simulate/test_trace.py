"""Traces: lines of a program, and the file for a viewer."""

from __future__ import annotations

import pytest

from helpers.trace_events import check_trace
from shrinkc.abi import Unit
from shrinkc.core.errors import RunFailed
from shrinkc.simulate.trace import Span, Trace, read_trace

# two workers and controller 2; a prefill of two layers, and a decode step
LINES = [
    "@P P - embed 2 200 180 100 0 0 0 95",
    "@S P - embed 0 1000 1080 1100 75 1002 1099 1100 90",
    "@S P 0 qkv 0 1130 1300 1310 160 1131 1280 1310 140",
    "@S P 1 qkv 0 1350 1450 1450 100 1350 1449 1450 90",
    "@S P 0 qkv 2 900 1200 1311 300",
    "@S P 1 qkv 2 1320 1400 1451 50",
    "@W P - dma 0 1140 1180",
    "@W P - dma 1 1160 1290",
    "@W P - dma 1 1110 1120",
    "@W P - dma 2 1015 1025",
    "@W P - hyperbus 1 1360 1370",
    "@W P - neureka 2 1290 1400",
    "@W P - lost 1 3",
    "@S P - next 2 5000 5060 5060 60",
    "@C P 2210",
    "@T 1 7 61",
    "@S D - embed 0 9000 9010 9020 10 9000 9020 9020 20",
    "@C D 40",
]


def trace(lines: list[str] = LINES) -> Trace:
    found = read_trace(lines)
    assert found is not None
    return found


def test_a_file_for_the_viewer() -> None:
    lanes = check_trace(trace().to_json())
    assert next(iter(lanes)) == ("model", "passes and layers")
    assert set(lanes) == {
        ("model", "passes and layers"),
        ("cluster", "worker 0"), ("cluster", "worker 1"), ("cluster", "controller"),
        ("units", "DMA"), ("units", "HyperBus"), ("units", "N-EUREKA"),
    }  # fmt: skip
    passes = [(s["name"], s["ts"], s["dur"]) for s in lanes["model", "passes and layers"]]
    assert passes == [
        ("prefill", 0, 440), ("layer 0", 100, 180), ("layer 1", 280, 100), ("decode step 1", 440, 20),
    ]  # fmt: skip


def test_operations_of_a_lane_take_the_cycles_of_its_core() -> None:
    lanes = check_trace(trace().to_json())
    for core, cycles in ((0, 100 + 180 + 100 + 20), (1, 98 + 179 + 100 + 20)):
        slices = [s for s in lanes["cluster", f"worker {core}"] if "active" in s["args"]]
        assert sum(s["dur"] for s in slices) == cycles
        assert [s["name"] for s in slices] == ["embed", "qkv", "qkv", "embed"]


def test_waits_are_inside_their_operation() -> None:
    lanes = check_trace(trace().to_json())
    worker = lanes["cluster", "worker 1"]
    inside = [(s["name"], s["ts"], s["dur"]) for s in worker if s["ts"] < 280 and s["args"] == {}]
    # not the wait from 1110 to 1120, between two ops; and not after the arrival at the barrier
    assert inside == [
        ("wait for the other cores", 99, 1),
        ("wait for DMA", 130, 120),
        ("wait for the other cores", 250, 30),
    ]


def test_the_controller_has_only_what_is_in_an_operation() -> None:
    lanes = check_trace(trace().to_json())
    slices = [(s["name"], s["ts"], s["dur"]) for s in lanes["cluster", "controller"]]
    assert slices == [
        ("wait for DMA", 15, 10),
        ("qkv", 100, 180), ("wait for the other cores", 170, 110),
        ("qkv", 280, 100), ("wait for the other cores", 330, 50),
        ("next", 380, 60),
    ]  # fmt: skip


def test_units() -> None:
    lanes = check_trace(trace().to_json())
    spans = {lane: [(s["ts"], s["dur"]) for s in found] for (_, lane), found in lanes.items()}
    assert spans["DMA"] == [(15, 10), (110, 140)]  # two waits at the same time are one slice
    assert spans["HyperBus"] == [(290, 10)]
    assert spans["N-EUREKA"] == [(260, 70)]  # without the 40 cycles between two ops


def test_lost_waits_are_said() -> None:
    assert trace().lost == 3
    assert trace().to_json()["otherData"] == {"unit": "1 microsecond is 1 cycle", "lost_spans": 3}
    assert trace().lines() == ["note: the trace lacks 3 waits, which the program had no memory for"]
    assert trace(LINES[:4]).lines() == []


def test_clocks_begin_at_0_again() -> None:
    end = 1 << 32
    found = trace(
        [
            f"@S P - embed 0 {end - 10} {end - 2} 5 9",
            "@S P 0 qkv 0 20 30 40 9",
            "@W P - dma 0 22 24",
        ]
    )
    assert [(op.begin, op.end) for op in found.ops] == [(end - 10, end + 5), (end + 20, end + 40)]
    assert found.spans == (Span(Unit.DMA, 0, end + 22, end + 24),)


def test_a_run_without_a_trace() -> None:
    assert read_trace(["@P P - embed 2 200 180 100 0 0 0 95", "@T 1 7 61", ""]) is None


@pytest.mark.parametrize(
    "line",
    [
        "@S P - embed 0 1000 1080 1100",
        "@S P - embed 0",
        "@S X - embed 0 1000 1080 1100 75",
        "@S P x embed 0 1000 1080 1100 75",
        "@S P - embed 0 1000 -1080 1100 75",
        "@S P - embed 0 1000 1200 1100 75",
        "@W P - dma 0 1140",
        "@W P - dma 0 1180 1140",
        "@W P - disk 0 1140 1180",
        "@W P - lost 0",
    ],
)
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises(RunFailed, match="is no line of a trace"):
        read_trace([*LINES[:4], line])
