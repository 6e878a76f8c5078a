"""A BPE tokenizer with fewer tokens: which ones stay, and its ``tokenizer.json`` with those alone.

A token is made of two others by a merge, down to units: bytes or characters.  Units stay, so
that every text still has its ids, and a token stays only together with all that it is made of.  Then
a text whose tokens all stay keeps its tokens: the merges that made them are there in their old
order, and those that went were none of its.  Any other text is spelt in smaller pieces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from shrinkc.core.errors import TokenizerNotCut
from shrinkc.importer.decode_table import UNICODE_TO_BYTE

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PROCESSORS = ("TemplateProcessing", "ByteLevel")
_HINT = "leave out the stage vocabulary for this model."

Document = Mapping[str, Any]  # the content of a tokenizer.json


@dataclass(frozen=True)
class Choice:
    """``kept``: ids that stay, ascending; the place of each is its new id.  ``covered``: share of
    the texts' tokens that are among them.  ``required``: how many stay whatever the texts say.
    """

    kept: tuple[int, ...]
    covered: float
    required: int


class Pieces:
    """The pieces of a tokenizer and how they are made of each other.

    Raises TokenizerNotCut for one that is not a BPE that can spell every text in bytes.
    """

    def __init__(self, document: Document) -> None:
        model = document.get("model") or {}
        kind = model.get("type") or ("BPE" if "merges" in model else None)
        if kind != "BPE":
            raise TokenizerNotCut(
                f"the tokenizer is a {kind}, of which no piece is made of others by merges; a BPE "
                "is needed.",
                _HINT,
            )
        for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(setting):
                raise TokenizerNotCut(
                    f"the tokenizer's pieces have a {setting} ({model[setting]!r}).", _HINT
                )
        for part in _flatten(document.get("post_processor"), "processors"):
            if part.get("type") not in _PROCESSORS:
                raise TokenizerNotCut(
                    f"the tokenizer's post-processor {part.get('type')} is not known; "
                    f"{', '.join(_PROCESSORS)} are.",
                    _HINT,
                )
        self.document = document
        self.ids: dict[str, int] = model["vocab"]
        self.pieces = {index: piece for piece, index in self.ids.items()}
        self.merges = [_pair(merge) for merge in model["merges"]]
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        self._made: dict[int, tuple[int, ...]] = {}
        self.units = self._units(model)

    def _units(self, model: Mapping[str, Any]) -> set[int]:
        """The ids that spell every text."""
        parts = _flatten(self.document.get("pre_tokenizer"), "pretokenizers")
        parts += _flatten(self.document.get("normalizer"), "normalizers")
        if any(part.get("type") == "ByteLevel" for part in parts):
            # one that lacks some bytes, as SmolLM2's does, never had ids for them
            return {self.ids[c] for c in UNICODE_TO_BYTE if c in self.ids}
        if model.get("byte_fallback") and all(byte in self.ids for byte in BYTES):
            # what normaliser and decoder write, such as "▁", has no other spelling: bytes of it
            # would be decoded after it was replaced
            parts += _flatten(self.document.get("decoder"), "decoders")
            written = {c for part in parts for text in _texts(part) for c in text}
            return {self.ids[piece] for piece in (*BYTES, *sorted(written)) if piece in self.ids}
        raise TokenizerNotCut(
            "the tokenizer has no bytes to spell a text with: it is neither byte-level nor has it "
            "the pieces <0x00> to <0xFF> and byte_fallback.",
            _HINT,
        )

    @cached_property
    def required(self) -> set[int]:
        """Ids that always stay: units, the unknown token, and every added token."""
        found = self.units | {int(t["id"]) for t in self.document.get("added_tokens") or []}
        unknown = self.document["model"].get("unk_token")
        return found | ({self.ids[unknown]} if unknown in self.ids else set())

    def made(self, index: int) -> tuple[int, ...]:
        """The ids that are made while the piece ``index`` is, in order, itself the last.

        Within a text the merges inside a token are those of the piece alone, since none crossed
        its borders.  A piece that merges do not lead to is made of itself alone.
        """
        if index not in self._made:
            piece = self.pieces.get(index)
            self._made[index] = (index,) if piece is None else self._merge(piece, index)
        return self._made[index]

    def _merge(self, piece: str, index: int) -> tuple[int, ...]:
        parts = list(piece)
        if index in self.units or not all(part in self.ids for part in parts):
            return (index,)
        made = [self.ids[part] for part in parts]
        none = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, none) for pair in zip(parts, parts[1:], strict=False)]
            at = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[at] == none:
                return (index,)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            made.append(self.ids[parts[at]])
        return tuple(made)

    def choose(
        self,
        used: Mapping[int, int],
        always: Iterable[int] = (),
        *,
        expected: Mapping[int, float] = MappingProxyType({}),
        keep: int | None = None,
        share: float | None = None,
        multiple: int = 1,
    ) -> Choice:
        """``keep`` ids, or as few as are ``share`` of all that are used.

        ``used``: id -> how often texts have it.  ``always``: ids that stay besides the required
        ones.  Of the others those stay that are made the most often, on their own or on the way to
        a longer one, counted in the texts and as ``expected`` has them as well: the same as taking
        away, again and again, the token that is used least and no other needs.  Where that makes no
        more, those of the earliest merges follow.  With ``share`` the number is rounded up to a
        ``multiple``.  A ``keep`` that is too small gives as many as have to stay.
        """
        total = sum(used.values())
        made: defaultdict[int, float] = defaultdict(float)
        for index, count in (*used.items(), *expected.items()):
            for part in self.made(index):
                made[part] += count
        kept = set(self.required)
        for index in always:
            kept.update(self.made(index))
        required = len(kept)
        covered = sum(count for index, count in used.items() if index in kept)
        goal = keep
        for index in sorted(self.pieces, key=lambda i: (-made[i], self._first(i))):
            if goal is None and covered >= (share or 0) * total:
                goal = -(-len(kept) // multiple) * multiple
            if goal is not None and len(kept) >= goal:
                break
            new = set(self.made(index)) - kept
            if goal is None or len(kept) + len(new) <= goal:
                kept |= new
                covered += sum(used.get(i, 0) for i in new)
        return Choice(tuple(sorted(kept)), covered / total if total else 1.0, required)

    @cached_property
    def _order(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for rank, (left, right) in enumerate(self.merges):
            found.setdefault(self.ids[left + right], rank)
        return found

    def _first(self, index: int) -> int:
        """The rank of the first merge that makes a piece; behind all ranks where none does."""
        return self._order.get(index, len(self.merges))

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """The ``tokenizer.json`` of ``kept`` (see Choice): a merge stays where its parts and what
        it makes do."""
        new = {old: index for index, old in enumerate(kept)}
        model = dict(self.document["model"])
        model["vocab"] = {
            self.pieces[old]: index for old, index in new.items() if old in self.pieces
        }
        model["merges"] = [
            merge
            for merge, (left, right) in zip(model["merges"], self.merges, strict=True)
            if {left, right, left + right} <= model["vocab"].keys()
        ]
        document = dict(self.document)
        document["model"] = model
        document["added_tokens"] = [
            {**token, "id": new[token["id"]]} for token in document.get("added_tokens") or []
        ]
        document["post_processor"] = _processor(document.get("post_processor"), new)
        return document


def _processor(spec: Any, new: Mapping[int, int]) -> Any:
    if not isinstance(spec, dict):
        return spec
    if spec.get("type") == "Sequence":
        return {**spec, "processors": [_processor(part, new) for part in spec["processors"]]}
    if spec.get("type") != "TemplateProcessing":
        return spec
    tokens = {
        name: {**token, "ids": [new[index] for index in token["ids"]]}
        for name, token in spec["special_tokens"].items()
    }
    return {**spec, "special_tokens": tokens}


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _texts(part: Mapping[str, Any]) -> list[str]:
    """What a step of a normaliser, pre-tokenizer or decoder looks for and writes."""
    found = [part.get(key) for key in ("prepend", "replacement", "content")]
    pattern = part.get("pattern")
    if isinstance(pattern, dict):
        found.append(pattern.get("String"))
    return [text for text in found if isinstance(text, str)]


def _flatten(spec: Any, inner: str) -> list[Mapping[str, Any]]:
    if not isinstance(spec, dict):
        return []
    if spec.get("type") != "Sequence":
        return [spec]
    return [part for each in spec[inner] for part in _flatten(each, inner)]
