"""The tables that ``llm_encode()`` follows, as ``runtime_c/encode/llm_tokenizer.h`` lays them out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from shrinkc.codegen.tokenizer_limits import room_needed, units_that_start
from shrinkc.importer.encode_table import EncodeTable

MAGIC = 0x31544D4C
NO_ID = 0xFFFFFFFF
STARTS = 0x80000000
NARROW = 0x10000
"""Merges take 16 bits a number if all numbers are below."""
KINDS = (
    "ADDED_EARLY", "ADDED_LATE", "PREPEND", "REPLACE", "PREFIX", "PREFIX_FIRST", "CUT_BEFORE",
    "CUT_DIGIT", "CUT_DIGITS", "CUT_GPT2", "CUT_LLAMA3", "CHARACTERS", "BYTES", "CUT_QWEN2", "NFC",
)  # fmt: skip
"""``enum llm_step_kind``."""

_GROUPS = {
    "ADDED": ("ADDED_EARLY", "ADDED_LATE"), "PREFIX": ("PREFIX", "PREFIX_FIRST"),
    "CUT_DIGITS": ("CUT_DIGIT", "CUT_DIGITS"), "CUT_LLAMA3": ("CUT_LLAMA3", "CUT_QWEN2"),
    **{kind: (kind,) for kind in ("PREPEND", "REPLACE", "NFC", "CUT_BEFORE", "CUT_GPT2")},
}  # fmt: skip
"""Steps by the macro LLM_WITHOUT_* that leaves their code out of llm_encode.c."""

_HEAD_WORDS = 8
_SPANS = 11
_BEGINNING = 4 * (_HEAD_WORDS + 2 * _SPANS)


def missing_steps(table: EncodeTable) -> dict[str, bool]:
    """Macros LLM_WITHOUT_*: whether ``table`` takes none of the macro's steps."""
    kinds = {step.kind for step in table.steps}
    return {f"LLM_WITHOUT_{name}": kinds.isdisjoint(group) for name, group in _GROUPS.items()}


def tokenizer_blob(table: EncodeTable, vocab_size: int) -> bytes:
    """Return ``table`` as little-endian words, then the merges, then the texts."""
    starts = units_that_start(table)
    merges, pairs = _merges(table)
    number = np.dtype("<u2" if max(vocab_size, len(pairs)) <= NARROW else "<u4")
    per_byte, more = room_needed(table)

    def unit(index: int | None) -> int:
        return NO_ID if index is None else index | (STARTS if index in starts else 0)

    tables: list[tuple[int, Iterable[Any]]] = [
        (1, table.empty),
        (1, table.before),
        (5, chain.from_iterable((KINDS.index(s.kind), s.a, s.b) for s in table.steps)),
        (4, chain.from_iterable((t.text, t.id, int(t.late)) for t in table.added)),
        (2, chain.from_iterable((code, unit(table.units[code])) for code in sorted(table.units))),
        (1, (unit(index) for index in table.fallbacks)),
        (3, chain.from_iterable(sorted(table.words.items()))),
    ]
    # a text is where it lies among the texts until it is known how many bytes come before them
    spans: list[tuple[int, int]] = []
    texts = bytearray()
    words: list[int] = []
    places: list[int] = []

    def put_text(text: bytes) -> tuple[int, int]:
        at = len(texts)
        texts.extend(text)
        return at, len(text)

    def put(values: Iterable[int | bytes]) -> int:
        before = len(words)
        for value in values:
            if isinstance(value, bytes):
                places.append(len(words))
                words.extend(put_text(value))
            else:
                words.append(value)
        return len(words) - before

    for width, values in tables:
        at = _BEGINNING + 4 * len(words)
        spans.append((at, put(values) // width))
    merges_at = _BEGINNING + 4 * len(words)
    pairs_at = merges_at + number.itemsize * merges.size
    texts_at = pairs_at + number.itemsize * pairs.size
    for place in places:
        words[place] += texts_at
    refusal, added_starts = (
        (at + texts_at, count)
        for at, count in (
            put_text(table.refusal.encode()),
            put_text(bytes(sorted({token.text[0] for token in table.added}))),
        )
    )
    spans[4:4] = [added_starts]
    spans = [refusal, *spans, (merges_at, len(merges)), (pairs_at, len(pairs))]
    head = [
        MAGIC, vocab_size, _id(table.first), unit(table.unknown), int(table.fuse),
        int(number.itemsize == 4), per_byte, more, *chain.from_iterable(spans),
    ]  # fmt: skip
    numbers = merges.astype(number).tobytes() + pairs.astype(number).tobytes()
    return np.array(head + words, "<u4").tobytes() + numbers + bytes(texts)


def _merges(table: EncodeTable) -> tuple[np.ndarray, np.ndarray]:
    """Return left, right and new id of each merge, best first, and the indices of these in order of both ids."""
    ranked = sorted((rank, *pair, into) for pair, (rank, into) in table.merges.items())
    merges = np.array(ranked, np.int64).reshape(-1, 4)[:, 1:]
    return merges, np.lexsort((merges[:, 1], merges[:, 0]))


def _id(index: int | None) -> int:
    return NO_ID if index is None else index
