"""Runs the program of a compiled directory on one of three machines, with the same input words."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shrinkc.build.layout import FLASH_IMAGE, INPUT_SECTION, PROGRAM
from shrinkc.build.tools import gvsoc_environment, require_tool
from shrinkc.core.errors import BadArtifact, RunFailed, UsageError
from shrinkc.simulate.elf import replace_section
from shrinkc.simulate.process import Finished, run_streaming

Words = Sequence[int] | npt.NDArray[np.integer]

TARGET_OF = {"host": "host", "qemu": "rv32", "gvsoc": "siracusa"}
"""The target whose program a machine runs."""

PLATFORM_CODES = {
    0x7D: "the platform refused the input or a request of the program",
    0x7E: "a stack overflowed",
    0x7F: "a core trapped (illegal instruction or bad access)",
}
"""Exit codes that the platforms give, see runtime_c/platform."""

_SHOWN_LINES = 8
_SMALLEST_FLASH = 1 << 20
_EXIT_LINE = re.compile(r"exitcode: (\d+)")


@dataclass(frozen=True)
class RunOutput:
    """One run: the lines of stdout, those of stderr, the program's exit code and the wall time."""

    lines: list[str]
    errors: list[str]
    exit_code: int
    seconds: float


def run_program(
    out: Path,
    on: str,
    words: Words,
    *,
    env: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
) -> RunOutput:
    """Runs the built program of ``out`` on ``on`` with the input ``words`` (see sc_input.h).

    Each line of output goes to ``on_line`` when it appears.  The exit code is the program's own;
    a crash, a hang or a code of :data:`PLATFORM_CODES` raises RunFailed.
    """
    if on not in TARGET_OF:
        raise UsageError(f"no machine called '{on}'.", f"allowed: {', '.join(TARGET_OF)}.")
    program = (out / PROGRAM[TARGET_OF[on]]).resolve()
    if not program.is_file():
        hint = f"run 'make {TARGET_OF[on]}' in {out}."
        raise BadArtifact(f"{out} has no {PROGRAM[TARGET_OF[on]]}.", hint)
    content = np.asarray(words).astype("<u4").tobytes()
    with tempfile.TemporaryDirectory(prefix="shrinkc-") as scratch:
        if on == "gvsoc":
            done = _on_gvsoc(program, out, content, Path(scratch), env, timeout_s, on_line)
        else:
            emulator = [str(require_tool("qemu-riscv32", env))] if on == "qemu" else []
            command = [*emulator, str(program)]
            done = _with_stdin(command, content, Path(scratch), env, timeout_s, on_line)
    return _judged(done, on, timeout_s)


def _with_stdin(
    command: list[str],
    content: bytes,
    scratch: Path,
    env: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None] | None,
) -> Finished:
    words = scratch / "input.bin"
    words.write_bytes(content)
    with words.open("rb") as stdin:
        return run_streaming(
            command,
            env=env,
            directory=scratch,
            stdin=stdin,
            timeout_s=timeout_s,
            on_line=on_line,
            terminal=False,
        )


def _on_gvsoc(
    program: Path,
    out: Path,
    content: bytes,
    scratch: Path,
    env: Mapping[str, str],
    timeout_s: float,
    on_line: Callable[[str], None] | None,
) -> Finished:
    """With the program's exit code, which the launcher reports in a line and not by its status."""
    launcher = require_tool("gvsoc", env)
    binary = scratch / "model.elf"
    replace_section(program, INPUT_SECTION, content, binary)
    (scratch / "work").mkdir()
    command = [
        str(launcher),
        "--target=siracusa",
        f"--work-dir={scratch / 'work'}",
        f"--binary={binary}",
        *_flash_options(out, scratch),
        "run",
    ]
    done = run_streaming(
        command,
        env=gvsoc_environment(launcher, env),
        directory=scratch,
        stdin=subprocess.DEVNULL,
        timeout_s=timeout_s,
        on_line=on_line,
        terminal=True,
    )
    if done.code is None or done.code <= 0:
        return done
    own_codes = [m for line in done.errors if (m := _EXIT_LINE.search(line))]
    if not own_codes:  # for instance an access to an address where nothing is
        raise RunFailed(
            f"gvsoc stopped the program with status {done.code}{_last_words(done)}",
            "'make host SAN=1' builds a program that finds bad accesses on the host.",
        )
    errors = [line for line in done.errors if not _EXIT_LINE.search(line)]
    return Finished(int(own_codes[-1][1]), done.lines, errors, done.seconds)


def _flash_options(out: Path, scratch: Path) -> list[str]:
    """The image as a private copy: the simulator extends it to the size of the chip."""
    image = out / FLASH_IMAGE
    if not image.is_file() or image.stat().st_size == 0:
        return []
    size = _SMALLEST_FLASH
    while size < image.stat().st_size:
        size *= 2
    shutil.copyfile(image, scratch / "flash.bin")
    return [
        f"--config-opt=**/hyperflash/size={size}",
        f"--config-opt=**/hyperflash/content/image={scratch / 'flash.bin'}",
    ]


def _judged(done: Finished, on: str, timeout_s: float) -> RunOutput:
    """RunFailed with what the run said last, unless the program came to an end of its own."""
    if done.code is None:
        raise RunFailed(
            f"the program on {on} did not end within {timeout_s:g} s{_last_words(done)}",
            "give it more time, or ask for fewer tokens.",
        )
    if done.code < 0:
        name = signal.Signals(-done.code).name
        raise RunFailed(
            f"the program on {on} was ended by {name}{_last_words(done)}",
            "'make host SAN=1' builds a program that says where it went wrong.",
        )
    if done.code in PLATFORM_CODES:
        raise RunFailed(
            f"{PLATFORM_CODES[done.code]} on {on}{_last_words(done)}",
            "'make host SAN=1' builds a program that says where it went wrong.",
        )
    return RunOutput(done.lines, done.errors, done.code, done.seconds)


def _last_words(done: Finished) -> str:
    lines = [*done.lines[-_SHOWN_LINES:], *done.errors[-_SHOWN_LINES:]]
    return ", without a word." if not lines else "; its last lines:\n" + "\n".join(lines)
