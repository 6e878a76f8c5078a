"""Rows of the hub's datasets become files that are read like local ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shrinkc.core.errors import BadData
from shrinkc.evaluation.hellaswag import Task, read_hellaswag
from shrinkc.evaluation.hub import data_file
from shrinkc.evaluation.perplexity import joined_rows
from shrinkc.evaluation.protocols import read_text
from shrinkc.evaluation.trivia import Trivium, read_trivia

datasets = pytest.importorskip("datasets")

TEXT = ["", " = Title = \n", "", " Some text . \n", ""]
TRIVIA = {
    "question": "Who?", "question_id": "tc_1", "answer": {"value": "V", "aliases": ["A", "V"]},
    "entity_pages": {"wiki_context": ["page"]}, "search_results": {"search_context": ["found it"]},
}  # fmt: skip
TASK = {
    "ind": 1, "activity_label": "Play", "ctx_a": "Tom has a ball.", "ctx_b": "he",
    "endings": ["a", "b", "c", "d"], "label": "2",
}  # fmt: skip
ROWS = {
    "Salesforce/wikitext": [{"text": row} for row in TEXT],
    "mandarjoshi/trivia_qa": [TRIVIA],
    "Rowan/hellaswag": [TASK],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    calls: list[tuple[str, Any, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config, split))
        return datasets.Dataset.from_list(ROWS[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_rows_become_files(asked: list[Any], tmp_path: Path) -> None:
    text = read_text(data_file("hub", "text", tmp_path))
    assert text == " \n = Title = \n \n Some text . \n \n"
    assert joined_rows(text)[0] == "\n\n".join(TEXT)
    items = read_trivia(data_file("hub:rc", "trivia", tmp_path))
    assert items == [Trivium("Who?", ("A", "V", "V"), ("page", "found it"))]
    tasks, _ = read_hellaswag(data_file("hub", "hellaswag", tmp_path))
    assert tasks == [Task("Play: Tom has a ball. He", ("a", "b", "c", "d"), 2)]
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        ("mandarjoshi/trivia_qa", "rc", "validation"),
        ("Rowan/hellaswag", None, "validation"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "Rowan-hellaswag-validation.jsonl",
        "Salesforce-wikitext-wikitext-2-raw-v1-test.raw",
        "mandarjoshi-trivia_qa-rc-validation.jsonl",
    ]


def test_anything_else_is_a_path(asked: list[Any], tmp_path: Path) -> None:
    assert data_file("some/hub.txt", "text", tmp_path) == Path("some/hub.txt")
    assert not asked


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BadData, match=r"Rowan/hellaswag .* cannot be fetched .*: no route Hint"):
        data_file("hub", "hellaswag", tmp_path)


def test_data_through_a_pipe_can_be_read_again(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"Some text.\n")
    os.close(write)
    file = data_file(f"/dev/fd/{read}", "text", tmp_path)
    os.close(read)
    assert file.parent == tmp_path
    assert file.read_text() == file.read_text() == "Some text.\n"
