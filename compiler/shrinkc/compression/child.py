"""Runs a library's work in a child process: its output in a log, nothing of it left at the end."""

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
# how GPTQModel says where it is; layers count from 0, so the second number is the last one
_LAYER = re.compile(rb"layer\s+\[?(\d+) of (\d+)")
# and AutoRound: how many blocks are done, of how many
_BLOCK = re.compile(rb"Quantizing model\.layers\.\d+:[^\r\n]*?(\d+)/(\d+) \[")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")


def run_child(
    module: str, request: Mapping[str, Any], *, log: Path, threads: int, update: Update
) -> None:
    """Runs ``python -m module`` with ``request`` as its first line of input until it ends.

    Its output goes to ``log``; ``update`` hears of the layers that the output counts.  The
    child computes with ``threads`` threads.  StageFailed with the log's last lines when it ends
    with an error, OutputError when that is a full disk.  Whatever ends this function, no process
    of the child's group is left; and should this process be killed, the child sees its input end
    (:func:`receive`).
    """
    # `env` adds to what this process inherited
    command = [
        "env",
        *(f"{name}={threads}" for name in _THREADS),
        # fewer than two and GPTQModel refuses to work on a machine with two cores
        "GPTQMODEL_CPU_WORKERS=2",
        "GPTQMODEL_DISABLE_PACK_EXT=1",  # else a C++ extension is built first: a minute
        "HF_HUB_OFFLINE=1",
        "TORCHDYNAMO_DISABLE=1",  # its kernels would be compiled at the first forward pass: a minute
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
            cwd=log.parent,  # GPTQModel makes a folder `logs` where it is
        )
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it is gone already: its code tells
            absolute = {
                key: os.path.abspath(value) if key in _PATHS else value
                for key, value in request.items()
            }
            process.stdin.write(json.dumps(absolute).encode() + b"\n")
            process.stdin.flush()
        with log.open("rb") as output:
            _follow(process, output, update)
    finally:
        _end(process)
    if process.returncode:
        lines = last_lines(log)
        full = os.strerror(errno.ENOSPC)
        if any(full in line for line in lines):  # no fault of the library
            raise output_error(Path(request.get("out", log)), OSError(errno.ENOSPC, full))
        raise StageFailed(
            f"{module.rsplit('.', 1)[-1]} ended with {_meaning(process.returncode)}; the last "
            f"lines of {log}:\n" + "\n".join(f"  {line}" for line in lines),
            None,
        )


_PATHS = ("source", "float", "out", "scratch", "calibration")  # of a request
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def receive() -> dict[str, Any]:
    """In the child: the request.  From here on the child ends as soon as its parent does."""
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
    """The last lines of ``log`` that are no progress bars, without control characters."""
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


def _end(process: subprocess.Popen[bytes]) -> None:
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
