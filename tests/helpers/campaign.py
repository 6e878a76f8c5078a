"""Long series of trials by command: a journal to resume from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadData, RunChanged
from shrinkc.core.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


def journal_of(path: Path, about: Mapping[str, Any]) -> Journal:
    """The journal of a campaign; one about something else, such as other sources, is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return Journal(path, dict(about))
    except (RunChanged, BadData):
        path.unlink()
        return Journal(path, dict(about))


def sources_hash(*folders: str) -> str:
    """Of every source below ``folders`` of the project, whatever is installed."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
