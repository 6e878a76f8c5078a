"""Copies of the product with a few files more or changed: that a list of files to touch is whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_with(
    root: Path, added: Mapping[str, str], listed: str, changes: Mapping[str, str], name: str
) -> Path:
    """What a wheel carries, in ``root``: ``added`` are new files with their text; in ``listed``, the one
    that lists all of their kind, ``changes`` are made, after which it names ``name`` twice."""
    unneeded = shutil.ignore_patterns("__pycache__")
    for folder in ("compiler/shrinkc", "runtime_c", "templates", "toolchain"):
        shutil.copytree(ROOT / folder, root / folder, ignore=unneeded)
    for file, text in added.items():
        assert not (root / file).exists(), "what the product has proves nothing"
        (root / file).write_text(text)
    lines = (root / listed).read_text()
    for before, after in changes.items():
        assert lines.count(before) == 1
        lines = lines.replace(before, after)
    assert lines.count(name) == 2
    (root / listed).write_text(lines)
    return root
