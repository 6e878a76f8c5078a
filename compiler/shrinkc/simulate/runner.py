"""Execution of the program of a compiled directory on the host, in QEMU or on GVSoC."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shrinkc.abi import Exit, InputWord, Line, Trace, input_block
from shrinkc.build.layout import FLASH_IMAGE, INPUT_SECTION, PROGRAM
from shrinkc.build.tools import gvsoc_environment, require_tool
from shrinkc.core.artifact import read_manifest
from shrinkc.core.errors import BadArtifact, RunFailed, UsageError
from shrinkc.core.shell import quoted
from shrinkc.simulate.elf import replace_section
from shrinkc.simulate.process import Finished, KeptProcess, run_streaming
from shrinkc.targets import DEFAULT, EMULATED_FLASH, OUTSIDE, PROGRAMS, Target

Words = Sequence[int] | npt.NDArray[np.integer]

PLATFORM_CODES = {e.value: e.meaning for e in (Exit.PLATFORM, Exit.STACK, Exit.TRAP)}
"""Exit codes of failures that the platforms report (runtime_c/platform)."""

_SHOWN_LINES = 8
_SMALLEST_FLASH = 1 << 20
_EXIT_LINE = re.compile(r"exitcode: (\d+)")


@dataclass(frozen=True)
class RunOutput:
    """Result of a run: lines of stdout and stderr, exit code and wall-clock time."""

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
    target: Target = DEFAULT,
) -> RunOutput:
    """Run the built program of ``out`` (compiled for ``target``) on machine ``on`` with input ``words``
    (abi.input_block).

    ``on_line`` gets each line of output as it appears.  Raises UsageError for a machine that the target does not run
    on, BadArtifact without a program, and RunFailed for a crash, a time-out or a code of :data:`PLATFORM_CODES`.
    """
    program = _program_for(out, on, target)
    content = np.asarray(words).astype("<u4").tobytes()
    with tempfile.TemporaryDirectory(prefix="shrinkc-") as folder:
        scratch = Path(folder)
        start = partial(run_streaming, directory=scratch, timeout_s=timeout_s)
        if on == "gvsoc":
            done = _on_gvsoc(start, program, out, target, content, scratch, env, on_line)
        else:
            file = scratch / "input.bin"
            file.write_bytes(content)
            command = _command(program, on, target, scratch, env)
            with file.open("rb") as stdin:
                done = start(command, env=env, stdin=stdin, on_line=on_line, terminal=False)
    return _judged(done, on, timeout_s)


class KeptProgram:
    """The built program of ``out``, which keeps its KV cache from one input to the next."""

    def __init__(self, out: Path, on: str, *, env: Mapping[str, str], target: Target) -> None:
        """Start the program.  Raises UsageError, BadArtifact and ToolMissing as :func:`run_program` does."""
        program = _program_for(out, on, target)
        self._on = on
        self._scratch = tempfile.TemporaryDirectory(prefix="shrinkc-")
        folder = Path(self._scratch.name)
        try:
            if on == "gvsoc":
                command, env = _in_gvsoc(program, out, target, folder, env)
            else:
                command = _command(program, on, target, folder, env)
            self._process = KeptProcess(command, env=env, directory=folder, terminal=on == "gvsoc")
        except BaseException:
            self._scratch.cleanup()
            raise

    def run(
        self, words: Words, *, timeout_s: float, on_line: Callable[[str], None] | None = None
    ) -> RunOutput:
        """Run input ``words`` with ``InputWord.MORE``; see :func:`run_program`.  After an exception, close it."""
        content = np.asarray(words).astype("<u4").tobytes()
        done = self._process.ask(
            content,
            lambda line: line.startswith(f"{Line.END} "),
            timeout_s=timeout_s,
            on_line=on_line,
        )
        return _judged(_ended_on_gvsoc(done) if self._on == "gvsoc" else done, self._on, timeout_s)

    def close(self) -> None:
        """End the program."""
        self._process.close()
        self._scratch.cleanup()


def host_logits(
    out: Path, sequences: Sequence[Words], env: Mapping[str, str]
) -> Iterator[npt.NDArray[np.int32]]:
    """Compute the logits of every position of every sequence with the built host program of ``out``.

    Each sequence has 1 to context ids and starts with an empty KV cache.  Yields int32 [T, vocab] per sequence, bit for
    bit those of the interpreter; divided by 2**frac of the graph's logits they are the model's.
    Raises BadArtifact without a program, UsageError for a sequence of another length, and RunFailed if the program
    ends early.
    """
    manifest = read_manifest(out)
    program = _program(out, "host")
    lengths = [len(ids) for ids in sequences]
    if bad := [n for n in lengths if not 1 <= n <= manifest.context]:
        raise UsageError(
            f"a sequence of {bad[0]} tokens is not possible.",
            f"allowed: 1 to {manifest.context}, the compiled context.",
        )
    with tempfile.TemporaryDirectory(prefix="shrinkc-") as scratch:
        words = Path(scratch) / "input.bin"
        with words.open("wb") as file:
            for ids in sequences:
                options = {
                    InputWord.TOP_P: 1 << 16,
                    InputWord.TRACE: Trace.LOGITS,
                    InputWord.MORE: 1,
                }
                block = input_block(manifest.context, [int(i) for i in ids], options)
                file.write(np.array(block, "<u4").tobytes())
        with (
            words.open("rb") as stdin,
            (Path(scratch) / "errors").open("w+b") as errors,
            subprocess.Popen(
                [str(program)], stdin=stdin, stdout=subprocess.PIPE, stderr=errors, env=env
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for length in lengths:
                    content = process.stdout.read(4 * length * manifest.vocab_size)
                    if len(content) < 4 * length * manifest.vocab_size:
                        errors.seek(0)
                        reason = _reason_of_end(content, errors.read(), _ended(process))
                        raise RunFailed(
                            f"the program on host ended before it gave all logits: {reason}"
                        )
                    yield np.frombuffer(content, "<i4").reshape(length, manifest.vocab_size)
            finally:
                process.kill()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a program that has closed its output; kill it if it does not end in 10 s."""
    try:
        return process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _reason_of_end(content: bytes, errors: bytes, code: int) -> str:
    """Return why a program ended early: its refusal after the logits, its stderr, or its signal or exit code."""
    _, tag, refusal = content.rpartition(f"{Line.REFUSED} ".encode())
    if tag and refusal.isascii() and refusal.endswith(b"\n"):
        return refusal.decode().strip()
    if said := errors.decode(errors="backslashreplace").strip():
        return said
    return f"ended by {signal.Signals(-code).name}." if code < 0 else f"exit code {code}."


