"""A manifest is read as it was written, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shrinkc.core.artifact import MANIFEST, Manifest, read_manifest, write_manifest
from shrinkc.core.errors import BadArtifact

WHOLE = Manifest("tiny", "siracusa", 64, 107, 1, "shrinkc compile tiny", "0.1.0", {"bits": 8})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "ir.txt").write_text("graph\n")
    write_manifest(tmp_path, WHOLE)
    found = read_manifest(tmp_path)
    assert found.files.keys() == {"ir.txt"} and found.files["ir.txt"].bytes == 6
    assert (found.model, found.context, found.options) == ("tiny", 64, {"bits": 8})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("context", 1 << 40, "context = 1099511627776; 1 to 16777216 is possible"),
        ("context", 0, "context = 0;"),
        ("vocab_size", -3, "vocab_size = -3;"),
        ("context", 64.0, "context is 64.0"),
        ("target", None, "target is None"),
        ("options", {"bits": [8]}, "options are values by name"),
        ("version", 0, "is of version 0"),
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, field: str, value: Any, words: str) -> None:
    write_manifest(tmp_path, WHOLE)
    file = tmp_path / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(BadArtifact, match=words):
        read_manifest(tmp_path)
