"""Turn llama2.c's ``tokenizer.bin`` into a ``tokenizer.json`` that encodes the same ids.

The file holds an int32 longest piece, then for every id a float32 score, an int32 length
and that many bytes.  llama2.c merges the neighbouring pair whose joined piece has the best
score, the leftmost of equals.  A Hugging Face BPE has a ranked list of pairs instead, so
every way of splitting a piece in two pieces becomes a merge, ranked by the piece's score.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadTokenizer
from shrinkc.importer.llama2c_checkpoint import BOS_ID, EOS_ID
from shrinkc.importer.tokenizer_json import SPACE, added_token, sentencepiece_document, to_json

_UNK_ID = 0
_FIRST_BYTE = 3
_FIRST_PIECE = _FIRST_BYTE + 256
# llama2.c's export wraps the names of BOS and EOS in line feeds, to print them nicely
_CONTROLS = {_UNK_ID: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>"}


@dataclass(frozen=True)
class ScoredPiece:
    """One entry; ``text`` has "▁" for space, as SentencePiece writes it."""

    text: str
    score: float


def read_pieces(path: Path, vocab_size: int) -> list[ScoredPiece]:
    """Return the ``vocab_size`` pieces of a ``tokenizer.bin``; raises BadTokenizer."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BadTokenizer(f"{path} cannot be read: {exc.strerror}.") from exc
    if len(data) < 4:
        raise BadTokenizer(f"{path} is truncated: need 4 bytes, have {len(data)}.")
    (longest,) = struct.unpack_from("<i", data)
    position = 4
    raw: list[tuple[float, bytes]] = []

    def past(end: int) -> int:
        if len(data) < end:
            raise BadTokenizer(
                f"{path} is truncated in token {len(raw)}: need {end} bytes, have {len(data)}."
            )
        return end

    while position < len(data):
        begin = past(position + 8)
        score, length = struct.unpack_from("<fi", data, position)
        if not 0 <= length <= longest:
            raise BadTokenizer(
                f"{path}: token {len(raw)} has length {length}; the header allows 0 to {longest}.",
                hint="this may not be a llama2.c tokenizer file.",
            )
        position = past(begin + length)
        raw.append((score, data[begin:position]))
    if len(raw) != vocab_size:
        raise BadTokenizer(
            f"{path} holds {len(raw)} tokens, the checkpoint needs {vocab_size}.",
            hint="give the tokenizer that the checkpoint was trained with.",
        )
    return _named(path, raw)


def _named(path: Path, raw: list[tuple[float, bytes]]) -> list[ScoredPiece]:
    if len(raw) < _FIRST_PIECE:
        raise BadTokenizer(
            f"{path} holds {len(raw)} tokens; at least {_FIRST_PIECE} are needed: unk, bos, eos "
            "and one for each byte."
        )
    pieces: list[ScoredPiece] = []
    for index, (score, content) in enumerate(raw):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise BadTokenizer(f"{path}: token {index}, {content!r}, is not UTF-8.") from exc
        if score != score:
            raise BadTokenizer(f"{path}: token {index}, {text!r}, has the score NaN.")
        text = _CONTROLS.get(index, text.replace(" ", SPACE))
        if _FIRST_BYTE <= index < _FIRST_PIECE:
            expected = f"<0x{index - _FIRST_BYTE:02X}>"
            if text != expected:
                raise BadTokenizer(
                    f"{path}: token {index} is {text!r}, expected the byte piece {expected}."
                )
        pieces.append(ScoredPiece(text, score))
    where: dict[str, list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        where[piece.text].append(index)
    repeated = [f"{text!r} at {ids}" for text, ids in where.items() if len(ids) > 1]
    if repeated:
        raise BadTokenizer(f"{path}: pieces occur more than once: {'; '.join(repeated[:20])}.")
    return pieces


def ranked_merges(pieces: list[ScoredPiece]) -> list[tuple[str, str]]:
    """Return the merges of ``pieces`` with each other in order of rank, best first.

    Raises BadTokenizer if two pieces that can be merged have the same score: then llama2.c, like
    SentencePiece, decides by position in the text, which a ranked list cannot say.
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


def tokenizer_json(pieces: list[ScoredPiece]) -> str:
    """Return a ``tokenizer.json``: a space in front of the text, byte fallback, BOS first."""
    document = sentencepiece_document(
        {piece.text: index for index, piece in enumerate(pieces)},
        ranked_merges(pieces[_FIRST_PIECE:]),
        added=[added_token(index, name, special=True) for index, name in _CONTROLS.items()],
        unknown=_CONTROLS[_UNK_ID],
        prefix_space=True,
    )
    document["post_processor"] = _post_processor()
    return to_json(document)


def tokenizer_settings(seq_len: int) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _CONTROLS[BOS_ID],
        "clean_up_tokenization_spaces": False,
        "eos_token": _CONTROLS[EOS_ID],
        "model_max_length": seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _CONTROLS[_UNK_ID],
    }


def _post_processor() -> dict[str, Any]:
    bos = _CONTROLS[BOS_ID]

    def special(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [BOS_ID], "tokens": [bos]}},
    }
