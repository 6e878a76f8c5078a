"""The same self-test on every platform: all checks pass and the lines agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from program import INPUT_WORDS, input_words, make_directory, pattern

from conftest import ENV, Built, need
from shrinkc.build import build_program
from shrinkc.core.errors import RunFailed
from shrinkc.simulate import RunOutput, run_program
from shrinkc.targets import CHIPS, SIRACUSA, TARGETS

VARIANTS = [
    pytest.param("host", {}, id="host"),
    pytest.param("host", {"CORES": "8"}, id="host-8-threads"),
    pytest.param(
        "host", {"LAZY": "1", "SAN": "1"}, id="host-lazy-asan-ubsan", marks=pytest.mark.slow
    ),
    pytest.param(
        "host",
        {"CORES": "8", "LAZY": "1", "SAN": "1"},
        id="host-8-lazy-asan-ubsan",
        marks=pytest.mark.slow,
    ),
    pytest.param("host", {"CORES": "8", "SAN": "thread"}, id="host-8-tsan", marks=pytest.mark.slow),
    pytest.param("qemu", {}, id="qemu"),
    pytest.param("qemu", {"OPT": "-Os"}, id="qemu-Os"),
    pytest.param("gvsoc", {}, id="gvsoc", marks=pytest.mark.gvsoc),
    pytest.param("gvsoc", {"OPT": "-Os", "STACKS": "1"}, id="gvsoc-Os", marks=pytest.mark.gvsoc),
]
GVSOC = pytest.param("gvsoc", marks=pytest.mark.gvsoc)
MACHINES = ("host", "qemu", GVSOC)
CHECKS, WMEM_CHECKS = 19, 2
END_CODE, END_TRAP, END_STACK, END_HANG, END_EARLY_USE = 42, 1001, 1002, 1003, 1004


def run(out: Path, on: str, end: int = 0, timeout_s: float = 90) -> RunOutput:
    return run_program(out, on, input_words(end), env=ENV, timeout_s=timeout_s)


def run_on_chip(built: Built, name: str, end: int = 0, **options: str) -> RunOutput:
    """As :func:`run`, of the program of any chip."""
    out, target = built(name, **options), TARGETS[name]
    return run_program(out, "gvsoc", input_words(end), env=ENV, timeout_s=90, target=target)


_plain_runs: dict[tuple[Path, str], RunOutput] = {}


def plain_run(out: Path, on: str) -> RunOutput:
    """A run that ends well, made once for all tests that look at its output."""
    if (out, on) not in _plain_runs:
        _plain_runs[out, on] = run(out, on)
    return _plain_runs[out, on]


def common_lines(output: RunOutput) -> list[str]:
    """Without the lines that may differ between targets."""
    return [x for x in output.lines if not re.match(r"time |cycles |platform: stack bytes", x)]


@pytest.mark.parametrize(("on", "options"), VARIANTS)
def test_selftest_passes(built: Built, on: str, options: dict[str, str]) -> None:
    output = plain_run(built(SIRACUSA.programs[on], **options), on)
    assert [x for x in output.lines if x.startswith("FAIL")] == []
    assert sum(x.startswith("ok ") for x in output.lines) == CHECKS
    assert output.exit_code == 0
    assert output.errors == []
    assert "failed checks: 0" in output.lines


@pytest.mark.parametrize("on", ["qemu", GVSOC])
def test_lines_are_those_of_the_host(built: Built, on: str) -> None:
    host = common_lines(plain_run(built("host"), "host"))
    assert len(host) > INPUT_WORDS + CHECKS
    assert common_lines(plain_run(built(SIRACUSA.programs[on]), on)) == host


def test_console_keeps_every_byte(built: Built) -> None:
    lines = plain_run(built("host"), "host").lines
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    assert (alphabet * 116)[:3000] in lines
    at = lines.index("in pieces, café")
    assert lines[at + 1] == ""


def test_input_arrives(built: Built) -> None:
    words = input_words()
    expected = [f"input {i} = {word}" for i, word in enumerate(words)]
    lines = plain_run(built("host"), "host").lines
    assert [x for x in lines if x.startswith("input")] == expected


@pytest.mark.parametrize("on", MACHINES)
def test_short_input_is_followed_by_zeros(built: Built, on: str) -> None:
    out = built(SIRACUSA.programs[on])
    lines = run_program(out, on, input_words()[:20], env=ENV, timeout_s=90).lines
    assert f"input {INPUT_WORDS - 1} = 0" in lines


@pytest.mark.slow
def test_time_grows_on_the_soc(built: Built) -> None:
    assert "time 0 sane" in plain_run(built("siracusa"), "gvsoc").lines


@pytest.mark.parametrize("on", MACHINES)
def test_exit_code_is_the_programs(built: Built, on: str) -> None:
    output = run(built(SIRACUSA.programs[on]), on, END_CODE)
    assert output.exit_code == END_CODE
    assert output.lines[-1] == "failed checks: 0"


@pytest.mark.parametrize("on", MACHINES)
def test_illegal_instruction_is_reported(built: Built, on: str) -> None:
    with pytest.raises(RunFailed, match=r"trap on hart 0x00000008|SIGILL|SIGTRAP"):
        run(built(SIRACUSA.programs[on]), on, END_TRAP)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
def test_stack_overflow_is_noticed(built: Built, name: str) -> None:
    with pytest.raises(RunFailed, match="stack overflow on core 1"):
        run_on_chip(built, name, END_STACK)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_keeps_what_the_header_promises(built: Built, name: str) -> None:
    output = run_on_chip(built, name, STACKS="1")
    assert [x for x in output.lines if x.startswith("FAIL")] == []
    lacking = 0 if TARGETS[name].has("wmem") else WMEM_CHECKS
    assert sum(x.startswith("ok ") for x in output.lines) == CHECKS - lacking
    assert (output.exit_code, output.errors) == (0, [])
    assert "time 0 sane" in output.lines
    assert any(x.startswith("platform: stack bytes used by core 8") for x in output.lines)


@pytest.mark.gvsoc
@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_says_how_it_ended(built: Built, name: str) -> None:
    assert run_on_chip(built, name, END_CODE).exit_code == END_CODE
    with pytest.raises(RunFailed, match="trap on hart 0x00000008"):
        run_on_chip(built, name, END_TRAP)


@pytest.mark.slow
@pytest.mark.parametrize("on", MACHINES)
def test_hang_is_ended_and_shows_the_last_line(built: Built, on: str) -> None:
    limit = 20 if on == "gvsoc" else 2
    with pytest.raises(RunFailed, match=f"did not end within {limit} s(.|\n)*hanging"):
        run(built(SIRACUSA.programs[on]), on, END_HANG, timeout_s=limit)


def test_lazy_transfers_show_use_before_wait(built: Built) -> None:
    eager = run(built("host"), "host", END_EARLY_USE)
    lazy = run(built("host", LAZY="1", SAN="1"), "host", END_EARLY_USE)
    assert (eager.exit_code, lazy.exit_code) == (0, 1)
    assert any(x.startswith("FAIL bytes used before the wait") for x in lazy.lines)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "no input words"),
        ([*input_words(), 1], "more input words"),
    ],
    ids=["empty", "too long"],
)
@pytest.mark.parametrize("on", ["host", "qemu"])
def test_bad_input_is_refused(built: Built, on: str, content: list[int], reason: str) -> None:
    with pytest.raises(RunFailed, match=reason):
        run_program(built(SIRACUSA.programs[on]), on, content, env=ENV, timeout_s=30)


@pytest.mark.parametrize("on", MACHINES)
def test_empty_blobs_link_and_run(tmp_path: Path, on: str) -> None:
    need(SIRACUSA.programs[on])
    source = """
#include "program.h"
#include "sc_platform.h"
int sc_program(void) {
    sc_write("up\\n", 3);
    return sc_blob_wmem[0] + sc_blob_l2[0];
}
"""
    out = make_directory(tmp_path / "out", sizes={"wmem": 0, "l2": 0, "flash": 0}, source=source)
    build_program(out, SIRACUSA.programs[on], env=ENV)
    output = run(out, on)
    assert (output.lines, output.exit_code) == (["up"], 0)


@pytest.mark.slow
def test_full_weight_memory_loads(tmp_path: Path) -> None:
    need("siracusa")
    size = SIRACUSA.room("wmem")  # hot code and a word for the hardware are taken off
    source = f"""
#include "program.h"
#include "sc_platform.h"
int sc_program(void) {{
    return sc_blob_wmem[{size - 1}] == {pattern(1, size)[-1]} ? 0 : 9;
}}
"""
    out = make_directory(tmp_path / "out", sizes={"wmem": size, "l2": 4, "flash": 0}, source=source)
    build_program(out, "siracusa", env=ENV)
    assert run(out, "gvsoc").exit_code == 0
