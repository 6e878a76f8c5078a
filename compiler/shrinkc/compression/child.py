"""Child processes for work of libraries, with their output in a log."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from shrinkc.core.errors import StageFailed
from shrinkc.core.output import output_error
from shrinkc.core.progress import Update

POLL_SECONDS = 0.3
SHOWN_LINES = 5
# GPTQModel's progress; layers count from 0, and the second number is the last layer
_LAYER = re.compile(rb"layer\s+\[?(\d+) of (\d+)")
# AutoRound's progress: finished blocks and all blocks
_BLOCK = re.compile(rb"Quantizing model\.layers\.\d+:[^\r\n]*?(\d+)/(\d+) \[")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")


def run_child(
    module: str, request: Mapping[str, Any], *, log: Path, threads: int, update: Update
) -> None:
    """Run ``python -m module`` with ``threads`` threads, give it ``request`` as a line of input, and wait for its end.

    Its output goes to ``log``; progress in the output is passed on to ``update``.  Raises StageFailed with the log's
    last lines if the child fails, and OutputError if the disk was full.  This function always kills the child's
    process group at its end.  If this process is killed, the child ends by itself (:func:`receive`).
    """
    # `env` keeps the inherited environment
    command = [
        "env",
        *(f"{name}={threads}" for name in _THREADS),
        # with fewer than two, GPTQModel refuses to work on a machine with two cores
        "GPTQMODEL_CPU_WORKERS=2",
        "GPTQMODEL_DISABLE_PACK_EXT=1",  # avoids a minute of building a C++ extension
        "HF_HUB_OFFLINE=1",
        "TORCHDYNAMO_DISABLE=1",  # avoids a minute of compiling kernels
        "PYTHONHASHSEED=0",
        "PYTHONUNBUFFERED=1",
        sys.executable, "-m", module,
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,  # GPTQModel makes a folder `logs` in it
        )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended; its exit code is checked below
            absolute = {
                key: os.path.abspath(value) if key in _PATHS else value
                for key, value in request.items()
            }
            process.stdin.write(json.dumps(absolute).encode() + b"\n")
            process.stdin.flush()
        with log.open("rb") as output:
            _follow(process, output, update)
    finally:
        _kill_group(process)
    if process.returncode:
        lines = last_lines(log)
        full = os.strerror(errno.ENOSPC)
        if any(full in line for line in lines):  # not an error of the library
            raise output_error(Path(request.get("out", log)), OSError(errno.ENOSPC, full))
        raise StageFailed(
            f"{module.rsplit('.', 1)[-1]} ended with {_meaning(process.returncode)}; the last "
            f"lines of {log}:\n" + "\n".join(f"  {line}" for line in lines),
            None,
        )


_PATHS = ("source", "float", "out", "scratch", "calibration")  # keys of a request that hold paths
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def receive() -> dict[str, Any]:
    """Read the request in the child process, which from now on is killed when its parent ends."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 16)
        if not data:
            raise EOFError("no request on standard input")
        line += data

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return json.loads(line)


def last_lines(log: Path) -> list[str]:
    """Return the last lines of ``log`` without progress bars and control characters."""
    text = log.read_bytes()[-(1 << 16) :].decode(errors="replace")
    lines = [_CONTROL.sub("", part.rsplit("\r", 1)[-1]).strip() for part in text.split("\n")]
    return [
        line[:300]
        for line in lines
        if line and not (_LAYER.search(line.encode()) or _BLOCK.search(line.encode()))
    ][-SHOWN_LINES:]


def _follow(process: subprocess.Popen[bytes], output: IO[bytes], update: Update) -> None:
    tail, layer, total = b"", 0, 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
        tail = tail[-160:] + output.read()
        if found := _LAYER.findall(tail):
            layer, last = map(int, found[-1])
            total = last + 1
        elif found := _BLOCK.findall(tail):
            layer, total = map(int, found[-1])
        update(layer, total)
        if process.returncode is not None:
            update(total, total)
            return


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _meaning(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"signal {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
