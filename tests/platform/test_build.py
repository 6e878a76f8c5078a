"""make in a compiled directory: reproducible, incremental, and honest about failure."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from program import BOS, FIRST_BYTE, INPUT_WORDS, input_words, make_directory, sizes_for

from conftest import ENV, Built, need
from shrinkc.abi import INPUT_MAGIC
from shrinkc.build import PROGRAM, build_program
from shrinkc.build.make import OPTIONS
from shrinkc.core.errors import BadArtifact, BuildFailed, OutputError, ToolMissing, UsageError
from shrinkc.simulate import run_program
from shrinkc.targets import CHIPS, PROGRAMS, SIRACUSA, TARGETS, Target

END_CODE = 42  # selftest.c ends with it when the input's seed is that


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_same_bytes_in_another_directory(built: Built, tmp_path: Path, target: str) -> None:
    first = built(target) / PROGRAM[target]
    compiled = TARGETS[target] if target in CHIPS else SIRACUSA
    other = make_directory(tmp_path / "a longer name, with a space", target=compiled)
    # not out of the cache, which would not see what hangs on the folder alone
    second = build_program(other, target, env={**ENV, "CCACHE_DISABLE": "1"})
    assert second.read_bytes() == first.read_bytes()


def objects(out: Path) -> dict[str, int]:
    """Object file of the host program -> when it was compiled, ns."""
    folder = out / "build" / "host"
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.o")}


def test_second_build_compiles_nothing_and_options_recompile(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    build_program(out, "host", env=ENV)
    first = objects(out)
    own = ["port.c", "program.c"]
    host = [f"platform/host/{x}.o" for x in own]
    encoder = ["encode/llm_encode.c.o", "encode/tokenizer.S.o"]
    assert sorted(first) == ["blobs.S.o", *encoder, "model.c.o", *host]
    build_program(out, "host", env=ENV)
    assert objects(out) == first
    build_program(out, "host", env=ENV, options={"CORES": "2"})
    second = objects(out)
    assert second.keys() == first.keys() and all(second[name] > first[name] for name in first)


@pytest.mark.parametrize("changed", ["src/runtime/sc_platform.h", "blobs/l2.bin"])
def test_a_changed_file_is_noticed(tmp_path: Path, changed: str) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    build_program(out, "host", env=ENV)
    path = out / changed
    before = objects(out)
    path.write_bytes(path.read_bytes() + b"\n")
    build_program(out, "host", env=ENV)
    assert objects(out) != before


def test_stray_variables_do_not_change_the_program(built: Built, tmp_path: Path) -> None:
    out = make_directory(tmp_path / "out")
    plain = built("host") / PROGRAM["host"]
    stray = {**ENV, "CORES": "8", "SAN": "1", "OPT": "-O0", "MAKEFLAGS": "-n"}
    assert build_program(out, "host", env=stray).read_bytes() == plain.read_bytes()


def test_compiler_error_is_shown(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out", source="int sc_program(void) { return nonsense; }\n")
    with pytest.raises(BuildFailed, match="nonsense"):
        build_program(out, "host", env=ENV)


def test_program_that_overflows_l1_is_refused_by_the_linker(tmp_path: Path) -> None:
    need("siracusa")
    source = """
#include "program.h"
#include "sc_platform.h"
static SC_L1 uint8_t much[262144 - 9 * 1040 - 16 + SC_EXTRA];
int sc_program(void) {
    return much[sc_time() & 1023];
}
"""
    exact = make_directory(tmp_path / "exact", source=source.replace("SC_EXTRA", "0"))
    build_program(exact, "siracusa", env=ENV)
    over = make_directory(tmp_path / "over", source=source.replace("SC_EXTRA", "1"))
    with pytest.raises(BuildFailed, match=r"region .L1. overflowed"):
        build_program(over, "siracusa", env=ENV)


@pytest.mark.slow
@pytest.mark.parametrize("code", SIRACUSA.code)
def test_weights_that_overflow_what_code_leaves_are_refused_by_the_linker(
    tmp_path: Path, code: str
) -> None:
    """What the planner may fill is there, wherever the code lies, and hardly more."""
    need("siracusa")
    target = SIRACUSA.with_code(code)
    room = target.room("wmem")
    exact = make_directory(
        tmp_path / "exact", sizes={**sizes_for(target), "wmem": room}, target=target
    )
    build_program(exact, "siracusa", env=ENV)
    more = {**sizes_for(target), "wmem": room + 64}
    over = make_directory(tmp_path / "over", sizes=more, target=target)
    with pytest.raises(BuildFailed, match=r"region .WMEM. overflowed"):
        build_program(over, "siracusa", env=ENV)


def test_initialised_data_in_a_zeroed_section_is_refused(tmp_path: Path) -> None:
    need("siracusa")
    source = """
