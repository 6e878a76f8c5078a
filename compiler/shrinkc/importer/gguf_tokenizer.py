"""Tokenizers of GGUF files, built with the tokenizers library."""

from __future__ import annotations

import math

import tokenizers
from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from shrinkc.core.errors import BadTokenizer
from shrinkc.importer.chat_template import ChatTemplate
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.tokenizer import Tokenizer
from shrinkc.importer.tokenizer_json import (
    GPT2_WORDS,
    LLAMA3_WORDS,
    QWEN2_WORDS,
    bytelevel,
    ranked_merges,
    sentencepiece,
)

_PREFIX = "tokenizer.ggml."
# token types (``llama.h``, llama_token_type)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
"""Control tokens with which a model ends its turn in a conversation."""


def _split(pattern: str) -> PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_GPT2, _LLAMA3, _QWEN2 = map(_split, (GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS))
_NFC = ("qwen2",)  # pre types of tokenizers that normalise their text; llama.cpp does not
_DIGITS = pre_tokenizers.Digits(individual_digits=True)
# pre type -> (pre-tokenizers, whether words of the vocabulary skip merging and BOS is the default)
_PRE_TYPES: dict[str, tuple[list[PreTokenizer], bool]] = {
    **dict.fromkeys(("gpt-2",), ([_GPT2], False)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), ([_DIGITS, _GPT2], False)),
    **dict.fromkeys(("llama-bpe", "llama-v3", "llama3", "falcon3"), ([_LLAMA3], True)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), ([_QWEN2], False)),
}


def special_ids(file: GgufFile) -> tuple[int | None, list[int]]:
    """Return the id of BOS and the ids that end a text or a turn; defaults of a SentencePiece model are 1 and 2.

    The control tokens of TURN_ENDS end a turn, as in llama.cpp: most files do not name them."""
    spm = file.metadata.get(_PREFIX + "model") == "llama"
    bos = file.metadata.get(_PREFIX + "bos_token_id", 1 if spm else None)
    eos = [
        file.metadata.get(_PREFIX + "eos_token_id", 2 if spm else None),
        file.metadata.get(_PREFIX + "eot_token_id"),
        *_turn_ends(file),
    ]
    return bos, [
        index for at, index in enumerate(eos) if index is not None and index not in eos[:at]
    ]


