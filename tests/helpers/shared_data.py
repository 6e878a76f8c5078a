"""Find the real models and texts that some tests use, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]


def find_shared_data() -> Path | None:
    """Return the folder named by SHRINKC_DATA, else ``../shared/data``; None if there is none."""
    named = os.environ.get("SHRINKC_DATA")
    folder = Path(named) if named else _REPOSITORY.parent / "shared" / "data"
    return folder if folder.is_dir() else None
