"""Mutations of safetensors and GGUF files that keep most of the file's word."""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator
from random import Random
from typing import Any, NamedTuple

from .blind import FLOATS, INTEGERS, Mutator, blind, number
from .trees import dump_json, mutate_tree

DTYPES = (
    "BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "I64", "U64", "F64",
)  # fmt: skip


class Tensors(NamedTuple):
    """A safetensors file in parts: the header's object, and what follows it."""

    header: dict[str, Any]
    data: bytes

    @property
    def names(self) -> list[str]:
        return [name for name in self.header if name != "__metadata__"]

    def written(self) -> bytes:
        text = dump_json(self.header)
        return len(text).to_bytes(8, "little") + text + self.data


def parsed(data: bytes) -> Tensors | None:
    """The parts; None where an earlier mutation left none."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        whole = isinstance(header, dict) and all(
            isinstance(t, dict) and {"dtype", "shape", "data_offsets"} <= set(t)
            for name, t in header.items()
            if name != "__metadata__"
        )
    except (ValueError, RecursionError, OverflowError):
        return None
    return Tensors(header, data[8 + size :]) if whole and header else None


def safetensors(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A header that says something else, tensors that changed, a length that is wrong."""
    parts = parsed(data)
    if parts is None or not parts.names:
        return blind(rng, data)
    ways = (
        _header_value,
        _length,
        _renamed,
        _retyped,
        _reshaped,
        _moved,
        _dropped,
        _values,
        _values,
        _inner,
    )
    try:
        return rng.choice(ways)(rng, parts)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
        return blind(rng, data)  # an earlier mutation left nothing that could be changed so


