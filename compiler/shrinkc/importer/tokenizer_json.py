"""The parts of a ``tokenizer.json`` for vocabularies that come from other formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shrinkc.core.errors import BadTokenizer

SPACE = "▁"
"""What SentencePiece writes for a space."""

# The regular expressions that models' own tokenizer.json files cut a text into words with; those of
# llama.cpp (``llama-vocab.cpp``, llm_tokenizer_bpe) mean the same.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")  # digits one by one


@dataclass(frozen=True)
class ScoredPiece:
    """A piece of a SentencePiece vocabulary; ``text`` has :data:`SPACE` for space."""

    text: str
    score: float


def ranked_merges(pieces: Sequence[ScoredPiece]) -> list[tuple[str, str]]:
    """Return the merges of ``pieces`` with each other in order of rank, best first.

    SentencePiece joins the neighbouring pair whose joined piece has the best score.  A Hugging Face BPE has a
    ranked list of pairs instead, so every way of splitting a piece in two pieces becomes a merge, ranked by
    the piece's score.  Raises BadTokenizer if two pieces that can be merged have the same score: then
    SentencePiece decides by position in the text, which a ranked list cannot say.
    """
    known = {piece.text for piece in pieces}
    by_score: dict[float, str] = {}
    ranked: list[tuple[float, int, tuple[str, str]]] = []
    for piece in pieces:
        text = piece.text
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        splits = [split for split in splits if split[0] in known and split[1] in known]
        if not splits:
            continue
        other = by_score.setdefault(piece.score, text)
        if other != text:
            raise BadTokenizer(
                f"the pieces {other!r} and {text!r} have the same score {piece.score}, so the "
                "order of their merges is not defined by the vocabulary.",
                hint="convert the original SentencePiece model with transformers instead.",
            )
        # of the splits of one piece, the earlier: it is the leftmost where both are possible
        ranked += [(-piece.score, len(left), (left, right)) for left, right in splits]
    return [pair for _, _, pair in sorted(ranked)]


def to_json(document: Mapping[str, Any]) -> str:
    """Return the text of the file."""
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def added_token(index: int, text: str, *, special: bool) -> dict[str, Any]:
    """Return an entry of ``added_tokens``: literal text that is found before anything else."""
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def sentencepiece_document(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    added: list[dict[str, Any]],
    unknown: str | None,
    prefix_space: bool,
) -> dict[str, Any]:
    """Return a SentencePiece BPE with byte fallback; ``prefix_space`` puts one before the text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix_space else [replace]
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _document(
        added,
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    )


def bytelevel_document(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    added: list[dict[str, Any]],
    splits: Sequence[Mapping[str, Any]],
    ignore_merges: bool,
) -> dict[str, Any]:
    """Return a byte-level BPE that cuts the text with the pre-tokenizers ``splits`` first.

    ``ignore_merges``: a word that is in the vocabulary is taken whole.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return _document(
        added,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [*splits, {**byte_level, "use_regex": False}],
        },
        decoder={**byte_level, "use_regex": True},
        model=_bpe(vocab, merges, ignore_merges=ignore_merges),
    )


def _document(added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": None,
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _bpe(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    unk_token: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": [list(pair) for pair in merges],
    }