def _turn_ends(file: GgufFile) -> list[int]:
    tokens = file.metadata.get(_PREFIX + "tokens")
    types = file.metadata.get(_PREFIX + "token_type")
    if not isinstance(tokens, list) or not isinstance(types, list):
        return []
    return [
        index
        for index, (text, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == CONTROL and text in TURN_ENDS
    ]


def load_tokenizer(file: GgufFile, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of ``file``.  Raises BadTokenizer."""
    model = file.metadata.get(_PREFIX + "model")
    tokens, types = _tokens(file, vocab_size)
    added = [
        # decoding prints a user-defined token and skips the other added tokens
        AddedToken(text, special=kind != USER_DEFINED, normalized=False)
        for text, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if model == "gpt2":
        document, usual_bos = _byte_level(file, tokens, added)
    elif model == "llama":
        document, usual_bos = _sentencepiece(file, tokens, types, added), True
    else:
        raise BadTokenizer(
            f"{file.path}: {_PREFIX}model = {model!r}; 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece) are supported.",
            hint="use the safetensors version of the model.",
        )
    bos, _ = special_ids(file)
    if not _flag(file, "add_bos_token", usual_bos):
        bos = None
    elif bos is None:
        raise BadTokenizer(f"{file.path}: prompts begin with BOS, but no BOS token is named.")
    return Tokenizer(document.to_str(), file.path, vocab_size, bos, _chat_template(file, tokens))


def _chat_template(file: GgufFile, tokens: list[str]) -> ChatTemplate | None:
    source = file.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return None
    bos, eos = special_ids(file)
    ids = {"bos_token": bos, "eos_token": eos[0] if eos else None}
    return ChatTemplate(
        source,
        {k: tokens[v] for k, v in ids.items() if isinstance(v, int) and 0 <= v < len(tokens)},
    )


def _tokens(file: GgufFile, vocab_size: int) -> tuple[list[str], list[int]]:
    tokens = _strings(file, "tokens")
    types = file.metadata.get(_PREFIX + "token_type", [NORMAL] * len(tokens))
    if len(tokens) > vocab_size:
        raise BadTokenizer(
            f"{file.path} has {len(tokens)} tokens, the model's vocabulary is {vocab_size}."
        )
    if not isinstance(types, list) or len(types) != len(tokens) or not set(types) <= {*_TYPES}:
        raise BadTokenizer(
            f"{file.path}: {_PREFIX}token_type has to hold {len(tokens)} types from 1 to 6."
        )
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        first = next(text for text in tokens if text in seen or seen.add(text))  # type: ignore[func-returns-value]
        raise BadTokenizer(f"{file.path}: the token {first!r} occurs more than once.")
    return tokens, types


def _byte_level(
    file: GgufFile, tokens: list[str], added: list[AddedToken]
) -> tuple[tokenizers.Tokenizer, bool]:
    pre = file.metadata.get(_PREFIX + "pre")
    if not isinstance(pre, str) or pre not in _PRE_TYPES:
        raise BadTokenizer(
            f"{file.path}: {_PREFIX}pre = {pre!r}: how the text is cut into words is not known; "
            f"{', '.join(_PRE_TYPES)} are supported.",
            hint="use the safetensors version of the model, or convert it again with a current "
            "llama.cpp if the key is missing.",
        )
    splits, whole_words = _PRE_TYPES[pre]
    merges = [tuple(merge.split(" ")) for merge in _strings(file, "merges")]
    known = set(tokens)
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= known:
            raise BadTokenizer(
                f"{file.path}: the merge {' '.join(merge)!r} is not of two tokens that make a third."
            )
    document = bytelevel(
        {text: index for index, text in enumerate(tokens)},
        [(merge[0], merge[1]) for merge in merges],
        added=added,
        splits=splits,
        ignore_merges=whole_words,
        nfc=pre in _NFC,
    )
    return document, whole_words


def _sentencepiece(
    file: GgufFile, tokens: list[str], types: list[int], added: list[AddedToken]
) -> tokenizers.Tokenizer:
    scores = file.metadata.get(_PREFIX + "scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(tokens)
        or not all(isinstance(score, float) for score in scores)
    ):
        raise BadTokenizer(f"{file.path}: {_PREFIX}scores has to hold {len(tokens)} floats.")
    pieces = {
        text: score
        for text, score, kind in zip(tokens, scores, types, strict=True)
        if kind == NORMAL
    }
    if any(map(math.isnan, pieces.values())):
        raise BadTokenizer(f"{file.path}: {_PREFIX}scores holds NaN.")
    try:
        merges = ranked_merges(pieces)
    except BadTokenizer as exc:
        raise BadTokenizer(f"{file.path}: {exc.message}", exc.hint) from exc
    return sentencepiece(
        {text: index for index, text in enumerate(tokens)},
        merges,
        added=added,
        unknown=tokens[types.index(UNKNOWN)] if UNKNOWN in types else None,
        prefix_space=_flag(file, "add_space_prefix", True),
    )


def _strings(file: GgufFile, name: str) -> list[str]:
    values = file.metadata.get(_PREFIX + name)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise BadTokenizer(
            f"{file.path}: {_PREFIX}{name} is missing, empty, or not a list of strings.",
            hint="the file may hold weights alone; use one with its vocabulary.",
        )
    return values


def _flag(file: GgufFile, name: str, default: bool) -> bool:
    value = file.metadata.get(_PREFIX + name, default)
    if not isinstance(value, bool):
        raise BadTokenizer(f"{file.path}: {_PREFIX}{name} = {value!r}; true or false is needed.")
    return value
