"""Limits of a tokenizer: where text can be cut, and how much memory the encoding of any text needs."""

from __future__ import annotations

from shrinkc.importer.encode_table import EncodeTable
from shrinkc.importer.nfc_table import GROWTH

_FRONTS = ("PREPEND", "PREFIX", "PREFIX_FIRST")
_Ends = dict[int, frozenset[int]]


def units_that_start(table: EncodeTable) -> set[int]:
    """Return the units such that text can be cut before them, unless the same unit is before the cut.

    No merge joins anything that ends with another unit to anything that begins with such a unit.  In
    SentencePiece vocabularies the space is one, since words have their space in front.
    """
    units = (*table.units.values(), *table.fallbacks, table.unknown)
    begins: _Ends = {unit: frozenset((unit,)) for unit in units if unit is not None}
    starts = {*begins}
    ends = dict(begins)
    ranked = sorted(table.merges.items(), key=lambda item: item[1])
    changed = True
    while changed:  # usually twice: a token is made before it is merged
        changed = False
        for (left, right), (_, into) in ranked:
            if left in begins and right in begins:
                changed |= _widen(begins, into, begins[left])
                changed |= _widen(ends, into, ends[right])
    for left, right in table.merges:
        for unit in begins.get(right, ()):
            if ends.get(left, frozenset()) - {unit}:
                starts.discard(unit)
    return starts


def _widen(ends: _Ends, token: int, more: frozenset[int]) -> bool:
    known = ends.get(token)
    if known is not None and more <= known:
        return False
    ends[token] = more if known is None else known | more
    return True


def room_needed(table: EncodeTable) -> tuple[int, int]:
    """Return how many words of ``ids`` suffice for every text: per byte, and in addition.

    A word is an id, a unit, or up to four bytes of text, so no more than a character.
    """
    if not table.steps:
        return 0, len(table.empty)
    kinds = [step.kind for step in table.steps]
    late = kinds.index("ADDED_LATE") if "ADDED_LATE" in kinds else 0
    cut = next((i for i, kind in enumerate(kinds) if kind.startswith("CUT")), len(kinds))
    fronts = {
        i: sum(_words(table, i + 1, char) for char in step.a.decode())
        for i, step in enumerate(table.steps)
        if step.kind in _FRONTS
    }
    per_byte = max(
        [1, *(_per_byte(table, s.a.decode()) for s in table.steps if s.kind == "REPLACE")]
    )
    if "NFC" in kinds:
        per_byte *= GROWTH
    # before any cut, a step puts its text in front of the whole text, and of what follows an added token
    early_words, late_words = (
        1 + sum(words for i, words in fronts.items() if first <= i < cut) for first in (0, late)
    )
    early_bytes = min((len(token.text) for token in table.added if not token.late), default=None)
    late_chars = min(
        (len(token.text.decode()) for token in table.added if token.late), default=None
    )
    if early_bytes is not None:
        per_byte = max(per_byte, _divided(early_words, early_bytes))
    if late_chars is not None:  # of the text that the steps have written
        per_byte *= _divided(late_words, late_chars)
    # after a cut, in front of each piece
    per_byte += per_byte * sum(words for i, words in fronts.items() if i > cut)
    # 1 for the first id is in early_words; 1 where rewritten text begins within a word
    more = len(table.before) + early_words + len(table.steps) + 1
    return per_byte, max(more, len(table.empty))


def _per_byte(table: EncodeTable, text: str) -> int:
    return _divided(sum(_words(table, 0, char) for char in text), len(text.encode()))


def _words(table: EncodeTable, first: int, char: str) -> int:
    """Words that a character takes, at most, when the steps from ``first`` on have replaced it or parts of that."""
    replacing = [step for step in table.steps[first:] if step.kind == "REPLACE"]
    if any(len(step.a.decode()) > 1 for step in replacing):  # it may be a part of a longer text
        words = len(char.encode())
        for step in replacing:
            words *= max(1, _divided(len(step.b), len(step.a)))
        return words
    words = 1
    for step in replacing:
        char = char.replace(step.a.decode(), step.b.decode())
        words = max(words, len(char))
    if table.steps[-1].kind == "BYTES":
        return max(words, len(char.encode()))
    alone = {c for c in char if ord(c) in table.units or not table.fallbacks}
    return max(words, sum(1 if c in alone else len(c.encode()) for c in char))


def _divided(words: int, parts: int) -> int:
    """Rounded up."""
    return -(-words // parts)
