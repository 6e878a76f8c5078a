"""Names inside a compiled directory that building, running and reading results agree on."""

from __future__ import annotations

from pathlib import Path

from shrinkc.targets import FETCHED, TARGETS, by_access

PROGRAM = {name: target.output for name, target in TARGETS.items()}
"""What ``make <target>`` leaves, relative to the compiled directory."""

INPUT_SECTION = ".sc_input"
"""The section of a SoC's program that holds the input words of a run."""

FLASH_IMAGE = Path("blobs", f"{by_access(FETCHED)[0]}.bin")
"""The content of the off-chip flash; an empty file when the program uses none."""
