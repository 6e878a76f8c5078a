"""Metadata of a GGUF file for a tokenizer.json; :mod:`shrinkc.importer.gguf_tokenizer` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from shrinkc.core.errors import BadTokenizer, UnsupportedModel
from shrinkc.importer.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    TURN_ENDS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.tokenizer_json import (
    GPT2_WORDS,
    LLAMA3_WORDS,
    QWEN2_WORDS,
    SPACE,
    ranked_merges,
)
from shrinkc.model import LlamaConfig

PREFIX = "tokenizer.ggml."
# how a byte-level tokenizer cuts text into words -> name of that in GGUF
_PRE_TYPES = {
    (GPT2_WORDS,): "gpt-2",
    ("digits", GPT2_WORDS): "smollm",
    (LLAMA3_WORDS,): "llama-bpe",
    (QWEN2_WORDS,): "qwen2",
}
_BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}


def tokenizer_metadata(tokenizer: Tokenizer, config: LlamaConfig) -> dict[str, Any]:
    """Return key -> value, tokens and chat template included.

    Raises UnsupportedModel for a tokenizer that llama.cpp does not have."""
    spec = json.loads(tokenizer.to_json())
    model = spec["model"]
    if not isinstance(model.get("vocab"), dict) or "merges" not in model:
        _refuse("it is no BPE")
    sentencepiece = bool(model.get("byte_fallback"))
    tokens, types = _tokens(spec, config.vocab_size, sentencepiece)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    found: dict[str, Any] = {"model": "llama" if sentencepiece else "gpt2"}
    if sentencepiece:
        found |= {"pre": "default", "scores": _scores(tokens, types, merges)}
        found["add_space_prefix"] = _adds_space(spec)
    else:
        found |= {"pre": _pre_type(spec), "merges": [" ".join(merge) for merge in merges]}
    found |= {"tokens": tokens, "token_type": types, "add_bos_token": tokenizer.bos_id is not None}
    found |= _special_ids(tokens, types, config, tokenizer)
    keys = {PREFIX + key: value for key, value in found.items()}
    if tokenizer.chat is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat.source
    return keys


def _refuse(why: str) -> NoReturn:
    raise UnsupportedModel(
        f"the tokenizer cannot be written as GGUF: {why}.",
        "byte-level BPE of GPT-2, SmolLM, LLaMA 3 and Qwen, and SentencePiece BPE can.",
    )


def _tokens(
    spec: Mapping[str, Any], vocab_size: int, sentencepiece: bool
) -> tuple[list[str], list[int]]:
    """Return the piece and the type of each id; ids without a piece are unused."""
    tokens, types = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    unknown = spec["model"].get("unk_token")
    for piece, index in spec["model"]["vocab"].items():
        tokens[index], types[index] = piece, NORMAL
        if sentencepiece and piece in _BYTE_TOKENS:
            types[index] = BYTE
    for token in spec.get("added_tokens") or []:
        index = token["id"]
        tokens[index] = token["content"]
        types[index] = CONTROL if token.get("special") else USER_DEFINED
    if sentencepiece and unknown in tokens:
        types[tokens.index(unknown)] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """Return scores with which SentencePiece merges in the order of ``merges``."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault("".join(merge), index)
    last = len(merges)
    scores = [
        -float(rank.get(token, last + index)) if kind == NORMAL else 0.0
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    pieces = {
        t: score for t, kind, score in zip(tokens, types, scores, strict=True) if kind == NORMAL
    }
    try:
        ranked = ranked_merges(pieces)
    except BadTokenizer:
        ranked = []
    # added tokens are found before text is merged; the order of merges that make one piece has no meaning
    merges = [m for m in merges if {*m, "".join(m)} <= pieces.keys()]
    same = set(ranked) == set(merges) and [*map("".join, ranked)] == [*map("".join, merges)]
    if not same:
        _refuse("its merges are not in the order of the scores of a SentencePiece model")
    return scores


def _adds_space(spec: Mapping[str, Any]) -> bool:
    """Return whether a space is put before the text: by the normalizer, or by a Metaspace."""
    parts = _parts(spec.get("normalizer"), "normalizers")
    if any(p["type"] == "Prepend" and p.get("prepend") == SPACE for p in parts):
        return True
    before = _parts(spec.get("pre_tokenizer"), "pretokenizers")
    return any(p["type"] == "Metaspace" and p.get("prepend_scheme") != "never" for p in before)


def _pre_type(spec: Mapping[str, Any]) -> str:
    words: list[str] = []
    for part in _parts(spec.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "Digits" and part.get("individual_digits"):
            words.append("digits")
        elif part["type"] == "Split" and part.get("behavior") == "Isolated":
            words.append(str(part["pattern"].get("Regex")))
        elif part["type"] == "ByteLevel" and not part.get("add_prefix_space"):
            words += [GPT2_WORDS] if part.get("use_regex", True) else []
        else:
            _refuse(f"the pre-tokenizer {part['type']} is not known")
    found = _PRE_TYPES.get(tuple(words))
    if found is None:
        _refuse(f"it cuts text into words by {' and '.join(words) or 'nothing'}")
    if (found == "llama-bpe") != bool(spec["model"].get("ignore_merges")):
        _refuse(f"ignore_merges = {spec['model'].get('ignore_merges')} with words of {found}")
    return found


def _parts(section: Any, field: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    return list(section[field]) if section["type"] == "Sequence" else [section]


def _special_ids(
    tokens: list[str], types: list[int], config: LlamaConfig, tokenizer: Tokenizer
) -> dict[str, int]:
    """Return the ids of BOS, of the end of a text and of a turn, and of unknown text.

    Raises UnsupportedModel if more tokens end a text than a file can name."""
    bos = tokenizer.bos_id if tokenizer.bos_id is not None else config.bos_id
    # control tokens with the usual names end a turn in any case
    named = [i for i in config.eos_ids if tokens[i] in TURN_ENDS and types[i] == CONTROL]
    ends = [i for i in config.eos_ids if i not in named] + named
    found = dict(zip(("eos_token_id", "eot_token_id"), ends, strict=False))
    if len(ends) - len(named) > 2:
        _refuse(f"{len(ends)} tokens end a text")
    if bos is not None:
        found["bos_token_id"] = bos
    if UNKNOWN in types:
        found["unknown_token_id"] = types.index(UNKNOWN)
    return found
