"""``shrinkc run`` with drafts (``--prompt-lookup``), a profile, or stacks that are measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.trace_events import check_trace
from shrinkc.targets import SIRACUSA, TARGETS

from .conftest import Cli

Needs = Callable[..., None]


@pytest.mark.gvsoc
def test_stacks_are_reported(cli: Cli, program: Path, needs: Needs) -> None:
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    options = ["--on", "gvsoc", "--prompt", "x", "--tokens", 2]
    assert "stack bytes" not in cli("run", program, *options).err
    result = cli("run", program, *options, "--make", "STACKS=1", "--json")
    assert result.code == 0 and result.json["verdict"]["mismatched"] == 0
    for core in range(9):
        assert f"platform: stack bytes used by core {core}: 0x" in result.words


@pytest.mark.gvsoc
def test_profile(cli: Cli, program: Path, needs: Needs) -> None:
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    options = ["--on", "gvsoc", "--prompt", "x", "--tokens", 3, "--ignore-eos", "--json"]
    plain = cli("run", program, *options)
    assert plain.code == 0 and plain.json["profile"] is None and "profile" not in plain.err
    files = {
        p: p.read_bytes() for p in program.rglob("*") if "build" not in p.parts and p.is_file()
    }
    result = cli("run", program, *options, "--profile")
    assert result.code == 0 and result.json["verdict"]["mismatched"] == 0
    assert result.json["new_tokens"] == plain.json["new_tokens"]
    profile = result.json["profile"]
    assert profile["decode"]["steps"] == 2
    for phase in ("prefill", "decode"):
        assert {row["op"] for row in profile[phase]["ops"]} >= {"embed", "qkv", "attn", "next"}
        # a pass takes some 850 cycles between its ops and those of the next one, whatever the model; by where
        # the linker had put code it was 1,016 once
        outside = profile[phase]["cycles"] - profile[phase]["counted"]
        assert 0 < outside < 1200 * (1 if phase == "decode" else 3)
    assert json.loads((program / "build/profile.json").read_text()) == result.json
    report = cli("report", program, "-o", program.parent / "report.html", "--json").json["verdict"]
    assert (report["measured_phase"], report["measured_cycles"]) == (
        "decode", profile["decode"]["cycles"],
    )  # fmt: skip
    assert report["compared"] == result.json["verdict"]["compared"] > 0
    assert "profile of the prefill: " in result.err
    assert "profile of a decode step, mean of 2: " in result.err
    assert {p: p.read_bytes() for p in files} == files
    text = cli("run", program, *options[:-1], "--profile", "--no-verify")
    assert text.code == 0 and "@P" not in text.out and "profile of the prefill: " in text.err


def test_lookup(cli: Cli, compiled: Path, needs: Needs) -> None:
    """The same run, its drafts counted; plain runs say nothing of drafts."""
    needs("cc", "make")
    options = ["--prompt-ids", "1,40,41,42,40,41,42,40", "--tokens", 16, "--ignore-eos"]
    plain = cli("run", compiled, *options, "--json")
    result = cli("run", compiled, *options, "--prompt-lookup", 3, "--json")
    assert plain.code == result.code == 0
    assert plain.json["prompt_lookup"] is None and "lookup" not in plain.err
    for key in ("prompt_tokens", "new_tokens", "text", "verdict"):
        assert result.json[key] == plain.json[key]
    said = result.json["prompt_lookup"]
    assert said.keys() == {"passes", "drafted", "accepted", "tokens_per_pass"}
    assert said["passes"] + said["accepted"] == 15  # the prefill gives the other token
    assert 0 < said["accepted"] <= said["drafted"] <= 3 * said["passes"]
    assert said["tokens_per_pass"] == pytest.approx(15 / said["passes"], abs=0.001)
    assert (
        f"prompt lookup: {15 / said['passes']:.2f} tokens per forward pass ({said['passes']} passes), "
        f"{said['accepted']} of {said['drafted']} drafted tokens accepted"
    ) in result.words
    told = [cli("run", compiled, *options, *look) for look in ([], ["--prompt-lookup", 8])]
    assert told[0].out == told[1].out != ""


@pytest.mark.gvsoc
def test_lookup_on_gvsoc(cli: Cli, program: Path, needs: Needs) -> None:
    """Cycles are those of passes, and a profile's too; what was drafted is verified."""
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    options = ["--on", "gvsoc", "--prompt-ids", "1,40,41,42,40,41,42,40", "--tokens", 12]
    options += ["--ignore-eos", "--prompt-lookup", 4, "--json"]
    for more in ([], ["--profile"]):
        result = cli("run", program, *options, *more)
        assert result.code == 0 and result.json["verdict"]["mismatched"] == 0
        passes = result.json["prompt_lookup"]["passes"]
        decode = result.json["cycles"]["decode"]
        assert len(decode) == passes < 11 and min(decode) > 0
        assert f"decode {sum(decode) / 11:,.0f} cycles per token" in result.err
    decode = result.json["profile"]["decode"]
    assert decode["steps"] == passes
    # a pass begins and ends outside of the counted operations, which takes the same time for every model
    assert 0 <= decode["cycles"] - decode["counted"] < 1500


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt-lookup", 0], "--prompt-lookup 0 is not possible. Hint: allowed: 1 to 8 tokens"),
        (["--prompt-lookup", 9], "--prompt-lookup 9 is not possible. Hint: allowed: 1 to 8 tokens"),
        (
            ["--prompt-lookup", 2, "--temperature", 0.5],
            "--prompt-lookup is not possible with --temperature 0.5",
        ),
    ],
)
def test_lookup_refused(cli: Cli, compiled: Path, options: list[object], said: str) -> None:
    result = cli("run", compiled, "--prompt", "a", *options)
    assert (result.code, result.out) == (2, "")
    assert said in result.words


