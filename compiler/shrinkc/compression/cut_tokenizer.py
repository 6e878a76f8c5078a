"""Vocabulary pruning of a BPE tokenizer: the choice of tokens, and the ``tokenizer.json`` with these tokens only.

A merge makes a token of two smaller ones, down to units: bytes or characters.  All units are kept, so every text can
still be encoded.  A token is kept only together with all tokens that it is made of.  A text with kept tokens only
then keeps its encoding: its merges remain in their order, and removed merges did not apply to it.  Any other text
is encoded in smaller tokens.
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
    """The kept tokens.  ``kept``: old ids, ascending; the index of an old id is the new id.  ``covered``: share of the
    texts' tokens that are kept.  ``required``: number of ids that are kept whatever the texts contain.
    """

    kept: tuple[int, ...]
    covered: float
    required: int


class BpeTokens:
    """The tokens and merges of a BPE tokenizer, from its ``tokenizer.json``.

    ``ids``: text of a token -> id; ``texts``: id -> text.  Raises TokenizerNotCut for other kinds of tokenizers, and
    for a BPE that cannot encode every text in bytes.
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
        self.texts = {index: text for text, index in self.ids.items()}
        self.merges = [_pair(merge) for merge in model["merges"]]
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}
        self._parts: dict[int, tuple[int, ...]] = {}
        self.units = self._units(model)

    def _units(self, model: Mapping[str, Any]) -> set[int]:
        """Return the ids that suffice to encode every text."""
        parts = _flatten(self.document.get("pre_tokenizer"), "pretokenizers")
        parts += _flatten(self.document.get("normalizer"), "normalizers")
        if any(part.get("type") == "ByteLevel" for part in parts):
            # some vocabularies, such as SmolLM2's, lack some bytes
            return {self.ids[c] for c in UNICODE_TO_BYTE if c in self.ids}
        if model.get("byte_fallback") and all(byte in self.ids for byte in BYTES):
            # Characters that normaliser and decoder write, such as "▁", must stay: as bytes, they would be decoded
            # only after the decoder has replaced "▁".
            parts += _flatten(self.document.get("decoder"), "decoders")
            written = {c for part in parts for text in _texts(part) for c in text}
            return {self.ids[text] for text in (*BYTES, *sorted(written)) if text in self.ids}
        raise TokenizerNotCut(
            "the tokenizer has no bytes to spell a text with: it is neither byte-level nor has it "
            "the pieces <0x00> to <0xFF> and byte_fallback.",
            _HINT,
        )

    @cached_property
    def required(self) -> set[int]:
        """Ids that are always kept: units, the unknown token, and every added token."""
        found = self.units | {int(t["id"]) for t in self.document.get("added_tokens") or []}
        unknown = self.document["model"].get("unk_token")
        return found | ({self.ids[unknown]} if unknown in self.ids else set())

    def parts(self, index: int) -> tuple[int, ...]:
        """Return the ids that occur while merges build the token ``index``, in order; the last one is ``index``.

        No merge crosses the borders of a final token, so the merges within it are the same in every text.  A token
        that merges cannot build has only itself.
        """
        if index not in self._parts:
            text = self.texts.get(index)
            self._parts[index] = (index,) if text is None else self._merge(text, index)
        return self._parts[index]

    def _merge(self, text: str, index: int) -> tuple[int, ...]:
        parts = list(text)
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
        """Choose ``keep`` ids, or the fewest ids that cover ``share`` of the texts' tokens.

        ``used``: id -> occurrences in the texts.  ``always``: ids that are kept besides the required ones.
        ``expected``: id -> additional counts.  The other tokens are ranked by how often merges make them, as final
        tokens or as parts of longer ones.  This gives the same result as repeatedly removing the least used token
        that no other token needs.  Ties go to the earliest merges.  With ``share``, the number is rounded up to a
        ``multiple``.  A too small ``keep`` gives the ids that must be kept.
        """
        total = sum(used.values())
        counts: defaultdict[int, float] = defaultdict(float)
        for index, count in (*used.items(), *expected.items()):
            for part in self.parts(index):
                counts[part] += count
        kept = set(self.required)
        for index in always:
            kept.update(self.parts(index))
        required = len(kept)
        covered = sum(count for index, count in used.items() if index in kept)
        goal = keep
        for index in sorted(self.texts, key=lambda i: (-counts[i], self._first_rank(i))):
            if goal is None and covered >= (share or 0) * total:
                goal = -(-len(kept) // multiple) * multiple
            if goal is not None and len(kept) >= goal:
                break
            new = set(self.parts(index)) - kept
            if goal is None or len(kept) + len(new) <= goal:
                kept |= new
                covered += sum(used.get(i, 0) for i in new)
        return Choice(tuple(sorted(kept)), covered / total if total else 1.0, required)

    @cached_property
    def _first_ranks(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for rank, (left, right) in enumerate(self.merges):
            found.setdefault(self.ids[left + right], rank)
        return found

    def _first_rank(self, index: int) -> int:
        """Return the rank of the first merge that makes a token; the number of merges if none does."""
        return self._first_ranks.get(index, len(self.merges))

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """Return the ``tokenizer.json`` of ``kept`` (see Choice).  A merge is kept if its parts and its result are."""
        new = {old: index for index, old in enumerate(kept)}
        model = dict(self.document["model"])
        model["vocab"] = {self.texts[old]: index for old, index in new.items() if old in self.texts}
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
    """Return the texts that a step of a normaliser, pre-tokenizer or decoder searches and writes."""
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
