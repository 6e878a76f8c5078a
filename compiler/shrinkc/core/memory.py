"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# parameters of mallopt(), malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# glibc raises its thresholds to these as large blocks are freed, until mallopt() is called once
_LARGEST_MMAP, _LARGEST_TRIM = 32 << 20, 64 << 20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, what is freed stays with the process, for what is allocated next.

    Without it glibc gives large blocks back at once, and the system clears each page of the next one: of a step of
    training that allocates tensors of 100 MB by the dozen, a fifth of the time.  Does nothing with another C library;
    afterwards glibc does what it does of itself, whatever the environment had told it.
    """
    library = _glibc()
    if library is None:
        yield
        return
    try:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)  # never
        yield
    finally:
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
        library.mallopt(_TRIM_THRESHOLD, _LARGEST_TRIM)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library of the process where it is glibc, else None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
