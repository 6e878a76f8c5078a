"""make in a compiled directory: reproducible, incremental, and honest about failure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from program import make_directory

from conftest import ENV, Built, need
from shrinkc.build import PROGRAM, build_program
from shrinkc.core.errors import BadArtifact, BuildFailed, ToolMissing, UsageError


@pytest.mark.parametrize("target", sorted(PROGRAM))
def test_same_bytes_in_another_directory(built: Built, tmp_path: Path, target: str) -> None:
    first = built(target) / PROGRAM[target]
    other = make_directory(tmp_path / "a longer name, with a space")
    second = build_program(other, target, env=ENV)
    assert second.read_bytes() == first.read_bytes()


def test_second_build_compiles_nothing_and_options_recompile(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    seen: list[str] = []
    build_program(out, "host", env=ENV, progress=seen.append)
    assert sorted(seen) == ["src/blobs.S", "src/model.c", "src/platform/host/platform.c"]
    seen.clear()
    build_program(out, "host", env=ENV, progress=seen.append)
    assert seen == []
    build_program(out, "host", env=ENV, options={"CORES": "2"}, progress=seen.append)
    assert len(seen) == 3


@pytest.mark.parametrize("changed", ["src/runtime/sc_platform.h", "blobs/l2.bin"])
def test_a_changed_file_is_noticed(tmp_path: Path, changed: str) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    build_program(out, "host", env=ENV)
    path = out / changed
    path.write_bytes(path.read_bytes() + b"\n")
    seen: list[str] = []
    build_program(out, "host", env=ENV, progress=seen.append)
    assert seen != []


def test_stray_variables_do_not_change_the_program(built: Built, tmp_path: Path) -> None:
    out = make_directory(tmp_path / "out")
    plain = built("host") / PROGRAM["host"]
    stray = {**ENV, "CORES": "8", "SAN": "1", "OPT": "-O0", "MAKEFLAGS": "-n"}
    assert build_program(out, "host", env=stray).read_bytes() == plain.read_bytes()


def test_compiler_error_is_shown(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out", source="int sc_main(void) { return nonsense; }\n")
    with pytest.raises(BuildFailed, match="nonsense"):
        build_program(out, "host", env=ENV)


def test_program_that_overflows_l1_is_refused_by_the_linker(tmp_path: Path) -> None:
    need("siracusa")
    source = """
#include "sc_platform.h"
static SC_L1 uint8_t much[262144 - 9 * 1040 - 16 + SC_EXTRA];
int sc_main(void) {
    return much[sc_time() & 1023];
}
"""
    exact = make_directory(tmp_path / "exact", source=source.replace("SC_EXTRA", "0"))
    build_program(exact, "siracusa", env=ENV)
    over = make_directory(tmp_path / "over", source=source.replace("SC_EXTRA", "1"))
    with pytest.raises(BuildFailed, match=r"region .L1. overflowed"):
        build_program(over, "siracusa", env=ENV)


def test_initialised_data_in_a_zeroed_section_is_refused(tmp_path: Path) -> None:
    need("siracusa")
    source = """
#include "sc_platform.h"
SC_L1 uint32_t lost = 7;
int sc_main(void) {
    return (int)lost;
}
"""
    out = make_directory(tmp_path / "out", source=source)
    with pytest.raises(BuildFailed, match="zero initializers"):
        build_program(out, "siracusa", env=ENV)


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


def run_make(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
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
        env={"ABSENT": "-", "BROKEN": "-", **ENV},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_run_passes_the_prompt_on_unharmed(tmp_path: Path) -> None:
    need("host")
    out = make_directory(tmp_path / "out")
    prompt = """He said: "it's 5 & 6" """
    done = run_make(out, "run-host", f"PROMPT={prompt}", "TOKENS=9", "SEED=4")
    assert done.returncode == 0
    expected = ["run", ".", "--prompt", prompt, "--tokens", "9", "--seed", "4", "--on", "host"]
    assert done.stdout.splitlines()[-len(expected) :] == [f"<{x}>" for x in expected]


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


def test_default_goal_is_the_compiled_target(tmp_path: Path) -> None:
    need("siracusa")
    out = make_directory(tmp_path / "out")
    assert run_make(out).returncode == 0
    assert (out / PROGRAM["siracusa"]).is_file()
    assert not (out / PROGRAM["host"]).exists()
    assert run_make(out, "clean").returncode == 0
    assert not (out / "build").exists()
