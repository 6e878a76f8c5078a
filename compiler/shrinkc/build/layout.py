"""Names inside a compiled directory that building, running and reading results agree on."""

from __future__ import annotations

from pathlib import Path

PROGRAM = {
    "host": Path("build/host/model"),
    "rv32": Path("build/rv32/model.elf"),
    "siracusa": Path("build/siracusa/model.elf"),
}
"""What ``make <target>`` leaves, relative to the compiled directory."""

INPUT_SECTION = ".sc_input"
"""The section of the siracusa program that holds the input words of a run."""

FLASH_IMAGE = Path("blobs/flash.bin")
"""The content of the off-chip flash; an empty file when the program uses none."""
