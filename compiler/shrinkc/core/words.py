"""Formatting of sizes, times and figures for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """Return the bytes of ``131072``, ``128KiB``, ``128k`` or ``0.5 MiB``.  Raises ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size; write for example 131072, 128KiB or 0.5MiB")
    size = float(match[1]) * _FACTOR[match[2].lower()]
    if size != int(size) or size < 1:
        raise ValueError(f"'{text}' is not a whole number of bytes")
    return int(size)


def show_size(size: int) -> str:
    """Format bytes: ``1.5 MiB``, ``37.2 KiB``, ``256 KiB``, ``12 B``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            number = f"{size / unit:.1f}".removesuffix(".0")
            return f"{number} {name}"
    return f"{size} B"


def show_share(used: int, have: int) -> str:
    """Format used and available bytes: ``254.5 of 256.0 KiB``, ``107.0 KiB of 2.0 MiB``."""
    first, second = show_size(used), show_size(have)
    number, unit = first.split()
    return f"{number if second.endswith(f' {unit}') else first} of {second}"


def show_rounded(value: float) -> str:
    """Format a number with three significant digits: ``65,500``, ``0.157``."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def listed(words: Sequence[str]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([*filter(None, [", ".join(words[:-1])]), *words[-1:]])


def show_time(seconds: float) -> str:
    """Format seconds: ``20 s``, ``12 min``, ``1.5 h``; at least ``1 s``."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def show_metric(name: str, value: float | None) -> str:
    """Format a task's metric, such as ``hellaswag acc_norm``: a fraction in percent; empty for None."""
    if value is None:
        return ""
    share = name.rpartition(" ")[2].startswith(("acc", "contains", "exact_match", "f1", "em"))
    return f"{100 * value:.2f} %" if share else f"{value:.4f}"
