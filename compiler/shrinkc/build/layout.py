"""Paths and names in a compiled directory that are shared by building, running and reading results."""

from __future__ import annotations

from pathlib import Path

from shrinkc.targets import FETCHED, PROGRAMS, by_access

PROGRAM = {name: target.output for name, target in PROGRAMS.items()}
"""Program -> path of its built program, relative to the compiled directory."""

INPUT_SECTION = ".sc_input"
"""Section of a SoC's program with the input words of a run."""

FLASH_IMAGE = Path("blobs", f"{by_access(FETCHED)[0]}.bin")
"""Content of the off-chip flash; an empty file if the program does not use it."""
