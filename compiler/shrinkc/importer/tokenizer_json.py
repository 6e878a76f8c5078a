"""Construction of tokenizers from vocabularies in other formats than ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers.pre_tokenizers import PreTokenizer

from shrinkc.core.errors import BadTokenizer

SPACE = "▁"
"""SentencePiece's character for a space."""

# Regular expressions with which tokenizer.json files cut a text into words.  llama.cpp has equivalent
# ones (``llama-vocab.cpp``, llm_tokenizer_bpe).
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")  # digits one by one


def ranked_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece vocabulary in order of rank, best first.

    ``scores``: piece, with :data:`SPACE` for space, -> score.

    SentencePiece joins the adjacent pair whose joined piece has the best score.  A Hugging Face BPE has a
    ranked list of pairs instead, so every split of a piece into two pieces becomes a merge, ranked by
    the piece's score.  Raises BadTokenizer if two pieces that can be merged have equal scores: then
    SentencePiece decides by position in the text, which a ranked list cannot say.
    """
    by_score: dict[float, str] = {}
    ranked: list[tuple[float, int, tuple[str, str]]] = []
    for text, score in scores.items():
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        splits = [split for split in splits if split[0] in scores and split[1] in scores]
        if not splits:
            continue
        other = by_score.setdefault(score, text)
        if other != text:
            raise BadTokenizer(
                f"the pieces {other!r} and {text!r} have the same score {score}, so the "
                "order of their merges is not defined by the vocabulary.",
                hint="convert the original SentencePiece model with transformers instead.",
            )
        # splits of one piece: shorter left part first, because it is further left in the text
        ranked += [(-score, len(left), (left, right)) for left, right in splits]
    return [pair for _, _, pair in sorted(ranked)]


def sentencepiece(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    added: Sequence[AddedToken],
    unknown: str | None,
    prefix_space: bool,
) -> Tokenizer:
    """Return a SentencePiece BPE with byte fallback.  ``prefix_space``: put a space before the text."""
    model = models.BPE(
        dict(vocab), list(merges), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    out = _with_added(model, added)
    replace = normalizers.Replace(" ", SPACE)
    before = [normalizers.Prepend(SPACE)] if prefix_space else []
    out.normalizer = normalizers.Sequence([*before, replace])
    after = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    out.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return out


def bytelevel(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    added: Sequence[AddedToken],
    splits: Sequence[PreTokenizer],
    ignore_merges: bool,
    nfc: bool = False,
) -> Tokenizer:
    """Return a byte-level BPE that cuts the text with the pre-tokenizers ``splits`` first.

    ``ignore_merges``: a word in the vocabulary becomes one token without merging.  ``nfc``: normalise the text first.
    """
    out = _with_added(models.BPE(dict(vocab), list(merges), ignore_merges=ignore_merges), added)
    if nfc:
        out.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    out.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    out.decoder = decoders.ByteLevel()
    return out


def _with_added(model: models.BPE, added: Sequence[AddedToken]) -> Tokenizer:
    """Return a tokenizer of ``model`` with added tokens.  Tokens of the vocabulary keep their ids."""
    out = Tokenizer(model)
    out.add_tokens(list(added))
    return out
