"""`make image`: files for a programmer hold the program byte for byte, at the addresses that the table says."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from program import INPUT_WORDS, make_directory, pattern
from test_board import BYTES, SOURCE

from conftest import ENV, need
from shrinkc.build import PROGRAM
from shrinkc.simulate import run_program
from shrinkc.simulate.elf import section_place
from shrinkc.targets import CHIPS, KIB, TARGETS, board_of

BOARD = board_of(64 * KIB, 256 * KIB)


def loaded(elf: bytes) -> dict[int, bytes]:
    """Load address -> content of each segment."""
    (at,) = struct.unpack_from("<I", elf, 0x1C)
    size, count = struct.unpack_from("<2H", elf, 0x2A)
    found = {}
    for i in range(count):
        kind, offset, _, address, in_file, _, _, _ = struct.unpack_from("<8I", elf, at + i * size)
        if kind == 1 and in_file:
            found[address] = elf[offset : offset + in_file]
    return found


def of_hex(text: str) -> dict[int, int]:
    """Address -> byte of an Intel HEX file, whose checksums are right."""
    found, base = dict[int, int](), 0
    for line in text.split():
        count, high, low, kind, *data = bytes.fromhex(line.removeprefix(":"))
        assert len(data) == count + 1 and (count + high + low + kind + sum(data)) % 256 == 0
        if kind == 0:
            found |= {base + 256 * high + low + i: byte for i, byte in enumerate(data[:-1])}
        elif kind in (2, 4):
            base = (256 * data[0] + data[1]) << (4 if kind == 2 else 16)
    return found


def images(out: Path) -> dict[int, bytes]:
    """Address -> content of the raw files; the HEX files say the same."""
    done = subprocess.run(
        ["make", "-s", "-C", out, "image"], env=ENV, capture_output=True, text=True, check=True
    )
    (folder,) = (out / "build").glob("*/image")
    assert done.stdout == (folder / "image.txt").read_text()
    head, *rows, start = done.stdout.splitlines()
    assert head.split() == ["address", "bytes", "files", "content"]
    assert int(start.split()[0], 16) % 2 == 0 and "first instruction" in start
    found, named = {}, {"image.txt"}
    for row in rows:
        address, size, raw, text, _ = row.split(maxsplit=4)
        content = (folder / raw).read_bytes()
        assert len(content) == int(size) > 0
        at = int(address, 16)
        written = of_hex((folder / text).read_text())
        assert {k: content[k - at] for k in written} == written
        assert not any(content[k] for k in {*range(len(content))} - {k - at for k in written})
        found[at] = content
        named |= {raw, text}
    assert {f.name for f in folder.iterdir()} == named
    return found


def at(found: dict[int, bytes], address: int, size: int) -> bytes:
    """Bytes that the images have at an address."""
    for begin, content in found.items():
        if begin <= address and address + size <= begin + len(content):
            return content[address - begin : address - begin + size]
    raise AssertionError(f"nothing at {address:x}")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "siracusa" else pytest.mark.slow) for n in CHIPS]
)
def test_a_chips_memories(tmp_path: Path, name: str) -> None:
    if shutil.which("riscv64-unknown-elf-gcc") is None:
        pytest.skip("riscv64-unknown-elf-gcc is missing")
    target = TARGETS[name]
    out = make_directory(tmp_path / "a folder", target=target)
    found = images(out)
    program = out / PROGRAM[name]
    elf = program.read_bytes()
    segments = loaded(elf)
    assert segments
    for address, content in segments.items():
        assert at(found, address, len(content)) == content
    flash = (out / "blobs/flash.bin").read_bytes()
    assert found[0] == flash == pattern(3, len(flash))
    assert len(found) == len(target.program.images) + 1
    offset, size = section_place(elf, ".sc_l2_blob", program)
    assert elf[offset : offset + size] in found[0x1C010000]
    (out / "blobs/flash.bin").write_bytes(b"")
    assert 0 not in images(out)


def test_a_boards_flash_runs(tmp_path: Path) -> None:
    """Written to the emulator's flash chip, without the ELF file, the program does what it does otherwise."""
    need("virt")
    out = make_directory(tmp_path / "out", sizes={"wmem": BYTES}, source=SOURCE, target=BOARD)
    ((address, content),) = images(out).items()
    assert address == 0x20000000 and pattern(1, BYTES) in content
    chip = tmp_path / "chip.bin"
    chip.write_bytes(content)
    with chip.open("r+b") as file:
        file.truncate(32 << 20)  # one of the chips of the emulated machine
    *command, loader, _ = BOARD.program.emulator
    assert loader == "-device"
    command += ["-drive", f"if=pflash,format=raw,readonly=on,file={chip}"]
    done = subprocess.run(
        command, input=bytes(4 * INPUT_WORDS), env=ENV, capture_output=True, timeout=60
    )
    lines = done.stdout.decode().splitlines()
    other = run_program(out, "qemu", [0] * INPUT_WORDS, env=ENV, timeout_s=60, target=BOARD)
    assert (done.returncode, lines) == (other.exit_code, other.lines)
    assert lines[:5] == ["zeroed 1", "values 29", "wrong 0", "in flash 1", "in RAM 1"]


@pytest.mark.parametrize("name", ["host", "rv32"])
def test_programs_of_an_operating_system_have_none(tmp_path: Path, name: str) -> None:
    out = make_directory(tmp_path / "out", target=TARGETS[name])
    assert "make image" not in (out / "Makefile").read_text()