def test_lookup_needs_room(cli: Cli, program: Path) -> None:
    plan = json.loads((program / "plan.json").read_text())
    assert plan["verified"] > 1
    (program / "plan.json").write_text(json.dumps({**plan, "verified": 1}))
    result = cli("run", program, "--prompt", "a", "--prompt-lookup", 2)
    assert (result.code, result.out) == (2, "")
    assert "no memory to verify drafted tokens" in result.words and "--l1" in result.words
    (program / "plan.json").write_text("{}")
    result = cli("run", program, "--prompt", "a", "--prompt-lookup", 2)
    assert result.code == 61 and "plan.json" in result.words


def test_a_program_from_before_there_was_lookup(cli: Cli, program: Path, needs: Needs) -> None:
    needs("cc", "make")
    main = program / "src/program/program.c"
    text = main.read_text()
    assert text.count("lookup = in[SC_IN_LOOKUP]") == 1
    main.write_text(text.replace("lookup = in[SC_IN_LOOKUP]", "lookup = 0"))
    result = cli(
        "run", program, "--prompt", "a", "--tokens", 4, "--ignore-eos", "--prompt-lookup", 2
    )
    assert result.code == 61
    assert (
        "cannot use --prompt-lookup" in result.words and "compile the model again" in result.words
    )


@pytest.mark.parametrize("machine", ["host", "qemu"])
def test_profile_is_for_gvsoc(cli: Cli, compiled: Path, machine: str) -> None:
    result = cli("run", compiled, "--on", machine, "--profile")
    assert (result.code, result.out) == (2, "")
    assert f"--profile is not possible on {machine}" in result.words
    assert "add --on gvsoc" in result.words


@pytest.mark.parametrize("machine", ["host", "qemu"])
def test_trace_is_for_gvsoc(cli: Cli, compiled: Path, tmp_path: Path, machine: str) -> None:
    file = tmp_path / "trace.json"
    result = cli("run", compiled, "--on", machine, "--trace", file)
    assert (result.code, result.out) == (2, "")
    assert f"--trace is not possible on {machine}" in result.words
    assert "add --on gvsoc, or leave --trace out" in result.words
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-verify"], "is not possible on host: only the simulator gvsoc counts cycles"),
        (["--on", "gvsoc"], "is not possible with verification, whose output takes time"),
        (
            ["--on", "gvsoc", "--no-verify", "--profile"],
            "is not possible with --profile or --trace",
        ),
    ],
)
def test_hook_interval_refused(cli: Cli, compiled: Path, options: list[object], said: str) -> None:
    result = cli("run", compiled, "--hook-interval", *options)
    assert (result.code, result.out) == (2, "")
    assert f"--hook-interval {said}" in result.words


