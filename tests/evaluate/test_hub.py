"""WikiText's rows on the hub become a file that is read like a local one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shrinkc.core.errors import BadData
from shrinkc.evaluation.hub import text_file
from shrinkc.evaluation.items import read_text
from shrinkc.evaluation.perplexity import joined_rows

pytestmark = pytest.mark.slow

datasets = pytest.importorskip("datasets")

TEXT = ["", " = Title = \n", "", " Some text . \n", ""]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, str]]:
    calls: list[tuple[str, Any, str]] = []

    def load_dataset(name: str, config: str | None, *, split: str) -> Any:
        calls.append((name, config, split))
        return datasets.Dataset.from_list([{"text": row} for row in TEXT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_rows_become_a_file(asked: list[Any], tmp_path: Path) -> None:
    text = read_text(text_file("hub", tmp_path))
    assert text == " \n = Title = \n \n Some text . \n \n"
    assert joined_rows(text)[0] == "\n\n".join(TEXT)
    text_file("hub:other", tmp_path)
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        ("Salesforce/wikitext", "other", "test"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "Salesforce-wikitext-other-test.raw",
        "Salesforce-wikitext-wikitext-2-raw-v1-test.raw",
    ]


def test_anything_else_is_a_path(asked: list[Any], tmp_path: Path) -> None:
    assert text_file("some/hub.txt", tmp_path) == Path("some/hub.txt")
    assert not asked


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        BadData, match=r"Salesforce/wikitext .* cannot be fetched .*: no route Hint"
    ):
        text_file("hub", tmp_path)


def test_data_through_a_pipe_can_be_read_again(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"Some text.\n")
    os.close(write)
    file = text_file(f"/dev/fd/{read}", tmp_path)
    os.close(read)
    assert file.parent == tmp_path
    assert file.read_text() == file.read_text() == "Some text.\n"
