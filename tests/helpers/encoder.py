"""Builds and runs ``tests/codegen/encode_harness.c`` around the encoder, on the host or in qemu-riscv32."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.importer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
ENCODE, INTERFACE = ROOT / "runtime_c/encode", ROOT / "runtime_c/include"
SUFFICES, MANY = 0xFFFFFFFF, 0xFFFFFFFE
"""Room for ids: what llm_encode_room() says; or that, and then smaller rooms."""

_SOURCES = [ROOT / "tests/codegen/encode_harness.c", ENCODE / "llm_encode.c"]
_FREESTANDING = ROOT / "runtime_c/platform/freestanding"
_WARNINGS = "-std=c11 -Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"


@dataclass(frozen=True)
class Encoder:
    """A program that encodes texts: ``command`` starts it."""

    command: tuple[str, ...]

    def run(
        self, tokenizer: Tokenizer, texts: Sequence[str | bytes], room: int = SUFFICES
    ) -> tuple[list[str], int]:
        """Return a line for each text, with ids or the error, and the bytes of stack used (0: not measured)."""
        tables = tokenizer_blob(tokenizer.encode_table(), tokenizer.vocab_size)
        return self.run_tables(tables, texts, room)

    def run_tables(
        self, tables: bytes, texts: Sequence[str | bytes], room: int = SUFFICES
    ) -> tuple[list[str], int]:
        """Like :meth:`run`, with the tables as they are."""
        data = [text.encode() if isinstance(text, str) else text for text in texts]
        done = subprocess.run(
            self.command,
            input=struct.pack("<I", len(tables))
            + tables
            + b"".join(struct.pack("<II", len(text), room) + text for text in data),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stderr.decode())
        *lines, stack = done.stdout.decode().splitlines()
        assert len(lines) == len(texts)
        return lines, int(stack.removeprefix("stack "))


def build_encoder(folder: Path, on: str = "host", *, sanitize: bool = True) -> Encoder:
    """Build the program in ``folder`` for the machine ``on``, host or qemu."""
    program = folder / f"encode-{on}"
    if on == "host":
        san = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
        flags = f"cc {_WARNINGS} {san if sanitize else '-O2'} -I{ENCODE} -I{INTERFACE}".split()
        command: tuple[str, ...] = (str(program),)
        more: list[str] = []
    else:
        flags = (
            f"riscv64-unknown-elf-gcc {_WARNINGS} -O2 -march=rv32imc_zicsr -mabi=ilp32 -ffreestanding "
            "-fno-tree-loop-distribute-patterns -ffunction-sections -fdata-sections "
            f"-I{ENCODE} -I{INTERFACE} -I{_FREESTANDING}"
        ).split()
        link = f"-nostdlib -static -Wl,--gc-sections -T {ROOT}/toolchain/rv32/link.ld"
        more = [str(_FREESTANDING / "mem.c"), *link.split()]
        command = ("qemu-riscv32", str(program))
    made = subprocess.run(
        [*flags, *map(str, _SOURCES), *more, "-o", str(program), *([] if on == "host" else ["-lgcc"])],
        capture_output=True,
        check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr.decode()
    return Encoder(command)