def _header_value(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    said = mutate_tree(rng, parts.header)
    return parts.written(), f"header: {said}"


def _length(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    right = len(dump_json(parts.header))
    wrong = rng.choice((right + 1, right - 1, right + 8, right // 2, *INTEGERS)) % (1 << 64)
    return wrong.to_bytes(8, "little") + parts.written()[8:], f"header length {wrong}, not {right}"


def _renamed(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    name = rng.choice(parts.names)
    other = rng.choice(
        (*parts.names, name + ".x", "", name.replace("0", "1"), name.rpartition(".")[0])
    )
    header = {(other if key == name else key): value for key, value in parts.header.items()}
    return Tensors(header, parts.data).written(), f"{name} is called {other!r}"


def _retyped(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    name, kind = rng.choice(parts.names), rng.choice((*DTYPES, "F4", "f32", "C64"))
    parts.header[name]["dtype"] = kind
    return parts.written(), f"{name} is of type {kind}"


def _reshaped(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    """As many values in another shape, or a claim that the offsets do not bear out."""
    name = rng.choice(parts.names)
    shape = list(parts.header[name]["shape"])
    flat = 1
    for size in shape:
        flat *= size
    other = rng.choice((
        shape[::-1], [flat], [1, *shape], [*shape, 1], [], [flat // 2, 2], [0, *shape], [2**60, 2**60],
        [2**31, 2**31, 2**31, 0], [-1, -flat], [*shape[:-1], shape[-1] + 1],
    ))  # fmt: skip
    parts.header[name]["shape"] = other
    return parts.written(), f"{name} has the shape {other}"


def _moved(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    """Offsets that overlap, leave a gap, are in the wrong order, or lie outside."""
    name = rng.choice(parts.names)
    begin, end = parts.header[name]["data_offsets"]
    there = parts.header[rng.choice(parts.names)]["data_offsets"]
    size = len(parts.data)
    other = rng.choice((
        there, [end, begin], [begin + 4, end + 4], [begin, begin], [size, size + end - begin], [-4, end],
        [begin, 2**62], [2**63, 2**63 + end - begin], [begin, end - 1], [begin],
    ))  # fmt: skip
    parts.header[name]["data_offsets"] = list(other)
    return parts.written(), f"{name} lies at {list(other)}"


def _dropped(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    """A whole file of other tensors: one is missing, or there twice, or has a row less."""
    gone, how = rng.choice(parts.names), rng.choice(("missing", "there twice", "shorter"))
    header: dict[str, Any] = {k: v for k, v in parts.header.items() if k == "__metadata__"}
    data = b""
    for name in parts.names:
        about = dict(parts.header[name])
        begin, end = about["data_offsets"]
        values = parts.data[begin:end]
        names = [name]
        if name == gone:
            if how == "missing":
                continue
            if how == "there twice":
                names = [name, f"{name}.copy"]
            elif about["shape"] and about["shape"][0] > 0:
                values = values[: len(values) - len(values) // about["shape"][0]]
                about["shape"] = [about["shape"][0] - 1, *about["shape"][1:]]
        for each in names:
            header[each] = {**about, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
    return Tensors(header, data).written(), f"{gone} is {how}"


def _values(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    """Values that no model has, or zeros, or noise, in a part of a tensor or all of it."""
    name = rng.choice(parts.names)
    begin, end = parts.header[name]["data_offsets"]
    size = {"F32": 4, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "I8": 1}.get(
        parts.header[name]["dtype"], 2
    )
    count = (end - begin) // size
    first = rng.randrange(count)
    many = min(count - first, rng.choice((1, 1, 1, count, count)))
    kind = rng.choice(("one", "one", "zeros", "noise", "ones"))
    if kind == "one":
        new = _value(rng, parts.header[name]["dtype"], size)
    else:
        new = {"zeros": bytes(size), "ones": b"\xff" * size, "noise": rng.randbytes(size)}[kind]
    at = begin + first * size
    block = new * many if kind != "noise" else rng.randbytes(size * many)
    data = parts.data[:at] + block + parts.data[at + size * many :]
    return Tensors(parts.header, data).written(), f"{many} values of {name} are {new.hex()}"


def _value(rng: Random, dtype: str, size: int) -> bytes:
    """A float at some limit in ``dtype``."""
    real = rng.choice((*FLOATS, 1e6, -65504.0, 3.4e38))
    try:
        if dtype == "F32":
            return struct.pack("<f", real)
        if dtype == "F16":
            return struct.pack("<e", real)
        if dtype == "BF16":
            return struct.pack("<f", real)[2:]
    except OverflowError:
        return b"\x00\x7f" * (size // 2)
    return number(rng, size)[0] if size > 1 else rng.randbytes(1)


def _inner(rng: Random, parts: Tensors) -> tuple[bytes, str]:
    """JSON within the metadata, such as the graph of the integer model."""
    about = parts.header.get("__metadata__")
    for key, value in (about or {}).items():
        if isinstance(value, str) and value.startswith("{"):
            tree = json.loads(value)
            said = mutate_tree(rng, tree)
            about[key] = dump_json(tree).decode("utf-8", "replace")
            return parts.written(), f"{key}: {said}"
    return _header_value(rng, parts)


# ---- GGUF ----


class Spot(NamedTuple):
    """A number in a GGUF file: where it is, how long, and what it says."""

    at: int
    size: int
    what: str


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def spots(data: bytes) -> Iterator[Spot]:
    """Every count, length, type, value and offset before the tensors' data, as far as they can be read."""
    at = 0

    def read(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise ValueError
        at += size
        return int.from_bytes(data[at - size : at], "little")

    def named(what: str) -> Generator[Spot, None, str]:
        nonlocal at
        yield Spot(at, 8, f"length of a {what}")
        length = read(8)
        # after a changed length the rest of the file could be one name, which each of its spots would repeat
        text = data[at : at + min(length, 100)].decode("utf-8", "replace")
        yield Spot(at, min(length, 8), f"{what} {text}")
        at += length
        return text

    def value(kind: int, key: str) -> Iterator[Spot]:
        nonlocal at
        if kind == _STRING:
            yield Spot(at, 8, f"length of {key}")
            length = read(8)
            yield Spot(at, min(length, 8), f"text of {key}")
            at += length
        elif kind == _ARRAY:
            yield Spot(at, 4, f"type of {key}'s values")
            inner = read(4)
            yield Spot(at, 8, f"number of {key}'s values")
            for _ in range(read(8)):
                yield from value(inner, key)
        else:
            yield Spot(at, _SIZES[kind], f"value of {key}")
            read(_SIZES[kind])

    try:
        yield from (Spot(0, 4, "magic"), Spot(4, 4, "version"))
        yield from (Spot(8, 8, "number of tensors"), Spot(16, 8, "number of entries"))
        at = 8
        tensors, entries = read(8), read(8)
        for _ in range(entries):
            key = yield from named("key")
            yield Spot(at, 4, f"type of {key}")
            yield from value(read(4), key)
        for _ in range(tensors):
            name = yield from named("name")
            yield Spot(at, 4, f"dimensions of {name}")
            for _ in range(read(4)):
                yield Spot(at, 8, f"a size of {name}")
                read(8)
            yield Spot(at, 4, f"type of {name}")
            read(4)
            yield Spot(at, 8, f"offset of {name}")
            read(8)
        yield Spot(at, 0, "end of the tables")
    except (ValueError, KeyError, RecursionError):
        return


def gguf(rng: Random, data: bytes) -> tuple[bytes, str]:
    """One number of the tables is another, or values of a tensor's blocks are."""
    found = list(spots(data))
    if not found:
        return blind(rng, data)
    if rng.random() < 0.2:
        return _blocks(rng, data, found[-1].at)
    # of the many tokens and merges only a few
    rare = [s for s in found if ".tokens" not in s.what and ".merges" not in s.what]
    spot = rng.choice(rare if rare and rng.random() < 0.8 else found)
    if not spot.size:
        return blind(rng, data)
    old = int.from_bytes(data[spot.at : spot.at + spot.size], "little")
    values = (old + 1, old - 1, old * 2, old // 2, rng.choice(INTEGERS), rng.randrange(40))
    new = rng.choice(values) % (1 << 8 * spot.size)
    raw = new.to_bytes(spot.size, "little")
    if spot.size in (4, 8) and spot.what.startswith("value") and rng.random() < 0.3:
        raw, _ = number(rng, spot.size)
    return (
        data[: spot.at] + raw + data[spot.at + spot.size :],
        f"{spot.what} is {int.from_bytes(raw, 'little')}, not {old}",
    )


def _blocks(rng: Random, data: bytes, begin: int) -> tuple[bytes, str]:
    if begin >= len(data) - 4:
        return blind(rng, data)
    at = rng.randrange(begin, len(data) - 4) // 2 * 2
    new = rng.choice(
        (
            b"\xff\x7f",
            b"\x00\x7c",
            b"\x00\xfc",
            b"\xff\x7b",
            b"\0\0",
            b"\0\0\xc0\x7f",
            b"\0\0\x80\x7f",
        )
    )
    return data[:at] + new + data[at + len(new) :], f"values at {at} are {new.hex()}"


SAFETENSORS: tuple[Mutator, ...] = (safetensors, safetensors, safetensors, blind)
GGUF: tuple[Mutator, ...] = (gguf, gguf, gguf, blind)
