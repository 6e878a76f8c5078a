"""Instructions that the assembler does not know have names, all in one file."""

from __future__ import annotations

import re
from pathlib import Path

RUNTIME = Path(__file__).parents[2] / "runtime_c"
ISA = RUNTIME / "include" / "sc_xpulp.h"


def test_one_file_has_encodings() -> None:
    """Only the file of the instruction set has .insn."""
    files = [p for p in RUNTIME.rglob("*") if p.suffix in (".c", ".h", ".S")]
    found = [str(p.relative_to(RUNTIME)) for p in files if ".insn" in p.read_text()]
    assert found == ["include/sc_xpulp.h"], "name the instructions of the other files in sc_xpulp.h"


def test_instructions_are_listed() -> None:
    """Sorted by name, each with its meaning, and each used."""
    lines = re.findall(r"^#define ((?:LP|P|PV)_\w+)\((.*)$", ISA.read_text(), re.MULTILINE)
    names = [name for name, _ in lines]
    assert len(names) > 40
    assert names == sorted(names, key=lambda name: name.split("_"))
    assert [name for name, rest in lines if "/* " not in rest] == []
    text = "".join(p.read_text() for p in RUNTIME.rglob("*.[ch]"))
    assert [name for name in names if len(re.findall(rf"\b{name}\b", text)) < 2] == []