@pytest.mark.gvsoc
def test_hook_interval(cli: Cli, program: Path, needs: Needs) -> None:
    """The prefill is the longest pass; the hook is called in each of its layers."""
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    options = ["--on", "gvsoc", "--prompt", "x", "--tokens", 3, "--ignore-eos", "--no-verify"]
    result = cli("run", program, *options, "--hook-interval", "--json")
    assert result.code == 0
    passes = [result.json["cycles"]["prefill"], *result.json["cycles"]["decode"]]
    assert 0 < result.json["hook_interval"] <= max(passes)
    line = (
        f"longest time between two calls of the layer hook: {result.json['hook_interval']:,} cycles"
    )
    assert line in result.words
    assert cli("run", program, *options, "--json").json["hook_interval"] is None


def test_a_trace_needs_a_place(cli: Cli, compiled: Path, tmp_path: Path) -> None:
    result = cli("run", compiled, "--on", "gvsoc", "--trace", tmp_path)
    assert result.code == 40 and str(tmp_path) in result.words


def test_trace_needs_counters(
    cli: Cli, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(SIRACUSA, program=replace(SIRACUSA.program, options={}))
    monkeypatch.setitem(TARGETS, "siracusa", without)
    result = cli("run", compiled, "--on", "gvsoc", "--trace", tmp_path / "trace.json")
    assert (result.code, result.out) == (2, "")
    assert "--trace is not possible: programs for siracusa cannot count" in result.words


@pytest.mark.gvsoc
def test_trace(cli: Cli, program: Path, tmp_path: Path, needs: Needs) -> None:
    """The workers' operations add up to the cycles of the same run's profile."""
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    file = tmp_path / "trace.json"
    options = ["--on", "gvsoc", "--prompt", "x", "--tokens", 3, "--ignore-eos", "--json"]
    result = cli("run", program, *options, "--trace", file)
    assert result.code == 0 and result.json["verdict"]["mismatched"] == 0
    found = json.loads(file.read_text())
    lanes = check_trace(found)
    assert {("cluster", f"worker {core}") for core in range(8)} < lanes.keys()
    passes = [s["name"] for s in lanes["model", "passes and layers"] if "pass" in s["args"]]
    assert passes == ["prefill", "decode step 1", "decode step 2"]
    profile = result.json["profile"]
    cycles = profile["prefill"]["counted"] + 2 * profile["decode"]["counted"]
    ops = [
        slice_["dur"] / (1 if slice_["name"] == "next" else 8)
        for (process, _), slices in lanes.items()
        for slice_ in slices
        if process == "cluster" and "active" in slice_["args"]
        if slice_["tid"] < 8 or slice_["name"] == "next"
    ]
    assert sum(ops) == pytest.approx(cycles, abs=1)
    assert found["otherData"]["lost_spans"] == 0


def test_profile_needs_counters(cli: Cli, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(SIRACUSA, program=replace(SIRACUSA.program, options={}))
    monkeypatch.setitem(TARGETS, "siracusa", without)
    result = cli("run", compiled, "--on", "gvsoc", "--profile")
    assert (result.code, result.out) == (2, "")
    assert "programs for siracusa cannot count cycles" in result.words


@pytest.mark.gvsoc
def test_a_program_from_before_there_were_profiles(cli: Cli, program: Path, needs: Needs) -> None:
    needs("make", "riscv64-unknown-elf-gcc", "gvsoc")
    makefile = (program / "Makefile").read_text()
    assert "-DSC_PROFILE" in makefile
    (program / "Makefile").write_text(makefile.replace("-DSC_PROFILE", ""))
    result = cli("run", program, "--on", "gvsoc", "--prompt", "x", "--tokens", 2, "--profile")
    assert result.code == 61
    assert "cannot be profiled" in result.words and "compile the model again" in result.words
