"""Classes that describe a target, with validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB

WORK, COPIED, FETCHED, SWAPPED = "work", "copied", "fetched", "swapped"
"""Access to a memory.  WORK: kernels compute in it.  COPIED: the DMA copies to and from it.  FETCHED: off-chip,
the SoC's I/O reads it through L2.  SWAPPED: off-chip, the I/O also writes it, and it is empty at the start."""


class Memory(NamedTuple):
    """Kind of memory: name in text, name in tables, and access."""

    label: str
    short: str
    access: str


MEMORIES = {
    "l1": Memory("L1", "L1", WORK),
    "l2": Memory("L2", "L2", COPIED),
    "wmem": Memory("weight memory", "weight mem.", COPIED),
    "flash": Memory("flash", "flash", FETCHED),
    "hyperram": Memory("HyperRAM", "HyperRAM", SWAPPED),
}
"""Supported memories by name.

A memory that can hold weights has a blob and a value of ``enum sc_level`` of that name.
"""

L1, L2 = "l1", "l2"
"""Memories of every target: kernels compute in L1; L2 holds data that no other memory can hold."""


MAPPED = "wmem"
"""Memory of a board that holds code and constants, and is read in place."""

ON_BOARD = {L1: Memory("RAM", "RAM", WORK), MAPPED: Memory("flash", "flash", COPIED)}
"""Memories of a board: RAM is its only working memory, and flash holds code and constants."""


def memory_kind(level: str, *, board: bool) -> Memory:
    """Return how people call the memory ``level`` of a board or of another target."""
    return ON_BOARD.get(level, MEMORIES[level]) if board else MEMORIES[level]


def by_access(access: str) -> tuple[str, ...]:
    """Return the names of memories with this access."""
    return tuple(name for name, memory in MEMORIES.items() if memory.access == access)


def fetched(level: str) -> bool:
    """Return whether ``level`` is off-chip."""
    return MEMORIES[level].access == FETCHED


ON_CHIP, OUTSIDE = by_access(COPIED), by_access(SWAPPED)
"""Memories that the DMA copies from, and off-chip memories that a program can write."""

MACHINES = ("host", "qemu", "gvsoc")
"""Machines that run programs: this machine, an emulator of one core, a simulator of whole SoCs."""


@dataclass(frozen=True)
class Level:
    """Memory of a target, one of :data:`MEMORIES`.  ``bytes``: the size that the planner may fill.

    ``writable``: for weight memory, the number of bytes at its end that a running program can write.
    """

    name: str
    bytes: int
    writable: int = 0

    @property
    def label(self) -> str:
        """Return the name for text."""
        return MEMORIES[self.name].label

    @property
    def access(self) -> str:
        """Return WORK, COPIED, FETCHED or SWAPPED."""
        return MEMORIES[self.name].access


class Image(NamedTuple):
    """File for a programmer: content of one memory before the start.

    ``sections``: those of the program that it holds, in the order of their load addresses.
    """

    file: str
    about: str
    sections: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """Build settings of a target's program, for ``make <name>``.

    ``folders``: parts of ``runtime_c/platform`` with sources; headers are searched in this order.  ``isa``: -march of a
    program without a C library, linked by ``toolchain/<name>/link.ld``; None: built by the machine's own compiler.
    ``defines``: always set.  ``options``: variable of the Makefile -> definition if it is set.  ``symbols``: numbers
    passed to link.ld.  ``stacks``: whose stack -> bytes that link.ld reserves for it.  ``sections``: each blob has a
    section, and off-chip flash is not part of the program.  ``images``: what ``make image`` writes.  ``emulator``:
    command line of the QEMU that runs it; ``{}`` stands for the program's file.
    """

    folders: tuple[str, ...]
    isa: str | None = None
    defines: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, int] = field(default_factory=dict)
    stacks: Mapping[str, int] = field(default_factory=dict)
    sections: bool = False
    images: tuple[Image, ...] = ()
    emulator: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the program's name: its first folder."""
        return self.folders[0]

    @property
    def compiler(self) -> str:
        """Return the name of the default compiler."""
        return "cc" if self.isa is None else "riscv64-unknown-elf-gcc"

    @property
    def file(self) -> str:
        """Return the program's file name in build/<name>."""
        return "model" if self.isa is None else "model.elf"


