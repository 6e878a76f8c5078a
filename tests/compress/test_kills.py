"""`make kills`: comparison of runs, and the running step at a kill."""

from __future__ import annotations

from pathlib import Path

from .kills import OWN_TEXT, STAGES, Kill, differing, row, under_way


def run_in(folder: Path, weights: bytes = b"w", seconds: int = 1) -> Path:
    (folder / "01-depth").mkdir(parents=True)
    (folder / "01-depth/model.safetensors").write_bytes(weights)
    (folder / "01-depth/step.json").write_text(f'{{"seconds": {seconds}, "kind": "depth"}}')
    (folder / "table.md").write_text(f"{seconds}")
    return folder


def test_bytes_and_files_differ_but_seconds_do_not_count(tmp_path: Path) -> None:
    whole = run_in(tmp_path / "whole")
    assert differing(run_in(tmp_path / "slower", seconds=9), whole) == (2, [])
    assert differing(run_in(tmp_path / "other", b"v"), whole) == (2, ["01-depth/model.safetensors"])
    more = run_in(tmp_path / "more")
    (more / "left.partial").write_bytes(b"")
    assert differing(more, whole) == (3, ["left.partial"])
    (more / "01-depth/step.json").unlink()
    assert differing(more, whole) == (3, ["01-depth/step.json", "left.partial"])


def test_the_running_step(tmp_path: Path) -> None:
    seen = [under_way(tmp_path)]
    (tmp_path / "00-source").mkdir()
    seen.append(under_way(tmp_path))
    for number, kind in enumerate(STAGES, 1):
        (tmp_path / "logs" / f"{number:02d}-{kind}").mkdir(parents=True)
        seen.append(under_way(tmp_path))
        (tmp_path / f"{number:02d}-{kind}").mkdir()
        (tmp_path / f"{number:02d}-{kind}" / "step.json").touch()
    assert [*seen, under_way(tmp_path)] == ["source", OWN_TEXT, *STAGES, "evaluate"]


def test_the_figures_count() -> None:
    kills = [Kill(3.0, "qat"), Kill(1.0, "qat"), Kill(2.0, "source")]
    found = row(kills, 2, 70, ["run0/a"])
    assert (found["kills"], found["runs"], found["files"], found["differ"]) == (3, 2, 70, 1)
    assert found["during"] == {"source": 1, "qat": 2} and found["wrong"] == ["run0/a"]
