"""Freed memory stays with the process while it is asked to, and no longer."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from shrinkc.core import memory

MB = 1 << 20
# Faults of a block behind one of its size that was freed: before, within, and after freed_memory_kept().
ASK = """
import ctypes, resource, sys
from shrinkc.core.memory import freed_memory_kept

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: a fault is a page

def faults(size):
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytearray(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

sizes = [int(size) for size in sys.argv[1:]]
print(*[faults(size) for size in sizes])
try:
    with freed_memory_kept():
        print(*[faults(size) for size in sizes])
        raise KeyError
except KeyError:
    print(*[faults(size) for size in sizes])
"""


def _faults(sizes: tuple[int, ...]) -> list[list[int]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ASK, *map(str, sizes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [[int(n) for n in line.split()] for line in run.stdout.splitlines()]


@pytest.mark.skipif(memory._glibc() is None, reason="asks glibc")
def test_pages_are_used_again_within() -> None:
    sizes = (64 * MB, 1 * MB, 16 * MB)
    pages = [size // resource.getpagesize() for size in sizes]
    before, within, after = _faults(sizes)
    assert before[0] > pages[0] // 2
    assert all(n <= p // 20 for n, p in zip(within, pages, strict=True))
    assert after[0] > pages[0] // 2  # large blocks go back again
    # and such as glibc keeps of itself are kept
    assert all(n <= p // 20 for n, p in zip(after[1:], pages[1:], strict=True))
