"""Text files that long work is going to read: whether that is possible is known at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shrinkc.core.errors import BadData


def check_text_files(files: Iterable[tuple[str, Path]]) -> None:
    """BadData that names every file, once, that cannot be read as UTF-8, with the keys or options that gave it.

    ``files``: pairs of such a key and a path.  Pipes, which can be read only once, are left alone."""
    keys: dict[Path, dict[str, None]] = {}  # as a set in the order given
    for key, path in files:
        keys.setdefault(path, {})[key] = None
    faults = [
        f"{', '.join(keys[path])}: {path} cannot be read: {reason}"
        for path in keys
        if (reason := _fault(path)) is not None
    ]
    if faults:
        raise BadData(f"{'; '.join(faults)}.", "give the name of a UTF-8 text file.")


def _fault(path: Path) -> str | None:
    try:
        if not path.is_fifo():
            with path.open(encoding="utf-8") as file:
                while file.read(1 << 20):
                    pass
    except (OSError, ValueError) as error:  # ValueError: also a NUL in the name
        return error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return None
