"""examples/demo.sh: the story on every machine, on a simulator a short one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "demo.sh"
FAKE = """#!/bin/sh
echo "$@" >> "$LOG"
[ "$1" != doctor ] || echo "$DOCTOR"
"""


@pytest.mark.parametrize(("doctor", "simulated"), [("gvsoc 1 ok here", True), ("to fix gvsoc: x", False)])  # fmt: skip
def test_tokens_of_every_machine(tmp_path: Path, doctor: str, simulated: bool) -> None:
    (tmp_path / "shrinkc").write_text(FAKE)
    (tmp_path / "shrinkc").chmod(0o755)
    log = tmp_path / "log"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "DOCTOR": doctor}  # fmt: skip
    done = subprocess.run([SCRIPT, "out"], env=env, capture_output=True, text=True, check=True)
    runs = [line.split() for line in log.read_text().splitlines() if line.startswith("run ")]
    tokens = {run[3]: int(run[-1]) for run in runs}
    assert tokens == {"host": 200, "qemu": 200} | ({"gvsoc": 20} if simulated else {})
    assert ("seconds" in done.stdout) == simulated
