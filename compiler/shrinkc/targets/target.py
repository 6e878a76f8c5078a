"""What a target is: data that checks itself, one file per target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB

WORK, COPIED, FETCHED, SWAPPED = "work", "copied", "fetched", "swapped"
"""How a program gets at a memory: the kernels work in it; the DMA copies to and from it; it is outside
the chip, and the SoC's I/O fetches from it by way of L2, or writes it as well and then nothing is there when
a program starts."""


class Memory(NamedTuple):
    """A kind of memory: what people call it, the same for tables, and how a program gets at it."""

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
"""The memories that the engine knows, by name.

What can hold weights has a blob and a value of ``enum sc_level`` of that name.
"""

L1, L2 = "l1", "l2"
"""The memories that every target has: kernels work in L1, and L2 holds what no other memory can."""


def by_access(access: str) -> tuple[str, ...]:
    """Names of the memories that a program gets at so."""
    return tuple(name for name, memory in MEMORIES.items() if memory.access == access)


def fetched(level: str) -> bool:
    """Whether what that memory holds is fetched from outside the chip."""
    return MEMORIES[level].access == FETCHED


ON_CHIP, OUTSIDE = by_access(COPIED), by_access(SWAPPED)
"""The lower memories (all but L1) that the DMA copies from, and those outside the chip that a program can write."""

MACHINES = ("host", "qemu", "gvsoc")
"""What runs programs: this machine, an emulator of one core, a simulator of whole SoCs."""


@dataclass(frozen=True)
class Level:
    """A memory of a target, one of :data:`MEMORIES`, and the ``bytes`` that the planner may fill.

    ``writable``: of weight memory, how many of them, at its end, a running program writes as well.
    """

    name: str
    bytes: int
    writable: int = 0

    @property
    def label(self) -> str:
        """For people."""
        return MEMORIES[self.name].label

    @property
    def access(self) -> str:
        """WORK, COPIED, FETCHED or SWAPPED."""
        return MEMORIES[self.name].access


@dataclass(frozen=True)
class Program:
    """How ``make <target>`` builds the program of a target.

    Its sources: the engine's and those in these folders of ``runtime_c/platform``, in which headers are
    looked for in that order.  ``isa``: -march, where it has no C library and is linked by
    ``toolchain/<target>/link.ld``; None: the machine's own compiler builds it.  ``defines``: always; ``options``:
    variable of the Makefile -> what is defined where it is set.  ``symbols``: numbers that link.ld is given.
    ``sections``: each blob has a section, and flash is no part of the program.
    """

    folders: tuple[str, ...]
    isa: str | None = None
    defines: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, int] = field(default_factory=dict)
    sections: bool = False

    @property
    def compiler(self) -> str:
        """The name of the usual one."""
        return "cc" if self.isa is None else "riscv64-unknown-elf-gcc"

    @property
    def file(self) -> str:
        """Of the program, below build/<target>."""
        return "model" if self.isa is None else "model.elf"


@dataclass(frozen=True)
class Target:
    """What a model is compiled for.

    ``levels``: its memories; the lower ones that a program does not find empty hold weights and are filled in
    that order.
    ``l1_system`` and ``l2_system``: bytes that the runtime itself takes: stacks, small state and
    layer-independent tables in L1; code, stacks and console in L2.  ``programs``: machine that runs
    its models -> the target whose program that machine runs.  ``gvsoc``: what the simulator calls it, if it
    is a SoC that it knows.  ``engines``: the names of those that multiply matrices (shrinkc/engines).
    ``code``: memories that the code of the decode path may lie in, first the one in which it does; there its
    ``code_bytes`` are no part of what the planner may fill.  Without them link.ld decides.  ``controller``: what
    starts the workers is a core like them, which has a part in a pass (SC_TEAM in C).
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

    def __post_init__(self) -> None:
        """Raises ValueError with everything that contradicts itself, or that the engine cannot do."""
        names = [v.name for v in self.levels]
        unknown = sorted({*names} - {*MEMORIES})
        own = [machine for machine, name in self.programs.items() if name == self.name]
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
                ("l1 comes first, and l2 is one of the others", names[:1] != [L1] or L2 not in names),
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
                 p.folders[:1] != (self.name,)),
                ("the host has no linker script", p.isa is None and (p.symbols or p.sections)),
                ("on a SoC every blob has its section", bool(self.gvsoc) != p.sections),
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
        """Cores that have a part in a pass."""
        return self.cores + self.controller

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The machines, its own last."""
        return tuple(self.programs)

    @property
    def machine(self) -> str:
        """The one that runs its own program."""
        return next(machine for machine, name in self.programs.items() if name == self.name)

    @property
    def l1(self) -> int:
        """Bytes of L1."""
        return self.room(L1)

    @property
    def l2(self) -> int:
        """Bytes of L2."""
        return self.room(L2)

    @property
    def stored(self) -> tuple[Level, ...]:
        """The memories that hold weights, in the order in which they are filled."""
        return tuple(v for v in self.levels if v.access in (COPIED, FETCHED))

    @property
    def on_chip(self) -> tuple[Level, ...]:
        """Those of them that nothing has to be fetched from."""
        return tuple(v for v in self.stored if v.access == COPIED)

    def has(self, name: str) -> bool:
        """Whether it has the memory ``name``."""
        return any(v.name == name for v in self.levels)

    def room(self, name: str) -> int:
        """Bytes of the memory ``name``, 0 where the target has none."""
        return next((v.bytes for v in self.levels if v.name == name), 0)

    def written(self, name: str) -> int:
        """Bytes of the lower memory ``name`` that a running program may write, 0 where there are none."""
        if name == L2 or name in OUTSIDE:
            return self.room(name)
        return next((min(v.writable, v.bytes) for v in self.levels if v.name == name), 0)

    def with_room(self, **sizes: int) -> Target:
        """A target with other sizes of memories that it has, in bytes."""
        if absent := sorted({*sizes} - {v.name for v in self.levels}):
            raise ValueError(f"target {self.name} has no {', '.join(absent)}")
        levels = tuple(replace(v, bytes=sizes.get(v.name, v.bytes)) for v in self.levels)
        return replace(self, levels=levels)

    def with_code(self, memory: str) -> Target:
        """With the code of the decode path in another one of ``code``, its bytes taken there and not where it was."""
        if memory not in self.code:
            raise ValueError(f"target {self.name} has no code in {memory}")
        if memory == self.code[0]:
            return self
        now, size = self.code[0], self.code_bytes
        moved = self.with_room(**{now: self.room(now) + size, memory: self.room(memory) - size})
        return replace(moved, code=(memory, *(name for name in self.code if name != memory)))

    @property
    def symbols(self) -> dict[str, int]:
        """Numbers that link.ld is given: the program's, the bytes of its code, and the memory that it is in (1)."""
        places = {f"SC_CODE_IN_{name.upper()}": int(name == self.code[0]) for name in self.code}
        return {
            **self.program.symbols,
            **({"SC_CODE": self.code_bytes} if self.code else {}),
            **places,
        }

    @property
    def output(self) -> Path:
        """What ``make <target>`` leaves, relative to the compiled directory."""
        return Path("build", self.name, self.program.file)