@dataclass(frozen=True)
class Target:
    """Chip or machine to compile for.

    ``levels``: memories.  Lower memories that keep their content before the start hold weights; they are filled in
    this order.  ``l1_system`` and ``l2_system``: bytes reserved for the runtime: stacks, small state and
    layer-independent tables in L1; code, stacks and console in L2.  ``programs``: machine that runs the
    models -> name of the program that this machine runs.  ``gvsoc``: the SoC's name in the simulator, if
    supported.  ``engines``: names of the engines that multiply matrices (shrinkc/engines).
    ``code``: memories allowed for the code of the decode path, the default first; its ``code_bytes`` are already
    excluded there.  If empty, link.ld decides.  ``controller``: the core that starts the workers is of their kind
    and computes too (SC_TEAM in C).
    ``board``: its memories are RAM (level "l1") and mapped flash (level "wmem").  The core executes code and reads
    weights in place in flash.  ``l1_system`` is then stack and variables in RAM, ``l2_system`` code in flash.
    """

    name: str
    title: str
    cores: int
    levels: tuple[Level, ...]
    l1_system: int
    l2_system: int
    programs: Mapping[str, str]
    program: Program
    gvsoc: str | None = None
    engines: tuple[str, ...] = ("cores",)
    code: tuple[str, ...] = ()
    code_bytes: int = 0
    controller: bool = False
    board: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError, which lists contradictions and unsupported values."""
        names = [v.name for v in self.levels]
        unknown = sorted({*names} - {*MEMORIES})
        own = [machine for machine, name in self.programs.items() if name == self.program.name]
        sizes = {
            "l1_system": self.l1_system, "l2_system": self.l2_system, "code_bytes": self.code_bytes,
        }  # fmt: skip
        sizes |= {v.name: v.bytes for v in self.levels}
        p = self.program
        faults = [
            fault
            for fault, wrong in (
                (f"the engine knows no {', '.join(unknown)}, only {', '.join(MEMORIES)}", unknown),
                ("a memory occurs twice", len({*names}) < len(names)),
                ("l1 comes first, and l2 is one of the others",
                 names[:1] != [L1] or (L2 not in names and not self.board)),
                ("a board has RAM and flash, and one core",
                 self.board and (names != list(ON_BOARD) or self.team > 1)),
                (f"{self.cores} cores", self.cores < 1),
                *((f"{name} has {size} bytes", size < 0) for name, size in sizes.items()),
                *((f"{v.name} has {v.writable} writable bytes", v.writable < 0) for v in self.levels),
                ("wmem alone is writable in part",
                 any(v.writable and v.name != "wmem" for v in self.levels)),
                (f"machines are {', '.join(MACHINES)}", not {*self.programs} <= {*MACHINES}),
                ("every target has a program for host", self.programs.get("host") != "host"),
                ("one machine runs the target's own program", len(own) != 1),
                ("gvsoc runs it, or it has no name there", (own == ["gvsoc"]) != bool(self.gvsoc)),
                ("headers are looked for in the target's own folder first",
                 p.name != self.name and not self.board),
                ("qemu runs a program with its command line",
                 (own == ["qemu"]) != bool(p.emulator)),
                ("the host has no linker script", p.isa is None and (p.symbols or p.sections)),
                ("on a chip every blob has its section", bool(self.gvsoc or self.board) != p.sections),
                ("code lies in memories that the DMA copies from",
                 not {*self.code} <= {*ON_CHIP}),
                ("code has memories and bytes, or neither", bool(self.code) != bool(self.code_bytes)),
            )
            if wrong
        ]  # fmt: skip
        if faults:
            raise ValueError(f"target {self.name}: {'; '.join(faults)}")

    @property
    def team(self) -> int:
        """Return the number of cores that compute in a forward pass."""
        return self.cores + self.controller

    @property
    def runs_on(self) -> tuple[str, ...]:
        """Return the machines that run the models, the target's own last."""
        return tuple(self.programs)

    @property
    def machine(self) -> str:
        """Return the machine that runs the target's own program."""
        return next(machine for machine, name in self.programs.items() if name == self.program.name)

    @property
    def asked(self) -> str:
        """Return the options that ask for it."""
        return f"--target {self.name}" + (" --ram SIZE --flash SIZE" if self.board else "")

    @property
    def l1(self) -> int:
        """Return the bytes of L1."""
        return self.room(L1)

    @property
    def l2(self) -> int:
        """Return the bytes of L2."""
        return self.room(L2)

    @property
    def stored(self) -> tuple[Level, ...]:
        """Return the memories that hold weights, in the order in which they are filled."""
        return tuple(v for v in self.levels if v.access in (COPIED, FETCHED))

    @property
    def on_chip(self) -> tuple[Level, ...]:
        """Return the on-chip memories that hold weights."""
        return tuple(v for v in self.stored if v.access == COPIED)

    def has(self, name: str) -> bool:
        """Return whether the target has the memory ``name``."""
        return any(v.name == name for v in self.levels)

    def room(self, name: str) -> int:
        """Return the bytes of the memory ``name``, 0 if the target does not have it."""
        return next((v.bytes for v in self.levels if v.name == name), 0)

    def written(self, name: str) -> int:
        """Return the bytes of the lower memory ``name`` that a running program can write."""
        if name == L2 or name in OUTSIDE:
            return self.room(name)
        return next((min(v.writable, v.bytes) for v in self.levels if v.name == name), 0)

    def kind(self, level: str) -> Memory:
        """Return how people call the memory ``level``."""
        return memory_kind(level, board=self.board)

    def with_room(self, **sizes: int) -> Target:
        """Return a copy with other memory sizes in bytes."""
        if absent := sorted({*sizes} - {v.name for v in self.levels}):
            raise ValueError(f"target {self.name} has no {', '.join(absent)}")
        levels = tuple(replace(v, bytes=sizes.get(v.name, v.bytes)) for v in self.levels)
        return replace(self, levels=levels)

    def with_code(self, memory: str) -> Target:
        """Return a copy with the code of the decode path (and its bytes) in another memory of ``code``."""
        if memory not in self.code:
            raise ValueError(f"target {self.name} has no code in {memory}")
        if memory == self.code[0]:
            return self
        now, size = self.code[0], self.code_bytes
        moved = self.with_room(**{now: self.room(now) + size, memory: self.room(memory) - size})
        return replace(moved, code=(memory, *(name for name in self.code if name != memory)))

    @property
    def symbols(self) -> dict[str, int]:
        """Return the numbers passed to link.ld: the program's, bytes of hot code, and a 1 for the memory it is in."""
        places = {f"SC_CODE_IN_{name.upper()}": int(name == self.code[0]) for name in self.code}
        return {
            **self.program.symbols,
            **({"SC_CODE": self.code_bytes} if self.code else {}),
            **places,
        }

    @property
    def output(self) -> Path:
        """Return the path of the built program, relative to the compiled directory."""
        return Path("build", self.program.name, self.program.file)
