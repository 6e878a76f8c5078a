"""The licence of the weights, as a model's files state it."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_llama import write_tiny_llama
from shrinkc.importer.loading import open_checkpoint


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        (None, ""),
        ("# A model\nlicense: mit\n", ""),
        ("---\nlicense: apache-2.0\ntags:\n- tiny\n---\n# A model\n", "apache-2.0"),
        ('---\ntags: [x]\nlicense: "llama3.2"\n---\n', "llama3.2"),
        ("---\nlicense: mit\n", ""),
        ("---\ntags: [x]\n---\nlicense: mit\n", ""),
    ],
    ids=["no card", "no head", "head", "quoted", "head without end", "after the head"],
)
def test_license_of_a_directory(tmp_path: Path, card: str | None, stated: str) -> None:
    write_tiny_llama(tmp_path / "model")
    if card is not None:
        (tmp_path / "model/README.md").write_text(card)
    assert open_checkpoint(tmp_path / "model").license == stated
