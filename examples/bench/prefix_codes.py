"""Joint prefix codes of small integers, and the files of weight_codes/decode.h: the encoder of the weight codes.

A symbol is a tuple of 1 to 4 consecutive weights of a row.  The code has the tuples that are frequent; their code words
have at most 12 bits (package-merge, canonical).  Weights are rounded to the tuple of the least squared error plus the
price of its bits.  A weight that is far from its tuple gets a correction of 2 bytes.  So a decoder has no escape, and
needs no branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Ints = np.ndarray  # integers of any width
ROWS = 8  # of a block
MAX_BITS = 12
LOAD_BITS = 23  # that the symbols decoded from one load may have
CORRECTION_BITS = 16
OFFSET = 128  # makes weights unsigned
# Squared error, in steps, that is worth a bit: the slope of 2^(-2 bits) / 12, the error of rounding with many bits
PRICE = 2 * np.log(2) / 12
ROW_PAIRS, ROW_THREE, ROW_FOUR, QUADS, CODEBOOK = 2, 3, 4, 5, 6  # enum wc_method
KERNELS = {
    ROW_PAIRS: "wc_row_pairs", ROW_THREE: "wc_row_three", ROW_FOUR: "wc_row_four", QUADS: "wc_quads",
    CODEBOOK: "wc_codebook",
}  # fmt: skip


def code_lengths(counts: Ints, limit: int) -> Ints:
    """Lengths of the best prefix code whose words have at most ``limit`` bits, by package-merge."""
    n = len(counts)
    if n > 1 << limit:
        raise ValueError(f"{n} symbols do not fit code words of {limit} bits")
    order = np.argsort(counts, kind="stable")
    leaves = counts[order].astype(np.float64)
    merged: list[Ints] = []
    packages = np.zeros(0)
    for _ in range(limit):
        both = np.concatenate([leaves, packages])
        by_weight = np.argsort(both, kind="stable")
        merged.append(by_weight < n)
        both = both[by_weight]
        even = len(both) // 2 * 2
        packages = both[0:even:2] + both[1:even:2]
    lengths = np.zeros(n, np.int64)
    taken = 2 * (n - 1)
    for is_leaf in reversed(merged):
        found = int(is_leaf[:taken].sum())
        lengths[:found] += 1
        taken = 2 * (taken - found)
    result = np.zeros(n, np.int64)
    result[order] = np.maximum(lengths, 1)
    return result


def canonical(lengths: Ints) -> Ints:
    """Code words of these lengths, first bit lowest, in the order of length and index."""
    words = np.zeros(len(lengths), np.int64)
    word, before = 0, 0
    for at in np.lexsort((np.arange(len(lengths)), lengths)):
        word <<= int(lengths[at]) - before
        before = int(lengths[at])
        words[at] = int(f"{word:0{before}b}"[::-1], 2)
        word += 1
    return words


def tuples(w: Ints, size: int, columns: int = 1) -> Ints:
    """``w`` [n, k] as tuples [n, symbols, size], with zeros after the last weight; ``columns`` divides symbols."""
    n, k = w.shape
    padded = np.zeros((n, -(-k // (size * columns)) * size * columns), w.dtype)
    padded[:, :k] = w
    return padded.reshape(n, -1, size)


def keys(t: Ints) -> Ints:
    """One integer per tuple [..., size]."""
    key = np.zeros(t.shape[:-1], np.int64)
    for j in range(t.shape[-1]):
        key = key * 256 + (t[..., j].astype(np.int64) + OFFSET)
    return key


def of_keys(key: Ints, size: int) -> Ints:
    return np.stack([(key >> 8 * (size - 1 - j)) % 256 - OFFSET for j in range(size)], -1)


@dataclass(frozen=True)
class JointCode:
    """A prefix code of tuples.  ``values`` [n, size], ``lengths`` [n], sorted by ``key``."""

    method: int
    bits: int  # of the table's index
    values: Ints
    lengths: Ints
    price: float = PRICE

    @property
    def size(self) -> int:
        return int(self.values.shape[1])

    @property
    def table_bytes(self) -> int:
        return 4 * len(self.table)

    @cached_property
    def words(self) -> Ints:
        return canonical(self.lengths)

    @cached_property
    def table(self) -> Ints:
        """uint32 words of the decoder's table."""
        entries, lengths = (
            np.zeros((1 << self.bits, 4), np.uint8),
            np.ones(1 << self.bits, np.uint8),
        )
        first = 4 - self.size
        for value, length, word in zip(self.values, self.lengths, self.words, strict=True):
            at = slice(int(word), None, 1 << int(length))
            entries[at, first:] = value.astype(np.int8).view(np.uint8)
            lengths[at] = length
        if first:
            entries[:, 0] = lengths
        parts = [entries.reshape(-1)] + ([lengths] if self.method == QUADS else [])
        return np.concatenate(parts).view("<u4")

    @classmethod
    def of(cls, samples: Ints, method: int, bits: int) -> JointCode:
        """The code with the least cost for weights in steps, ``samples`` [n, size], which are rounded to it."""
        size = samples.shape[1]
        key, counts = np.unique(keys(np.rint(samples).clip(-127, 127)), return_counts=True)
        frequent = np.argsort(-counts, kind="stable")
        best: tuple[float, JointCode] | None = None
        for n in np.unique(np.geomspace(1 << (bits - 4), (1 << bits) - 1, 6).astype(int)):
            kept = np.sort(frequent[:n])
            code = cls(method, bits, of_keys(key[kept], size), code_lengths(counts[kept], bits))
            for last in (False, True):
                index, added = code.rounded(samples)
                uses = np.bincount(index, minlength=len(kept))
                stored = code.lengths[index].sum() + CORRECTION_BITS * (added != 0).sum()
                error = ((code.values[index] + added - samples) ** 2).sum()
                cost = float(error + PRICE * stored)
                if best is None or cost < best[0]:
                    best = cost, code
                if not last:  # the lengths of what is used now
                    code = cls(method, bits, code.values, code_lengths(uses, bits))
        assert best is not None
        return best[1]

    def rounded(self, t: Ints, most_bits: int = MAX_BITS) -> tuple[Ints, Ints]:
        """Index of a tuple for each of ``t`` [n, size], weights in steps, and the corrections [n, size].

        Both are chosen for the least squared error plus the price of the bits.
        """
        values = self.values.astype(np.float32)
        constant = ((values**2).sum(1) + self.price * self.lengths).astype(np.float32)
        constant[self.lengths > most_bits] = np.inf
        reach = np.abs(values).max()
        near = t.clip(-reach, reach).astype(np.float32)
        parts = np.array_split(near, max(1, len(near) // 2048))
        index = np.concatenate([(constant - 2 * part @ values.T).argmin(1) for part in parts])
        missing = t - self.values[index]
        whole = np.rint(missing).clip(-127, 127)
        worth = missing**2 - (missing - whole) ** 2 > self.price * CORRECTION_BITS
        return index, np.where(worth, whole, 0).astype(np.int64)

    def indices(self, t: Ints) -> tuple[Ints, Ints]:
        """Index of a tuple for each symbol [n, symbols] of ``t`` [n, symbols, size], such that the symbols of each
        load fit, and the corrections [n, symbols, size]."""
        flat = t.reshape(-1, self.size)
        index, added = self.rounded(flat)
        if self.method != CODEBOOK:  # two indices always fit, because they begin at a byte
            loads = ordered(np.arange(len(flat)).reshape(t.shape[:2]), self.method)
            loads = loads.reshape(-1, together(self.method))
            for load in loads[self.lengths[index[loads]].sum(1) > LOAD_BITS]:
                while (extra := int(self.lengths[index[load]].sum()) - LOAD_BITS) > 0:
                    at = load[self.lengths[index[load]].argmax()]
                    room = max(int(self.lengths[index[at]]) - extra, int(self.lengths.min()))
                    index[at], added[at] = (v[0] for v in self.rounded(flat[at][None], room))
        return index.reshape(t.shape[:2]), added.reshape(t.shape)


def together(method: int) -> int:
    """Symbols that are decoded from one load."""
    return method if method in (ROW_THREE, ROW_FOUR) else 2


def ordered(symbols: Ints, method: int) -> Ints:
    """``symbols`` [n, symbols] of whole blocks, in the order of their streams: [blocks, symbols of a block]."""
    n, count = symbols.shape
    in_row = method in (ROW_THREE, ROW_FOUR)
    columns, rows = (method, ROWS // 2) if in_row else (1, ROWS)
    parts = symbols.reshape(n // rows, rows, count // columns, columns)
    return parts.transpose(0, 2, 1, 3).reshape(n // ROWS, -1)


def packed(words: Ints, lengths: Ints) -> list[Ints]:
    """A byte stream for each row of ``words`` [blocks, symbols]: 2 zero bits, then the words, lowest bit first."""
    streams = []
    for word, length in zip(words, lengths, strict=True):
        at = 2 + np.concatenate([[0], np.cumsum(length)])
        bits = np.zeros(int(at[-1]), np.uint8)
        for j in range(MAX_BITS):
            some = length > j
            bits[at[:-1][some] + j] = word[some] >> j & 1
        streams.append(np.packbits(bits, bitorder="little"))
    return streams


def corrections(differences: Ints) -> Ints:
    """Bytes for a row of differences [k]: {inputs after the one before, signed value} each."""
    found: list[int] = []
    at = 0
    for column in np.flatnonzero(differences):
        while column - at > 255:
            found += [255, 0]
            at += 255
        found += [int(column) - at, int(differences[column]) & 255]
        at = int(column)
    return np.array(found, np.uint8)


@dataclass(frozen=True)
class Coded:
    """A coded matrix: tiles as bytes, and what was stored.  ``bits_per_weight`` has no table."""

    tiles: list[bytes]
    symbols: int  # per row
    q: Ints  # the integers that are stored [n, k]
    bits_per_weight: float
    corrected: float  # share of weights that have a correction


def encode(w: Ints, code: JointCode, tile_blocks: int) -> Coded:
    """``w`` [n, k], weights in steps, in tiles of ``tile_blocks`` blocks of 8 rows; 8 divides n."""
    n, k = w.shape
    columns = code.method if code.method in (ROW_THREE, ROW_FOUR) else 1
    index, added = code.indices(tuples(w, code.size, columns))
    differences = added.reshape(n, -1)
    q = code.values[index].reshape(n, -1) + differences
    in_order = ordered(index, code.method)
    streams = packed(code.words[in_order], code.lengths[in_order])
    fixes = [corrections(row) for row in differences]
    tiles = [
        tile_of(streams[b : b + tile_blocks], fixes[ROWS * b : ROWS * (b + tile_blocks)], tile_blocks)
        for b in range(0, n // ROWS, tile_blocks)
    ]  # fmt: skip
    size = sum(map(len, tiles))
    return Coded(
        tiles, index.shape[1], q[:, :k], 8 * size / w.size, float((differences != 0).mean())
    )


def tile_of(streams: list[Ints], fixes: list[Ints], tile_blocks: int) -> bytes:
    """A tile as decode.h describes it; multiples of 4 bytes."""
    begin = 2 * (tile_blocks + 1 + ROWS * tile_blocks + 1)
    offsets = []
    for parts, count in ((streams, tile_blocks), (fixes, ROWS * tile_blocks)):
        begin += begin % 2
        sizes = [len(p) for p in parts] + [0] * (count - len(parts))
        ends = begin + np.concatenate([[0], np.cumsum(sizes)])
        offsets.append(ends)
        begin = int(ends[-1])
    if begin >= 1 << 16:
        raise ValueError(f"a tile of {begin} bytes; at most 65535: take fewer blocks per tile")
    body = b"".join(s.tobytes() for s in streams)
    body += bytes(int(offsets[1][0] - offsets[0][-1])) + b"".join(f.tobytes() for f in fixes)
    tile = np.concatenate(offsets).astype("<u2").tobytes() + body
    return tile + bytes(-len(tile) % 4)


def expanded(x: Ints, size: int, symbols: int) -> Ints:
    """Words with the int8 inputs of each symbol in the bytes of its weights."""
    words = np.zeros((symbols, 4), np.int8)
    padded = np.zeros(symbols * size, np.int8)
    padded[: len(x)] = x
    words[:, 4 - size :] = padded.reshape(symbols, size)
    return words.reshape(-1).view("<u4")


def file_of(coded: Coded, code: JointCode, rows: int, x: Ints, tile_blocks: int) -> bytes:
    """The file that bench.c and host.c read."""
    at = np.concatenate([[0], np.cumsum([len(t) for t in coded.tiles])])
    head = [
        code.method, rows, len(x), coded.symbols, 1 << code.bits, len(code.table), tile_blocks, len(coded.tiles),
        max(map(len, coded.tiles)), 0, 0, 0,
    ]  # fmt: skip
    padded = np.zeros(-(-len(x) // 4) * 4, np.int8)
    padded[: len(x)] = x
    words = [
        np.array(head),
        code.table,
        expanded(x, code.size, coded.symbols),
        padded.view("<u4"),
        at,
    ]
    return b"".join(np.asarray(w).astype("<u4").tobytes() for w in words) + b"".join(coded.tiles)
