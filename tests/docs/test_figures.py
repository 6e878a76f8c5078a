"""Figures of README.md and docs: JSON files with provenance; tables and pictures are rendered from them."""

from __future__ import annotations

import json
from pathlib import Path

import figures
import pytest
import render

FILES = sorted(figures.DATA.glob("*.json"))
EXAMPLE = {
    "title": "t",
    "provenance": {"commit": "abc", "date": "2026-12-01", "command": "make x", "machine": "m"},
    "columns": {"model": "Model", "cycles": "Cycles", "ok": "OK"},
    "formats": {"cycles": 3},
    "rows": [
        {"id": "a", "model": "A", "cycles": 69817, "ok": True},
        {"id": "b", "model": "B", "ok": False, "provenance": {"commit": "def", "remeasured": False}},
        {"id": "c", "model": "C", "cycles": 0.0058, "formats": {"cycles": "≤ {:.3f}"}},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x.json").write_text(json.dumps(EXAMPLE))
    return tmp_path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_how_it_was_measured(path: Path) -> None:
    data = figures.read(path.name)
    for row in data["rows"]:
        assert any(row.get(key) is not None for key in list(data["columns"])[1:]), row["id"]
    pages = "".join(page.read_text(encoding="utf-8") for page in render.pages())
    assert f"<!-- table: {path.name}" in pages, f"no page shows {path.name}"


def test_pages_and_pictures_are_what_the_data_gives() -> None:
    assert not render.outdated(write=False), "python examples/bench/render.py writes them"


def test_a_table(folder: Path) -> None:
    page = "A\n<!-- table: x.json -->\nold\n<!-- end of table -->\nB"
    text = render.rendered(page, folder)
    lines = text.split("\n")
    assert lines[2:7] == [
        "| Model | Cycles | OK |", "| --- | ---: | --- |", "| A | 69,800 | yes |", "| B | – | no |",
        "| C | ≤\u00a00.006 | – |",
    ]  # fmt: skip
    assert "commit abc, 2026-12-01, `make x`, m." in lines[8]
    assert "*B*: commit def, not measured again since.</small>" in lines[8]
    assert render.rendered(text, folder) == text
    page = page.replace("x.json", "x columns=cycles,model rows=c,a provenance=no")
    assert render.rendered(page, folder).split("\n")[2:-1] == [
        "| Cycles | Model |", "| ---: | --- |", "| ≤\u00a00.006 | C |", "| 69,800 | A |",
        "<!-- end of table -->",
    ]  # fmt: skip
    shown = "```\n<!-- table: y.json -->\n```"
    assert render.rendered(shown, folder) == shown


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("<!-- table: y.json -->", "there is no y.json"),
        ("<!-- table: x.json rows=z -->", "no row or column 'z'"),
        ("<!-- table: x.json columns=z -->", "no row or column 'z'"),
    ],
)
def test_a_table_that_cannot_be_rendered(folder: Path, marker: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        render.rendered(f"{marker}\n<!-- end of table -->", folder)
    with pytest.raises(ValueError, match="no '<!-- end of table -->' after"):
        render.rendered("<!-- table: x.json -->", folder)


def test_figures_without_provenance_are_refused(folder: Path) -> None:
    (folder / "x.json").write_text(json.dumps({**EXAMPLE, "provenance": {"commit": "abc"}}))
    with pytest.raises(ValueError, match=r"x\.json, row a: no date, command, machine"):
        figures.read("x", folder)


def test_a_measurement_says_what_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "model": "A", "cycles": 70000}, {"id": "d", "model": "D", "cycles": 1}]
    columns = {"model": "Model", "cycles": "Cycles"}
    figures.write("x", title="t", command="make x", columns=columns, rows=rows, folder=folder)
    said = capsys.readouterr().err
    assert "a, cycles: 69,817 -> 70,000 (+0.3 %)" in said and "d: new" in said and "b: gone" in said
    data = figures.read("x", folder)
    assert data["rows"] == rows and "remeasured" not in data["provenance"]
