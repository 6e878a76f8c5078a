"""Child processes: log, progress, errors and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shrinkc.compression.child import last_lines, run_child
from shrinkc.core.errors import OutputError, StageFailed

WORKER = """
import os, sys, time
from pathlib import Path
from shrinkc.compression.child import receive
request = receive()
print("threads", os.environ["OMP_NUM_THREADS"], "workers", os.environ["GPTQMODEL_CPU_WORKERS"])
for layer in range(3):
    print(f"Quantizing layer {layer} of 2 [{layer} of 2]", end="\\r")
    time.sleep(request["pause"])
Path(request["file"]).write_text(str(os.getpid()))
time.sleep(request["sleep"])
if request["full"]:
    raise OSError(28, "No space left on device")
if request["fail"]:
    raise ValueError("no luck")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module that a child can run."""
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_worker"


def request(tmp_path: Path, **changes: object) -> dict[str, object]:
    fields: dict[str, object] = {"pause": 0.0, "sleep": 0.0, "fail": False, "full": False}
    return fields | {"file": str(tmp_path / "pid")} | changes


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(file: Path) -> int:
    for _ in range(600):
        if file.exists() and file.read_text():
            return int(file.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{file} did not appear")


def test_log_and_progress(worker: str, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    log = tmp_path / "logs" / "log"
    run_child(
        worker, request(tmp_path, pause=0.5), log=log, threads=3,
        update=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert "threads 3 workers 2" in log.read_text()
    assert heard[-1] == (3, 3)
    assert {(0, 3), (1, 3), (2, 3)} <= set(heard)


def test_a_failure_tells_the_last_lines_without_bars(worker: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(StageFailed) as failure:
        run_child(worker, request(tmp_path, fail=True), log=log, threads=1, update=lambda *_: None)
    lines = failure.value.message.splitlines()
    assert "exit code 1" in lines[0]
    assert str(log) in lines[0]
    assert lines[-1] == "  ValueError: no luck"
    assert "Quantizing" not in failure.value.message


def test_a_full_disk_is_no_failure_of_the_library(worker: str, tmp_path: Path) -> None:
    out = tmp_path / "01-gptq"
    with pytest.raises(OutputError, match=f"{out} cannot be written: No space left.*free some"):
        run_child(
            worker, request(tmp_path, full=True, out=str(out)), log=tmp_path / "log", threads=1,
            update=lambda *_: None,
        )  # fmt: skip


def test_last_lines_are_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"one\n\x1b[31mtwo\x1b[0m\nnot this\rbut that\n\n"
        b"Quantizing mlp.up_proj in layer   [3 of 29] ###\nlast"
    )
    assert last_lines(log) == ["one", "two", "but that", "last"]


def test_a_signal_is_named(worker: str, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if total:  # the child is running
            with suppress(ProcessLookupError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    with pytest.raises(StageFailed, match=r"SIGKILL \(out of memory\?\)"):
        run_child(
            worker, request(tmp_path, sleep=60.0), log=tmp_path / "log", threads=1, update=kill
        )


def test_an_interrupt_ends_the_child(worker: str, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(
            worker, request(tmp_path, sleep=60.0), log=tmp_path / "log", threads=1,
            update=interrupt,
        )  # fmt: skip
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_the_child_does_not_outlive_a_killed_parent(worker: str, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from shrinkc.compression.child import run_child;"
        f"run_child({worker!r}, {request(tmp_path, sleep=60.0)!r}, log=Path({str(tmp_path)!r}) / "
        "'log', threads=1, update=lambda *a: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = wait_for(tmp_path / "pid")
    assert is_running(child)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.05)
    raise AssertionError("the child is still there")
