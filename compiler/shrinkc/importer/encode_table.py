"""Tables with which a C program encodes text without the tokenizers library.

A ``tokenizer.json`` is a pipeline: added tokens are found, the rest is normalised and cut into
pieces, and the characters (or bytes) of a piece are merged in the order of ranked pairs.  Parts used by
tokenizers of LLaMA models become steps (see ``llm_tokenizer.h``).  Any other part is named in ``refusal``,
because almost correct ids would be worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import normalizers

from shrinkc.importer.decode_table import UNICODE_TO_BYTE, flatten
from shrinkc.importer.jsonfile import shortened
from shrinkc.importer.nfc_table import nfc_tables
from shrinkc.importer.tokenizer_json import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS

BYTES = 256


@dataclass(frozen=True)
class Step:
    """Step of the pipeline.

    ``kind``: its name in llm_tokenizer.h without ``LLM_STEP_``.  ``a``, ``b``: its texts or tables."""

    kind: str
    a: bytes = b""
    b: bytes = b""


@dataclass(frozen=True)
class Added:
    """Added token: a text with its own id.  ``late``: it is searched for in the normalised text."""

    text: bytes
    id: int
    late: bool


@dataclass(frozen=True)
class EncodeTable:
    """Tables of a pipeline.  ``refusal`` names an unsupported part; if it is empty, the tables are complete.

    ``empty``: ids of an empty text.  ``before``: ids in front of the ids of any other text.  ``first``: an id put
    before all of these unless it is there already.  ``unknown``: id of units without one; ``fuse``: consecutive
    unknown units share it.  ``units``: code point (or byte, after a step ``BYTES``) to id.  ``fallbacks``: ids of
    bytes, for other characters.  ``merges``: pairs of ids with their rank and the merged id, in order of rank.
    ``words``: pieces that are whole tokens.
    """

    empty: tuple[int, ...]
    first: int | None
    refusal: str = ""
    before: tuple[int, ...] = ()
    unknown: int | None = None
    fuse: bool = False
    steps: tuple[Step, ...] = ()
    added: tuple[Added, ...] = ()
    units: Mapping[int, int] = field(default_factory=dict)
    fallbacks: tuple[int | None, ...] = ()
    merges: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    words: Mapping[bytes, int] = field(default_factory=dict)


class _UnknownPartError(Exception):
    """Raised for a part of a pipeline that no step implements."""


def build_encode_table(
    spec: Mapping[str, Any],
    id_of: Callable[[str], int | None],
    *,
    empty: Sequence[int],
    first: int | None,
) -> EncodeTable:
    """Translate a ``tokenizer.json`` that the library has accepted (it accepts lists for some records).

    ``id_of`` maps an added token to its id.  ``empty``: ids of an empty prompt.  ``first``: id of BOS,
    or None if prompts start without it.
    """
    try:
        normalizing = _normalizer(spec.get("normalizer"))
        cutting = _pre_tokenizer(spec.get("pre_tokenizer"), bool(normalizing))
        before = _before(spec.get("post_processor"))
        added = _added(spec.get("added_tokens") or [], id_of, normalizing)
        model = _model(spec["model"], cutting[-1].kind == "BYTES")
    except _UnknownPartError as part:
        return EncodeTable(tuple(empty), first, refusal=f"{part} is not known to it")
    except (AttributeError, KeyError, TypeError) as other:
        refusal = f"a part of another form ({type(other).__name__}: {other}) is not known to it"
        return EncodeTable(tuple(empty), first, refusal=refusal)
    steps = (Step("ADDED_EARLY"), *normalizing, Step("ADDED_LATE"), *cutting)
    return EncodeTable(tuple(empty), first, "", before, steps=steps, added=added, **model)


def _normalizer(spec: Mapping[str, Any] | None) -> list[Step]:
    steps: list[Step] = []
    for part in flatten(spec, "normalizers"):
        kind = part.get("type")
        if kind == "Prepend":
            steps.append(Step("PREPEND", str(part["prepend"]).encode()))
        elif kind == "Replace":
            pattern = part["pattern"]
            if not pattern.get("String"):
                raise _UnknownPartError(f"normalizer Replace of {shortened(pattern)}")
            steps.append(_replace(pattern["String"], part["content"]))
        elif kind == "NFC" and not steps:
            steps.append(Step("NFC", *nfc_tables()))
        else:
            raise _UnknownPartError(f"normalizer {kind}")
    return steps


def _replace(old: str, new: str) -> Step:
    return Step("REPLACE", old.encode(), new.encode())


def _pre_tokenizer(spec: Mapping[str, Any] | None, normalized: bool) -> list[Step]:
    """Return the steps that cut the text, and last the step that splits a piece into units."""
    steps: list[Step] = []
    for part in flatten(spec, "pretokenizers"):
        kind = part.get("type")
        if steps and steps[-1].kind == "BYTES":
            raise _UnknownPartError(f"pre-tokenizer {kind} after ByteLevel")
        if kind == "Split":
            steps.append(_split(part))
        elif kind == "Digits":
            steps.append(Step("CUT_DIGIT" if part.get("individual_digits") else "CUT_DIGITS"))
        elif kind == "Metaspace":
            steps += _metaspace(part, normalized)
        elif kind == "ByteLevel":
            if part.get("add_prefix_space"):
                steps.append(Step("PREFIX", b" "))
            if part.get("use_regex", True):
                steps.append(Step("CUT_GPT2"))
            steps.append(Step("BYTES"))
        else:
            raise _UnknownPartError(f"pre-tokenizer {kind}")
    return steps if steps and steps[-1].kind == "BYTES" else [*steps, Step("CHARACTERS")]


def _split(part: Mapping[str, Any]) -> Step:
    known = {GPT2_WORDS: "CUT_GPT2", LLAMA3_WORDS: "CUT_LLAMA3", QWEN2_WORDS: "CUT_QWEN2"}
    pattern = part["pattern"].get("Regex")
    if pattern not in known:
        raise _UnknownPartError(f"pre-tokenizer Split at {shortened(part['pattern'])}")
    if part.get("behavior") != "Isolated" or part.get("invert"):
        raise _UnknownPartError(f"pre-tokenizer Split with behavior {part.get('behavior')}")
    return Step(known[pattern])


def _metaspace(part: Mapping[str, Any], normalized: bool) -> list[Step]:
    space = str(part["replacement"])
    scheme = part.get("prepend_scheme") or "always"
    if part.get("add_prefix_space") is False:  # written by tokenizers before 0.15
        scheme = "never"
    steps = [_replace(" ", space)]
    if scheme == "always":
        steps.append(Step("PREFIX", space.encode()))
    elif scheme == "first":
        if normalized:
            raise _UnknownPartError("pre-tokenizer Metaspace (first) after a normalizer")
        steps.append(Step("PREFIX_FIRST", space.encode()))
    if part.get("split", True):
        steps.append(Step("CUT_BEFORE", space.encode()))
    return steps


def _before(spec: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Return the ids that a post-processor prepends.  Appended ids are ignored, since a prompt continues."""
    before: list[int] = []
    templates = 0
    for part in flatten(spec, "processors"):
        kind = part.get("type")
        if kind == "ByteLevel":  # changes only offsets
            continue
        if kind != "TemplateProcessing":
            raise _UnknownPartError(f"post-processor {kind}")
        single = part["single"]
        texts = [i for i, piece in enumerate(single) if "Sequence" in piece]
        templates += 1
        if len(texts) != 1 or templates > 1:
            raise _UnknownPartError("post-processor TemplateProcessing with several texts")
        for piece in single[: texts[0]]:
            before += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(before)


