"""Replacement of the content of one section of an ELF32 file."""

from __future__ import annotations

import struct
from pathlib import Path

from shrinkc.core.errors import BadArtifact, UsageError

_SECTION = struct.Struct("<10I")  # name, type, flags, address, file offset, size, ...
_HEADER_SHOFF = 0x20
_HEADER_SHENTSIZE = 0x2E  # then e_shnum, e_shstrndx
_NOBITS = 8


def section_place(image: bytes, name: str, path: Path) -> tuple[int, int]:
    """Return (file offset, size) of a section of the little-endian ELF32 file ``path`` with content ``image``."""
    if image[:6] != b"\x7fELF\x01\x01":
        raise BadArtifact(f"{path} is not a 32-bit little-endian ELF file.", "build it again.")
    try:
        (table,) = struct.unpack_from("<I", image, _HEADER_SHOFF)
        size, count, names = struct.unpack_from("<3H", image, _HEADER_SHENTSIZE)
        sections = [_SECTION.unpack_from(image, table + i * size) for i in range(count)]
        text = sections[names][4]
        for section in sections:
            start = text + section[0]
            if image[start : image.index(b"\0", start)] == name.encode() and section[1] != _NOBITS:
                return section[4], section[5]
    except (struct.error, IndexError, ValueError) as error:
        raise BadArtifact(f"{path} is damaged: {error}.", "build it again.") from error
    raise BadArtifact(f"{path} has no section {name}.", "build it again.")


def replace_section(source: Path, name: str, content: bytes, to: Path) -> None:
    """Write a copy of ``source`` to ``to`` with ``content`` in a section, padded with zeros."""
    image = bytearray(source.read_bytes())
    offset, size = section_place(bytes(image), name, source)
    if len(content) > size:
        raise UsageError(
            f"{len(content)} bytes do not fit the {size} bytes of {name} in {source}.",
            "give a shorter prompt, or compile with a longer context.",
        )
    image[offset : offset + size] = content.ljust(size, b"\0")
    to.write_bytes(image)
