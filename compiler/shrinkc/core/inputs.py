"""Checks of input files before long work begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shrinkc.core.errors import BadData


def check_text_files(
    texts: Iterable[tuple[str, Path]], data: Iterable[tuple[str, Path]] = ()
) -> None:
    """Raise BadData, which names every unreadable file once, with its keys or options.

    The arguments are pairs (key or option, path).  ``texts`` must be UTF-8; ``data`` may have any content.  Pipes are
    not checked, because they can be read only once."""
    keys: dict[tuple[Path, str], dict[str, None]] = {}  # the inner dict is an ordered set
    for encoding, files in (("utf-8", texts), ("latin-1", data)):  # any bytes are valid latin-1
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
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        return error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return None
