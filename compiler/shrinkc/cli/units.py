"""Sizes as people write them."""

from __future__ import annotations

import re

from shrinkc.core.words import show_size as show_size

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of ``131072``, ``128KiB``, ``128k`` or ``0.5 MiB``; ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size; write for instance 131072, 128KiB or 0.5MiB")
    size = float(match[1]) * _FACTOR[match[2].lower()]
    if size != int(size) or size < 1:
        raise ValueError(f"'{text}' is not a whole number of bytes")
    return int(size)
