"""Lines of a profile, read and added up."""

from __future__ import annotations

import pytest

from shrinkc.core.errors import RunFailed
from shrinkc.simulate.profile import Counts, Profile, read_profile

# two layers of two ops, an op outside, one op of the controller alone; two decode steps
LINES = [
    "@P P - embed 8 800 720 400 80 40 5 95",
    "@P P 0 qkv 8 8000 6400 3200 800 400 100 900",
    "@P P 1 qkv 8 8000 6400 3200 800 400 100 900",
    "@P P - next 1 100 60 50 4 6 0 60",
    "@C P 2210",
    "@T 1 7 61",
    "@P D - embed 8 80 72 40 8 4 0 12",
    "@P D 0 qkv 8 800 640 320 80 40 10 90",
    "@P D 1 qkv 8 1600 640 320 80 40 10 90",
    "@P D - next 1 10 6 5 0 1 0 6",
    "@P D - embed 8 240 72 40 8 4 0 12",
    "@P D 0 qkv 8 1600 640 320 80 40 20 110",
    "@P D 1 qkv 8 2400 640 320 80 40 10 90",
    "@P D - next 1 30 6 5 0 1 0 6",
]


def profile(lines: list[str] = LINES) -> Profile:
    found = read_profile(lines, 2210, [340, 580])
    assert found is not None
    return found


def test_sums_of_cores_become_those_of_the_mean_core() -> None:
    """Waits for transfers and the busiest core are of one core already."""
    counts = profile().prefill.counts
    assert list(counts) == [(None, "embed"), (0, "qkv"), (1, "qkv"), (None, "next")]
    qkv = counts[0, "qkv"]
    assert qkv == Counts(1000, 800, 400, 100, 50, transfers=100, busiest=900)
    assert qkv.barrier == 1000 - 800 - 100
    assert counts[None, "next"] == Counts(100, 60, 50, 4, 6, transfers=0, busiest=60)


def test_decode_is_the_mean_step() -> None:
    decode = profile().decode
    assert decode is not None and (decode.steps, decode.cycles) == (2, 460)
    assert decode.counts[0, "qkv"] == Counts(150, 80, 40, 10, 5, transfers=15, busiest=100)
    assert list(decode.ops) == ["embed", "qkv", "next"]
    assert decode.ops["qkv"].elapsed == 150 + 250
    assert decode.total.elapsed == 20 + 400 + 20


def test_waits_are_never_less_than_none() -> None:
    """A core may wait for a transfer while the others work."""
    assert Counts(100, 95, transfers=30).barrier == 0


def test_chunks_of_a_prefill_are_added() -> None:
    twice = profile([*LINES[:3], *LINES])
    assert twice.prefill.counts[1, "qkv"].elapsed == 2000
    assert twice.prefill.counts[None, "next"].elapsed == 100


def test_the_table() -> None:
    lines = profile().lines()
    assert lines[0] == "profile of the prefill: 2200 of 2210 cycles are in operations"
    assert lines[1].split() == [
        "cycles", "share", "instr.", "load-use", "icache", "barrier", "transfer", "load", "imbalance",
    ]  # fmt: skip
    assert lines[3].split() == [
        "qkv",
        "2000",
        "90.9",
        "%",
        "800",
        "200",
        "100",
        "200",
        "200",
        "1.12",
    ]
    assert lines[6] == "profile of a decode step, mean of 2: 440 of 460 cycles are in operations"
    assert lines[-1].split()[:4] == ["all", "440", "100.0", "%"]
    assert len({len(line) for line in lines if not line.startswith("profile")}) == 1


def test_predicted_beside_measured() -> None:
    beside = profile().with_predictions({"embed": 110, "qkv": 1000}, {"qkv": 420, "next": 20})
    lines = [line.split() for line in beside.lines()]
    assert lines[1][:4] == ["cycles", "predicted", "off", "share"]
    assert lines[2][:5] == ["embed", "100", "110", "+10.0", "%"]
    assert lines[3][:5] == ["qkv", "2000", "1000", "-50.0", "%"]
    assert lines[4][:4] == ["next", "100", "-", "-"]  # nothing is known of it
    assert lines[-1][:5] == ["all", "440", "440", "+0.0", "%"]
    assert len({len(line) for line in beside.lines() if not line.startswith("profile")}) == 1
    found = beside.to_json()["prefill"]
    assert isinstance(found, dict) and found["predicted"] == 1110
    assert [row["predicted"] for row in found["ops"]] == [110, 1000, None]


def test_for_programs() -> None:
    found = profile().to_json()["decode"]
    assert isinstance(found, dict)
    assert (found["steps"], found["cycles"], found["counted"]) == (2, 460, 440)
    assert [row["op"] for row in found["ops"]] == ["embed", "qkv", "next"]
    assert [(row["layer"], row["op"]) for row in found["layers"]] == [(0, "qkv"), (1, "qkv")]
    assert found["layers"][0] == {
        "layer": 0, "op": "qkv", "cycles": 150, "active": 80, "instructions": 40, "load_stalls": 10,
        "icache": 5, "transfers": 15, "barrier": 55, "load_imbalance": 1.25,
    }  # fmt: skip


def test_without_decode_steps() -> None:
    found = read_profile(LINES[:5], 2210, [])
    assert found is not None and found.decode is None
    assert found.to_json()["decode"] is None and len(found.lines()) == 6


def test_a_run_without_a_profile() -> None:
    assert read_profile(["@T 1 7 61", "", "@C P 9"], 9, []) is None
    assert read_profile([], None, []) is None


@pytest.mark.parametrize(
    "line",
    [
        "@P P 0 qkv 8 8000 6400",
        "@P X 0 qkv 8 8000 6400 3200 800 400 100 900",
        "@P P x qkv 8 8000 6400 3200 800 400 100 900",
        "@P P 0 qkv 8 8000 -400 3200 800 400 100 900",
        "@P P 0 qkv 0 8000 6400 3200 800 400 100 900",
        "@P P 0 qkv 8 8000 6400 3200 800 400 100 900 1",
    ],
)
def test_a_line_that_is_none(line: str) -> None:
    with pytest.raises(RunFailed, match="is no line of a profile"):
        read_profile([line], 1, [])
