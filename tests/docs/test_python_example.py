"""examples/python_api.py, run as the script that it also is."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from docs.blocks import NEEDS, ROOT
from shrinkc.build import find_tool

EXAMPLE = ROOT / "examples" / "python_api.py"


def test_it_is_a_notebook_of_cells() -> None:
    cells = EXAMPLE.read_text().split("# %%")
    assert cells[0] == "" and len(cells) > 10
    texts = [cell for cell in cells[1:] if cell.startswith(" [markdown]\n")]
    assert texts
    for text in texts:
        assert all(line.startswith("#") for line in text.strip().split("\n")[1:])


@pytest.mark.slow
def test_it_runs_from_a_checkpoint_to_a_proof(tmp_path: os.PathLike[str]) -> None:
    for name in NEEDS["host"][0]:
        tool = find_tool(name, dict(os.environ))
        if not tool.usable:
            pytest.skip(f"{tool.name}: {tool.problem}; {tool.fix}")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "compiler"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "l1 lacks" in done.stdout and "would fit with one of:" in done.stdout
    assert "Once upon a time, there was" in done.stdout
    proved = re.search(r"(\d+) values compared, 0 differ", done.stdout)
    assert proved is not None and int(proved[1]) > 50_000
    assert re.search(r"perplexity \d+\.\d\d on 511 tokens", done.stdout)
