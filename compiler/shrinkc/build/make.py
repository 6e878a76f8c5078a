"""Execution of make in a compiled directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from shrinkc.build.layout import PROGRAM
from shrinkc.build.tools import require_tool
from shrinkc.core.errors import BadArtifact, BuildFailed, OutputError, ToolMissing, UsageError
from shrinkc.core.shell import quoted
from shrinkc.targets import PROGRAMS

OPTIONS = ("OPT", "SAN", "CORES", "LAZY", "STACKS", "PROFILE", "TRACE", "CC", "CROSS")
"""Variables of the generated Makefile that change the program."""

_COMPILE_LINE = re.compile(r" -c \S+ -o \S+$")
_CANNOT_WRITE = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system")
_SHOWN_LINES = 20


def build_program(
    out: Path,
    target: str,
    *,
    env: Mapping[str, str],
    options: Mapping[str, str] | None = None,
) -> Path:
    """Build the program of the compiled directory ``out`` for ``target`` and return its path.

    ``options`` sets Makefile variables (:data:`OPTIONS`).  Variables of these names in ``env`` are ignored, so that
    the result depends only on the arguments.  A current program is not rebuilt, so a read-only directory is
    possible.  Builds of one directory wait for each other.  Raises ToolMissing, BadArtifact, OutputError or
    BuildFailed.
    """
    if target not in PROGRAM:
        raise UsageError(f"no program for target '{target}'.", f"allowed: {', '.join(PROGRAM)}.")
    if not (out / "Makefile").is_file():
        raise BadArtifact(f"{out} has no Makefile.", "give a directory made by 'shrinkc compile'.")
    options = options or {}
    make = require_tool("make", env)
    _require_compiler(target, options, env)
    settings = [f"{name}={value}" for name, value in options.items()]
    jobs = f"-j{os.cpu_count() or 1}"
    command = [str(make), "--no-print-directory", jobs, "--output-sync=target", target, *settings]
    with _alone(out):
        code, lines = _run(command, out, _clean(env))
    if code != 0:
        shown = "\n".join(lines[-_SHOWN_LINES:])
        if not _writable(out / PROGRAM[target]) or any(map(_CANNOT_WRITE.search, lines)):
            raise OutputError(
                f"{out} has no current {PROGRAM[target]}, and it cannot be built there:\n{shown}",
                "copy the directory to a place with free space and permission to write.",
            )
        again = quoted("make", target, *settings)
        raise BuildFailed(
            f"make {target} in {out} ended with exit code {code}; its last lines:\n{shown}",
            f"to see all messages, run there: {again}",
        )
    program = out / PROGRAM[target]
    if not program.is_file():
        raise BuildFailed(f"make {target} in {out} did not create {PROGRAM[target]}.")
    return program


def _require_compiler(target: str, options: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Raise ToolMissing unless the compiler (or the one named in ``options``) can be started."""
    variable = "CC" if target == "host" else "CROSS"
    usual = PROGRAMS[target].program.compiler
    value = options.get(variable, "").strip()
    name = f"{value}gcc" if value and variable == "CROSS" else value.partition(" ")[0]
    if name in ("", usual):
        require_tool(usual, env)
    elif "/" not in name and shutil.which(name, path=env.get("PATH", "")) is None:
        raise ToolMissing(
            f"{name}, the compiler that {variable}={value} names, is not on PATH.",
            f"install it, or leave out {variable}= for {usual}.",
        )


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Allow one build at a time.  The directory itself is locked, so no lock file is needed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # some network file systems cannot lock directories; make still does not damage complete files
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _writable(program: Path) -> bool:
    """Return whether files can be made next to ``program``, in folders that may not exist yet."""
    folder = program.parent
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` without the settings of a calling make, and with messages in English."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", *OPTIONS)
    return {**{k: v for k, v in env.items() if k not in outer}, "LC_ALL": "C"}


def _run(command: list[str], directory: Path, env: Mapping[str, str]) -> tuple[int, list[str]]:
    """Return the exit code, and the output without the compiler's command lines."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, [line for line in lines if not _COMPILE_LINE.search(line)]
