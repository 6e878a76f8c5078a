"""Freed memory stays with the process while it is asked to, and no longer."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

ASK = """
import resource
from shrinkc.core.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with freed_memory_kept():
    faults()
    within = faults()
faults()
print(within, faults())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or sys.maxsize < 2**32, reason="asks glibc, which Linux has"
)
def test_pages_are_used_again_within() -> None:
    run = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    within, after = map(int, run.stdout.split())
    pages = (64 << 20) // resource.getpagesize()
    assert within < pages // 100
    assert after > pages // 2