def _added(
    tokens: Sequence[Mapping[str, Any]],
    id_of: Callable[[str], int | None],
    normalizing: Sequence[Step],
) -> tuple[Added, ...]:
    added: list[Added] = []
    for token in tokens:
        content = str(token["content"])
        for setting in ("single_word", "lstrip", "rstrip"):
            if token.get(setting):
                raise _UnknownPartError(f"added token {shortened(content)} with {setting}")
        index = id_of(content)
        if not content or index is None:
            continue
        late = bool(token.get("normalized"))
        text = content.encode()
        for step in normalizing if late else ():
            text = _rewritten(step, text)
        if text:
            added.append(Added(text, index, late))
    return tuple(added)


def _rewritten(step: Step, text: bytes) -> bytes:
    if step.kind == "NFC":
        done: str = normalizers.NFC().normalize_str(text.decode())
        return done.encode()
    return step.a + text if step.kind == "PREPEND" else text.replace(step.a, step.b)


def _model(model: Mapping[str, Any], in_bytes: bool) -> dict[str, Any]:
    if "merges" not in model:
        raise _UnknownPartError(f"model {model.get('type')}")
    for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise _UnknownPartError(f"model BPE with {setting}")
    vocab: dict[str, int] = model["vocab"]
    merges: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
    fallbacks: tuple[int | None, ...] = ()
    if model.get("byte_fallback"):
        fallbacks = tuple(vocab.get(f"<0x{byte:02X}>") for byte in range(BYTES))
    if in_bytes:
        units = {b: vocab[c] for c, b in UNICODE_TO_BYTE.items() if c in vocab}
        if fallbacks and len(units) < BYTES:
            raise _UnknownPartError("model BPE with byte_fallback under ByteLevel")
    else:
        units = {ord(piece): index for piece, index in vocab.items() if len(piece) == 1}
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in vocab:
        raise _UnknownPartError(
            f"model BPE with the unknown token {shortened(unknown)} outside its vocabulary"
        )
    return {
        "unknown": None if unknown is None else vocab[unknown],
        "fuse": bool(model.get("fuse_unk")),
        "units": units,
        "fallbacks": fallbacks,
        "merges": merges,
        "words": _words(vocab, in_bytes) if model.get("ignore_merges") else {},
    }


def _words(vocab: Mapping[str, int], in_bytes: bool) -> dict[bytes, int]:
    if not in_bytes:
        return {piece.encode(): index for piece, index in vocab.items()}
    return {
        bytes(UNICODE_TO_BYTE[char] for char in piece): index
        for piece, index in vocab.items()
        if all(char in UNICODE_TO_BYTE for char in piece)
    }
