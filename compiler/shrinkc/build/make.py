"""Runs make in a compiled directory."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from shrinkc.build.layout import PROGRAM
from shrinkc.build.tools import require_tool
from shrinkc.core.errors import BadArtifact, BuildFailed, UsageError

OPTIONS = ("OPT", "SAN", "CORES", "LAZY", "STACKS")
"""Variables of the generated Makefile that change the program."""

_COMPILER = {"host": "cc", "rv32": "riscv64-unknown-elf-gcc", "siracusa": "riscv64-unknown-elf-gcc"}
_COMPILE_LINE = re.compile(r" -c (\S+) -o \S+$")
_SHOWN_LINES = 20


def build_program(
    out: Path,
    target: str,
    *,
    env: Mapping[str, str],
    options: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Builds the program of the compiled directory ``out`` for ``target`` and returns its path.

    ``options`` sets Makefile variables (:data:`OPTIONS`); variables of that name in ``env`` are
    ignored, so that the result depends on the arguments alone.  ``progress`` is called with the
    name of each file that is compiled.  Raises ToolMissing, BadArtifact or BuildFailed.
    """
    if target not in PROGRAM:
        raise UsageError(f"no program for target '{target}'.", f"allowed: {', '.join(PROGRAM)}.")
    if not (out / "Makefile").is_file():
        raise BadArtifact(f"{out} has no Makefile.", "give a directory made by shrinkc compile.")
    make = require_tool("make", env)
    require_tool(_COMPILER[target], env)
    settings = [f"{name}={value}" for name, value in (options or {}).items()]
    jobs = f"-j{os.cpu_count() or 1}"
    command = [str(make), "--no-print-directory", jobs, "--output-sync=target", target, *settings]
    code, lines = _run(command, out, _clean(env), progress)
    if code != 0:
        shown = "\n".join(lines[-_SHOWN_LINES:])
        again = " ".join(["make", target, *settings])
        raise BuildFailed(
            f"make {target} in {out} ended with {code}; its last lines:\n{shown}",
            f"run '{again}' there to see all of it.",
        )
    program = out / PROGRAM[target]
    if not program.is_file():
        raise BuildFailed(f"make {target} in {out} left no {PROGRAM[target]}.")
    return program


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    """Without the settings of a make that called us, and with messages in one language."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "CC", "CROSS", *OPTIONS)
    return {**{k: v for k, v in env.items() if k not in outer}, "LC_ALL": "C"}


def _run(
    command: list[str],
    directory: Path,
    env: Mapping[str, str],
    progress: Callable[[str], None] | None,
) -> tuple[int, list[str]]:
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.rstrip("\n")
            compiled = _COMPILE_LINE.search(line)
            if compiled is None:
                lines.append(line)
            elif progress is not None:
                progress(compiled[1])
    return process.returncode, lines