#include "program.h"
#include "sc_platform.h"
SC_L1 uint32_t lost = 7;
int sc_program(void) {
    return (int)lost;
}
"""
    out = make_directory(tmp_path / "out", source=source)
    with pytest.raises(BuildFailed, match="zero initializers"):
        build_program(out, "siracusa", env=ENV)


@pytest.mark.parametrize("chip", CHIPS)
def test_small_things_of_l1_are_in_the_global_pointer_s_reach(tmp_path: Path, chip: str) -> None:
    """An address is one instruction where it is less than 2 KiB from the global pointer: of variables, and of where the
    arena begins, however large that and others are."""
    need(chip)
    source = """
#include "program.h"
#include "sc_platform.h"
SC_L1_DATA const uint32_t layers[4] = {1, 2, 3, 4};
extern uint8_t arena[40000];
SC_L1_LARGE uint32_t images[2000];
SC_L1_ARENA(arena, 40000);
SC_L1 uint32_t variable[20];
int sc_program(void) {
    return arena[sc_time() & 7] + (int)images[1] + (int)variable[2] + (int)layers[sc_time() & 3];
}
"""
    out = make_directory(tmp_path / "out", source=source, target=TARGETS[chip])
    program = build_program(out, chip, env=ENV)
    done = subprocess.run(
        ["riscv64-unknown-elf-nm", program], capture_output=True, text=True, check=True
    )
    at = {f[2]: int(f[0], 16) for line in done.stdout.splitlines() if len(f := line.split()) == 3}
    pointer = at["__global_pointer$"]
    far = {n: at[n] - pointer for n in ("layers", "variable", "arena", "images")}
    assert -2048 <= far["layers"] < far["variable"] < far["arena"] < 2048
    assert far["arena"] + 40000 <= far["images"]
    code = subprocess.run(
        ["riscv64-unknown-elf-objdump", "-d", "--disassemble=sc_program", program],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "gp," in code and "<arena>" in code
    assert f"gp,{far['arena']}" in code


def test_no_floating_point_instruction(built: Built) -> None:
    objdump = shutil.which("riscv64-unknown-elf-objdump")
    if objdump is None:
        pytest.skip("riscv64-unknown-elf-objdump is not installed")
    program = built("siracusa") / PROGRAM["siracusa"]
    done = subprocess.run([objdump, "-d", program], capture_output=True, text=True, check=True)
    names = {f[2] for line in done.stdout.splitlines() if len(f := line.split("\t")) > 2}
    assert "lw" in names
    assert [n for n in names if n.startswith("f") and not n.startswith("fence")] == []


def test_directory_without_makefile(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="no Makefile"):
        build_program(tmp_path, "host", env=ENV)


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no program for target 'arm'"):
        build_program(tmp_path, "arm", env=ENV)


def test_missing_compiler_names_the_package(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed; apt-get install make")
    only_make = tmp_path / "bin"
    only_make.mkdir()
    (only_make / "make").symlink_to(make)
    out = make_directory(tmp_path / "out")
    with pytest.raises(ToolMissing, match="apt-get install gcc-riscv64-unknown-elf"):
        build_program(out, "rv32", env={"PATH": str(only_make)})


def run_make(
    out: Path, *arguments: str, env: Mapping[str, str] = ENV
) -> subprocess.CompletedProcess[str]:
    """make with a stand-in for shrinkc that prints its arguments, one a line."""
    stand_in = out / "shrinkc"
    stand_in.write_text(
        '#!/bin/sh\nfor a; do echo "<$a>"; done\n'
        'case "$*" in *"--on $ABSENT"*) exit 50;; *"--on $BROKEN"*) exit 60;; esac\n'
    )
    stand_in.chmod(0o755)
    return subprocess.run(
        ["make", "SHRINKC=./shrinkc", *arguments],
        cwd=out,
        env={"ABSENT": "-", "BROKEN": "-", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def few_tools(tmp_path: Path) -> dict[str, str]:
    """An environment where nothing is found but what building and running take: no Python."""
    names = ["make", "sh", "cc", "as", "ld", "mkdir", "mv", "rm", "cp", "cmp", "mktemp", "wc"]
    names += ["riscv64-unknown-elf-gcc", "riscv64-unknown-elf-objcopy", "qemu-riscv32"]
    (tmp_path / "few").mkdir()
    for name in names:
        found = shutil.which(name)
        if found is not None:
            (tmp_path / "few" / name).symlink_to(found)
    return {"PATH": str(tmp_path / "few")}


PROMPT = """"it's" $HOME $(X) """


@pytest.mark.parametrize("on", ["host", "qemu"])
def test_run_needs_no_python(tmp_path: Path, few_tools: dict[str, str], on: str) -> None:
    need(SIRACUSA.programs[on])
    out = make_directory(tmp_path / "out")
    asked = [f"PROMPT={PROMPT}", "TOKENS=3", "SEED=42", "TEMPERATURE=0.7", "TOP_P=0.9"]
    done = run_make(out, f"run-{on}", *asked, env=few_tools)
    words = [INPUT_MAGIC, 1 + len(PROMPT), 3, END_CODE, round(65536 / 0.7), round(65536 * 0.9)]
    words += [0] * 10 + [BOS, *(FIRST_BYTE + b for b in PROMPT.encode())]
    words += [0] * (INPUT_WORDS - len(words))
    given = [x for x in done.stdout.splitlines() if x.startswith("input")]
    assert given == [f"input {i} = {word}" for i, word in enumerate(words)]
    assert f"Error {END_CODE}" in done.stderr  # the program's own end, which SEED asked for


@pytest.mark.gvsoc
def test_run_on_gvsoc(tmp_path: Path) -> None:
    """The launcher is a Python program; shrinkc is what is not needed."""
    need("siracusa")
    out = make_directory(tmp_path / "out")
    done = run_make(out, "run-gvsoc", "IDS=5,6", "TOKENS=2", "STACKS=1")
    assert done.returncode == 0, done.stderr
    assert "input 16 = 5" in done.stdout and "input 17 = 6" in done.stdout
    assert "failed checks: 0" in done.stdout
    assert "platform: stack bytes used by core 8" in done.stdout


def test_run_is_built_with_the_options(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    compiler = out / "own-cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n')
    compiler.chmod(0o755)
    options = ["SAN=1", "CORES=3", "LAZY=1", "CC=./own-cc"]
    assert run_make(out, "run-host", "IDS=5", *options).returncode == 0
    assert b"__asan_init" in (out / PROGRAM["host"]).read_bytes()
    flags = (out / "build/host/flags").read_text()
    assert flags.startswith("./own-cc ") and "-DSC_CORES=3" in flags and "-DSC_LAZY_DMA" in flags


def test_check_passes_on_what_is_asked_and_how_it_is_built(tmp_path: Path) -> None:
    out = make_directory(tmp_path / "out")
    changed = {
        "OPT": "-O1 -g", "SAN": "1", "CORES": "8", "LAZY": "1", "STACKS": "1", "PROFILE": "1",
        "TRACE": "1",
        "CC": "gcc -m64", "CROSS": "other-",
    }  # fmt: skip
    assert set(changed) == set(OPTIONS)
    asked = [f"PROMPT={PROMPT}", "TOKENS=9", "SEED=4", "TEMPERATURE=0.5", "TOP_P=0.9"]
    done = run_make(out, "check", *asked, *(f"{k}={v}" for k, v in changed.items()))
    expected = ["run", ".", "--tokens", "9", "--temperature", "0.5", "--top-p", "0.9"]
    expected += ["--seed", "4", "--prompt", PROMPT]
    for name in OPTIONS:
        expected += ["--make", f"{name}={changed[name]}"]
    runs = "".join(f"<{x}>\n" for x in [*expected, "--on"])
    assert done.stdout == "".join(f"{runs}<{on}>\n" for on in SIRACUSA.programs)
    done = run_make(out, "check", "IDS=1,2")
    assert "<--prompt-ids>\n<1,2>\n" in done.stdout and "<--prompt>" not in done.stdout


def test_check_without_shrinkc_says_so(tmp_path: Path, few_tools: dict[str, str]) -> None:
    done = run_make(make_directory(tmp_path / "out"), "SHRINKC=shrinkc", "check", env=few_tools)
    assert done.returncode == 2
    assert "proving needs shrinkc" in done.stderr and "SHRINKC=" in done.stderr


@pytest.mark.parametrize("target", PROGRAMS.values(), ids=lambda t: t.program.name)
def test_machines_are_the_targets(tmp_path: Path, target: Target) -> None:
    """check runs on those of the target; the others are refused by name, and not linked for."""
    out = make_directory(tmp_path / "out", target=target)
    lines = run_make(out, "check").stdout.splitlines()
    runs = [lines[i + 1] for i, line in enumerate(lines) if line == "<--on>"]
    assert set(runs) == {f"<{on}>" for on in target.runs_on}
    for program, other in PROGRAMS.items():
        if program not in target.programs.values():
            goals = (
                [program] if other.machine in target.runs_on else [program, f"run-{other.machine}"]
            )
            for goal in goals:
                done = run_make(out, goal)
                assert done.returncode == 2
                where = program if other.machine in target.runs_on else other.machine
                name = "a board" if target.board else target.name
                assert f"compiled for {name} and does not run on" in done.stderr
                assert where in done.stderr and f" {other.asked}" in done.stderr
    assert not (out / "build").exists()


@pytest.mark.parametrize(
    ("absent", "broken", "code", "said"),
    [
        ("-", "-", 0, "<gvsoc>"),
        ("gvsoc", "-", 0, "check: gvsoc skipped"),
        ("-", "qemu", 2, "<qemu>"),
        ("", "-", 2, "check: nothing was run"),
    ],
    ids=["all run", "one absent", "one differs", "none there"],
)
def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, broken: str,
               code: int, said: str) -> None:  # fmt: skip
    need("siracusa")
    monkeypatch.setitem(ENV, "ABSENT", absent)
    monkeypatch.setitem(ENV, "BROKEN", broken)
    done = run_make(make_directory(tmp_path / "out"), "check")
    assert done.returncode == code
    assert said in done.stdout + done.stderr


@pytest.mark.slow
def test_builds_at_once(tmp_path: Path) -> None:
    """Of make called by hand, and of ours, from nothing and with a program that is there."""
    need("host")
    for attempt in range(3):
        out = make_directory(tmp_path / f"out{attempt}")
        makes = [subprocess.Popen(["make", "-j2", "host"], cwd=out, env=ENV) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            ours = [pool.submit(build_program, out, "host", env=ENV) for _ in range(3)]
            programs = [job.result() for job in ours]
        assert [make.wait() for make in makes] == [0, 0, 0]
        assert run_program(out, "host", input_words(), env=ENV, timeout_s=60).exit_code == 0
        assert set(programs) == {out / PROGRAM["host"]}
        assert {p.suffix for p in (out / "build/host").iterdir()} <= {"", ".o", ".d"}


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    program = build_program(out, "host", env=ENV)
    folders = [out, *(p for p in out.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        if os.access(out, os.W_OK):
            pytest.skip("this user may write everywhere (root)")
        assert build_program(out, "host", env=ENV) == program
        with pytest.raises(OutputError, match="cannot be built there"):
            build_program(out, "host", env=ENV, options={"CORES": "2"})
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_full_disk_is_not_the_compilers_fault(tmp_path: Path) -> None:
    out = make_directory(tmp_path / "out")
    (out / "Makefile").write_text("host:\n\t@echo 'as: x.o: No space left on device'; exit 1\n")
    with pytest.raises(OutputError, match="No space left"):
        build_program(out, "host", env=ENV)


def test_a_compiler_that_is_named_and_not_there(tmp_path: Path) -> None:
    need("rv32")
    out = make_directory(tmp_path / "out")
    for target, options, name in (
        ("host", {"CC": "no-such-cc -m64"}, "no-such-cc"),
        ("rv32", {"CROSS": "no-such-"}, "no-such-gcc"),
    ):
        with pytest.raises(ToolMissing, match=f"{name}, the compiler that"):
            build_program(out, target, env=ENV, options=options)


def test_default_goal_is_the_compiled_target(tmp_path: Path) -> None:
    need("siracusa")
    out = make_directory(tmp_path / "out")
    assert run_make(out).returncode == 0
    assert (out / PROGRAM["siracusa"]).is_file()
    assert not (out / PROGRAM["host"]).exists()
    assert run_make(out, "clean").returncode == 0
    assert not (out / "build").exists()