def _program(out: Path, name: str) -> Path:
    program = (out / PROGRAM[name]).resolve()
    if not program.is_file():
        hint = f"build it:\n{quoted('make', '-C', out, name)}"
        raise BadArtifact(f"{out} has no {PROGRAM[name]}.", hint)
    return program


def _program_for(out: Path, on: str, target: Target) -> Path:
    if on not in target.runs_on:
        raise UsageError(
            f"no machine called '{on}' runs programs for {target.name}.",
            f"allowed: {', '.join(target.runs_on)}.",
        )
    return _program(out, target.programs[on])


def _command(
    program: Path, on: str, target: Target, scratch: Path, env: Mapping[str, str]
) -> list[str]:
    """Return the command line that runs ``program`` on host or qemu with its input on stdin."""
    return _in_qemu(program, target, scratch, env) if on == "qemu" else [str(program)]


def _in_qemu(program: Path, target: Target, scratch: Path, env: Mapping[str, str]) -> list[str]:
    """Return the command line that runs ``program`` in QEMU, with a link to it in the working directory ``scratch``.

    Raises UsageError if a board's program is too large for QEMU's board.
    """
    runs = target if target.board else PROGRAMS[target.programs["qemu"]]
    if target.board and program.stat().st_size > EMULATED_FLASH:
        raise UsageError(
            f"{program} has more bytes than the flash of QEMU's board, {EMULATED_FLASH}.",
            "run it with --on host.",
        )
    link = scratch / program.name  # a path of any characters may not be an option's value
    link.symlink_to(program)
    name, *words = runs.program.emulator
    return [str(require_tool(name, env)), *(word.format(link.name) for word in words)]


def _in_gvsoc(
    program: Path, out: Path, target: Target, scratch: Path, env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment that run ``program`` on GVSoC."""
    launcher = require_tool("gvsoc", env, target.name)
    (scratch / "work").mkdir()
    command = [
        str(launcher),
        f"--target={target.gvsoc}",
        f"--work-dir={scratch / 'work'}",
        f"--binary={program}",
        *_flash_options(out, scratch),
        *_ram_options(target),
        "run",
    ]
    return command, gvsoc_environment(launcher, env)


def _on_gvsoc(
    start: Callable[..., Finished],
    program: Path,
    out: Path,
    target: Target,
    content: bytes,
    scratch: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None] | None,
) -> Finished:
    """Run the program on GVSoC, with its input in a section of the program."""
    binary = scratch / "model.elf"
    command, env = _in_gvsoc(binary, out, target, scratch, env)
    replace_section(program, INPUT_SECTION, content, binary)
    done = start(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        on_line=on_line and (lambda line: None if _is_echo(line) else on_line(line)),
        terminal=True,
    )
    return _ended_on_gvsoc(done)


def _ended_on_gvsoc(done: Finished) -> Finished:
    """Return what the program did; the launcher reports its exit code in a line, not by its own status."""
    done = replace(done, lines=[line for line in done.lines if not _is_echo(line)])
    if done.code is None or done.code <= 0:
        return done
    own_codes = [m for line in done.errors if (m := _EXIT_LINE.search(line))]
    if not own_codes:  # for example an access to an unmapped address
        raise RunFailed(
            f"gvsoc stopped the program with status {done.code}{_last_words(done)}",
            "'make host SAN=1' builds a program that finds bad accesses on the host.",
        )
    errors = [line for line in done.errors if not _EXIT_LINE.search(line)]
    return Finished(int(own_codes[-1][1]), done.lines, errors, done.seconds)


def _is_echo(line: str) -> bool:
    """Return whether a line is the command that the launcher prints before it starts the simulator."""
    return line.startswith("gapy --platform=gvsoc ")


def _flash_options(out: Path, scratch: Path) -> list[str]:
    """Return the options for a copy of the flash image, which the simulator extends to the size of the chip."""
    image = out / FLASH_IMAGE
    if not image.is_file() or image.stat().st_size == 0:
        return []
    size = _SMALLEST_FLASH
    while size < image.stat().st_size:
        size *= 2
    shutil.copyfile(image, scratch / image.name)
    return [
        f"--config-opt=**/hyperflash/size={size}",
        f"--config-opt=**/hyperflash/content/image={scratch / image.name}",
    ]


def _ram_options(target: Target) -> list[str]:
    size = sum(target.room(name) for name in OUTSIDE)
    return [f"--config-opt=**/ram/size={size}"] if size else []


def _judged(done: Finished, on: str, timeout_s: float) -> RunOutput:
    """Raise RunFailed with the last lines of output if the program did not end by itself."""
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
