"""Builds and runs ``tests/codegen/encode_harness.c`` around the encoder, on host, qemu-riscv32 or GVSoC."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shrinkc.build.tools import gvsoc_environment, require_tool
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.importer import Tokenizer
from shrinkc.targets import PULP_OPEN, SIRACUSA, Target

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "runtime_c"
ENCODE, INTERFACE = RUNTIME / "encode", RUNTIME / "include"
SUFFICES, MANY = 0xFFFFFFFF, 0xFFFFFFFE
"""Room for ids: what llm_encode_room() says; or that, and then smaller rooms."""
CHIPS = {"siracusa": SIRACUSA, "pulp-open": PULP_OPEN}

_WARNINGS = "-std=c11 -Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"
_HARNESS = (ROOT / "tests/codegen/encode_harness.c", ENCODE / "llm_encode.c")
_BARE = (
    f"riscv64-unknown-elf-gcc -std=c11 -Wall -Wextra -Werror -O2 -mabi=ilp32 -ffreestanding "
    "-fno-tree-loop-distribute-patterns -ffunction-sections -fdata-sections -nostdlib -static "
    f"-Wl,--gc-sections -Wl,--no-warn-rwx-segments -I{RUNTIME}/platform/freestanding"
)


@dataclass(frozen=True)
class Encoded:
    """``lines``: ids of each text, or the error.  ``stack``: most bytes that a call used (0 on the host).
    ``cycles``: of all calls (0 except on chips)."""

    lines: list[str]
    stack: int
    cycles: int


@dataclass(frozen=True)
class Encoder:
    """A program that encodes texts.  ``answer`` returns its stdout for its stdin."""

    answer: Callable[[bytes], str]

    def run(
        self, tokenizer: Tokenizer, texts: Sequence[str | bytes], room: int = SUFFICES
    ) -> Encoded:
        """Encode ``texts`` with the tables of ``tokenizer``."""
        tables = tokenizer_blob(tokenizer.encode_table(), tokenizer.vocab_size)
        return self.run_tables(tables, texts, room)

    def run_tables(
        self, tables: bytes, texts: Sequence[str | bytes], room: int = SUFFICES
    ) -> Encoded:
        """Encode ``texts`` with ``tables``."""
        data = [text.encode() if isinstance(text, str) else text for text in texts]
        parts = [struct.pack("<I", len(tables)), tables]
        for text in data:
            parts += [struct.pack("<II", len(text), room), text]
        *lines, last = self.answer(b"".join(parts)).splitlines()
        assert len(lines) == len(texts)
        _, stack, _, cycles = last.split()
        return Encoded(lines, int(stack), int(cycles))


def build_encoder(
    folder: Path, on: str = "host", *, sanitize: bool = True, without: Sequence[str] = ()
) -> Encoder:
    """Build the program in ``folder`` for ``on``: host, qemu, siracusa or pulp-open.

    ``without``: on the host, macros that leave out steps.
    """
    if on in CHIPS:
        return Encoder(lambda content: _on_gvsoc(folder, CHIPS[on], content))
    program = folder / f"encode-{on}"
    if on == "host":
        san = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
        less = " ".join(["-Wno-unused-function", *(f"-D{name}" for name in without)])
        _compile(
            f"cc {_WARNINGS} {san if sanitize else '-O2'} {less if without else ''}",
            _HARNESS,
            program,
        )
        return Encoder(lambda content: _output([program], content))
    sources = (*_HARNESS, RUNTIME / "platform/freestanding/mem.c")
    link = f"-march=rv32imc_zicsr -T {ROOT}/toolchain/rv32/link.ld"
    _compile(f"{_BARE} {link}", sources, program, "-lgcc")
    return Encoder(lambda content: _output(["qemu-riscv32", program], content))


def _compile(command: str, sources: Sequence[Path], program: Path, *libraries: str) -> None:
    includes = [f"-I{ENCODE}", f"-I{INTERFACE}"]
    full = [*command.split(), *includes, *map(str, sources), "-o", str(program), *libraries]
    made = subprocess.run(full, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def _output(
    command: Sequence[str | Path], content: bytes, environment: dict[str, str] | None = None
) -> str:
    done = subprocess.run(command, input=content, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr[-1000:])
    return done.stdout.decode()


def _on_gvsoc(folder: Path, target: Target, content: bytes) -> str:
    """Build a program that has its input in L2, and run it: main() on the controller of the cluster."""
    (folder / "input.bin").write_bytes(content)
    (folder / "input.S").write_text(
        '.section .sc_input, "a"\n.globl input, input_end\n'
        f'input: .incbin "{folder}/input.bin"\ninput_end:\n'
    )
    runs = target.program
    places = [RUNTIME / "platform" / name for name in runs.folders]
    pulp = RUNTIME / "platform/pulp"
    flags = [
        _BARE,
        f"-march={runs.isa} -DON_PULP -DSC_RAM_BYTES=0 -T {ROOT}/toolchain/{target.name}/link.ld",
    ]
    flags += [f"-D{define}" for define in runs.defines]
    flags += [f"-I{place}" for place in (*places, RUNTIME / "program")]
    flags += [f"-DSC_HAS_{level.name.upper()}" for level in target.stored]
    flags += [f"-Wl,--defsym={name}={value}" for name, value in target.symbols.items()]
    sources = (
        *_HARNESS, *(RUNTIME / f"platform/freestanding/{name}.c" for name in ("mem", "messages")),
        pulp / "crt0.S", pulp / "start.c", pulp / "port.c", folder / "input.S",
    )  # fmt: skip
    program = folder / f"encode-{target.name}"
    _compile(" ".join(flags), sources, program, "-lgcc")
    (folder / "work").mkdir(exist_ok=True)
    launcher = require_tool("gvsoc", os.environ, target.name)
    command = [
        launcher,
        f"--target={target.gvsoc}",
        f"--work-dir={folder}/work",
        f"--binary={program}",
        "run",
    ]
    said = _output(command, b"", dict(gvsoc_environment(launcher, os.environ)))
    return "".join(f"{line}\n" for line in said.splitlines() if not line.startswith("gapy "))
