"""Mutations that know nothing of a format, and values that break the code that reads one.

A mutator takes a random generator and the bytes of a file, and returns other bytes and what it did.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

Mutator = Callable[[Random, bytes], tuple[bytes, str]]

INTEGERS = (
    0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 1000, 65535, 65536, 10**6, 10**9, 2**31 - 1, 2**31,
    -(2**31), 2**32 - 1, 2**32, 2**40, 2**53, 2**60, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64,
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 0.5, -1.0, 1e-45, 1e-38, 1e-8, 1e4, 1e38, 1e300, -1e300,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
WORDS = (
    b"",
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xc3",
    b"\xed\xa0\x80",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b"\n",
)


def truncated(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A copy that was cut short."""
    at = rng.choice((rng.randrange(len(data) + 1), rng.randrange(min(len(data), 64) + 1)))
    return data[:at], f"cut to {at} of {len(data)} bytes"


def extended(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Bytes after the end."""
    more = rng.choice((1, 7, 8, 100, len(data)))
    tail = rng.choice((bytes(more), rng.randbytes(more), data[:more]))
    return data + tail, f"{len(tail)} bytes more"


def flipped(rng: Random, data: bytes) -> tuple[bytes, str]:
    """Bits that turned."""
    out = bytearray(data)
    places = []
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            at, bit = rng.randrange(len(out)), rng.randrange(8)
            out[at] ^= 1 << bit
            places.append(f"{at}.{bit}")
    return bytes(out), f"bits {', '.join(places)} flipped"


def replaced(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A range of bytes that is something else, of another length perhaps."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((0, 1, 2, 4, 8, 64)))
    other = rng.choice((*WORDS, rng.randbytes(rng.choice((1, 4, 16))), bytes(end - at)))
    return data[:at] + other + data[end:], f"bytes {at} to {end} are {other[:20]!r}"


def repeated(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A range that comes twice, or is missing."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 4, 32, 512)))
    if rng.random() < 0.5:
        return data[:at] + data[end:], f"bytes {at} to {end} are missing"
    return data[:end] + data[at:], f"bytes {at} to {end} come twice"


def word(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A number of 2, 4 or 8 bytes, where headers have them or anywhere, with a value at some limit."""
    size = rng.choice((2, 4, 4, 8, 8))
    if len(data) < size:
        return extended(rng, data)
    near = min(len(data) - size, 256)
    at = rng.choice((rng.randrange(near + 1) // 4 * 4, rng.randrange(len(data) - size + 1)))
    new, value = number(rng, size)
    return data[:at] + new + data[at + size :], f"{size} bytes at {at} are {value}"


def number(rng: Random, size: int) -> tuple[bytes, int | float]:
    """``size`` bytes of an integer or a float at some limit."""
    if size >= 4 and rng.random() < 0.2:
        real = rng.choice(FLOATS)
        try:
            return struct.pack("<f" if size == 4 else "<d", real), real
        except OverflowError:
            real = float("inf")
            return struct.pack("<f", real), real
    value = rng.choice(INTEGERS) % (1 << 8 * size)
    return value.to_bytes(size, "little"), value


BLIND: tuple[Mutator, ...] = (truncated, extended, flipped, replaced, repeated, word)


def blind(rng: Random, data: bytes) -> tuple[bytes, str]:
    """One of them."""
    return rng.choice(BLIND)(rng, data)
