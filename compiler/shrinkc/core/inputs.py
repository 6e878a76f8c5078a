"""Files that long work is going to read: whether that is possible is known at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shrinkc.core.errors import BadData


def check_text_files(
    texts: Iterable[tuple[str, Path]], data: Iterable[tuple[str, Path]] = ()
) -> None:
    """BadData that names every file, once, that cannot be read, with the keys or options that gave it.

    Pairs of such a key and a path: ``texts`` have to be UTF-8, ``data`` may be anything.  Pipes, which can
    be read only once, are left alone."""
    keys: dict[tuple[Path, str], dict[str, None]] = {}  # as a set in the order given
    for encoding, files in (("utf-8", texts), ("latin-1", data)):  # which all bytes are
        for key, path in files:
            keys.setdefault((path, encoding), {})[key] = None
    faults = [
        f"{', '.join(names)}: {path} cannot be read: {reason}"
        for (path, encoding), names in keys.items()
        if (reason := _fault(path, encoding)) is not None
    ]
    if faults:
        raise BadData(
            f"{'; '.join(faults)}.", "give the name of a UTF-8 text file that can be read."
        )


def _fault(path: Path, encoding: str) -> str | None:
    try:
        if not path.is_fifo():
            with path.open(encoding=encoding) as file:
                while file.read(1 << 20):
                    pass
    except (OSError, ValueError) as error:  # ValueError: also a NUL in the name
        return error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return None
