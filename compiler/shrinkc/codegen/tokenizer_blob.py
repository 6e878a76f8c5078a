"""The tables that the host program encodes prompts with, as sc_encode.h lays them out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from shrinkc.importer.encode_table import EncodeTable

MAGIC = 0x31544353
NO_ID = 0xFFFFFFFF
KINDS = (
    "ADDED_EARLY", "ADDED_LATE", "PREPEND", "REPLACE", "PREFIX", "PREFIX_FIRST", "CUT_BEFORE",
    "CUT_DIGIT", "CUT_DIGITS", "CUT_GPT2", "CUT_LLAMA3", "CHARACTERS", "BYTES",
)  # fmt: skip
"""``enum sc_step_kind``."""

_HEAD_WORDS = 5
_SPANS = 9
_BEGINNING = 4 * (_HEAD_WORDS + 2 * _SPANS)


def tokenizer_blob(table: EncodeTable, vocab_size: int) -> bytes:
    """``table`` as 32-bit little-endian words, then the texts."""
    texts = bytearray()
    words: list[int] = []
    tables: list[tuple[int, Iterable[Any]]] = [
        (1, list(table.empty)),
        (1, list(table.before)),
        (5, chain.from_iterable((KINDS.index(s.kind), s.a, s.b) for s in table.steps)),
        (4, chain.from_iterable((t.text, t.id, int(t.late)) for t in table.added)),
        (2, chain.from_iterable(sorted(table.units.items()))),
        (1, (_id(index) for index in table.fallbacks)),
        (4, chain.from_iterable((*pair, *to) for pair, to in sorted(table.merges.items()))),
        (3, chain.from_iterable(sorted(table.words.items()))),
    ]
    # a text is where it lies among the texts until it is known how many words come before them
    spans: list[tuple[int, int]] = []
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

    refusal = put_text(table.refusal.encode())
    for width, values in tables:
        at = _BEGINNING + 4 * len(words)
        spans.append((at, put(values) // width))
    texts_at = _BEGINNING + 4 * len(words)
    for place in places:
        words[place] += texts_at
    head = [MAGIC, vocab_size, _id(table.first), _id(table.unknown), int(table.fuse)]
    head += [refusal[0] + texts_at, refusal[1], *chain.from_iterable(spans)]
    return np.array(head + words, "<u4").tobytes() + bytes(texts)


def _id(index: int | None) -> int:
    return NO_ID if index is None else index
