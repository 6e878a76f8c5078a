"""Tokenizers of all forms that a program can follow, by name."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import tokenizers

from helpers.texts import trained_bytelevel
from helpers.tiny_llama import added_token, bytelevel_json, sentencepiece_json
from shrinkc.compression.cut_tokenizer import BpeTokens
from shrinkc.importer.tokenizer_json import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "examples/stories"
VOCAB = 1000

Spec = dict[str, Any]


def changed(spec: Spec, model: Spec | None = None, **parts: Any) -> Spec:
    """A copy of a tokenizer.json with other parts, and other settings of its model."""
    copied = {**copy.deepcopy(spec), **parts}
    copied["model"].update(model or {})
    return copied


def byte_level(prefix: bool = False, regex: bool = False) -> Spec:
    kind = {"type": "ByteLevel", "add_prefix_space": prefix}
    return {**kind, "trim_offsets": True, "use_regex": regex}


def split(pattern: str, **settings: Any) -> Spec:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {**part, **settings}


def sequence(*steps: Spec) -> Spec:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def digits(individual: bool) -> Spec:
    return {"type": "Digits", "individual_digits": individual}


def metaspace(scheme: str, cut: bool) -> Spec:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


STORY = json.loads((STORIES / "tokenizer.json").read_text())
TRAINED = trained_bytelevel()
TEMPLATE = STORY["post_processor"]


def cut(spec: Spec, keep: int) -> Spec:
    """The same with the tokens that this documentation needs the most."""
    vocabulary = BpeTokens(spec)
    engine: Any = tokenizers.Tokenizer.from_str(json.dumps(spec))
    used = Counter(engine.encode((ROOT / "README.md").read_text()).ids)
    return vocabulary.cut(vocabulary.choose(used, keep=keep).kept)


def normalizers(*steps: Spec) -> Spec:
    return {"type": "Sequence", "normalizers": list(steps)}


def replace(old: str, new: str) -> Spec:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def prepend(text: str) -> Spec:
    return {"type": "Prepend", "prepend": text}


def shuffled(merges: list[Any]) -> list[Any]:
    """The same in an order in which no training would put them."""
    return random.Random(1).sample(merges, len(merges))


MORE = [
    {**added_token(900 + i, text, special=False), "normalized": late}
    for i, (text, late) in enumerate(
        [("upon", True), (" the", True), ("Once", False), ("On", False), ("▁the ", True), ("中", False)]
    )
]  # fmt: skip
SPECS: dict[str, Spec] = {
    "stories": STORY,
    "sentencepiece": sentencepiece_json(VOCAB),
    "sentencepiece without bytes": sentencepiece_json(),
    "byte-level": bytelevel_json(),
    "gpt2": TRAINED,
    "gpt2 as a split": changed(TRAINED, pre_tokenizer=sequence(split(GPT2_WORDS), byte_level())),
    "smollm2": changed(TRAINED, pre_tokenizer=sequence(digits(True), byte_level(regex=True))),
    "smollm2 in gguf": changed(
        TRAINED, pre_tokenizer=sequence(digits(True), split(GPT2_WORDS), byte_level())
    ),
    "llama3": changed(
        TRAINED,
        {"ignore_merges": True},
        pre_tokenizer=sequence(split(LLAMA3_WORDS), byte_level()),
        post_processor={"type": "Sequence", "processors": [byte_level(), TEMPLATE]},
    ),
    "llama3 with merges": changed(
        TRAINED, pre_tokenizer=sequence(split(LLAMA3_WORDS), byte_level())
    ),
    "qwen2": changed(
        TRAINED, normalizer={"type": "NFC"}, pre_tokenizer=sequence(split(QWEN2_WORDS), byte_level())
    ),
    "nfc with sentencepiece": changed(
        STORY, normalizer=normalizers({"type": "NFC"}, prepend("▁"), replace(" ", "▁"))
    ),
    "a space in front": changed(TRAINED, pre_tokenizer=byte_level(prefix=True, regex=True)),
    "runs of digits": changed(
        TRAINED, pre_tokenizer=sequence(digits(False), byte_level(prefix=True))
    ),
    "no cuts": changed(TRAINED, pre_tokenizer=byte_level()),
    **{
        f"metaspace {scheme} {cut}": changed(
            STORY, normalizer=None, pre_tokenizer=metaspace(scheme, cut)
        )
        for scheme in ("first", "always", "never")
        for cut in (True, False)
    },
    "added tokens": changed(STORY, added_tokens=STORY["added_tokens"] + MORE),
    "no fallback": changed(STORY, {"byte_fallback": False}),
    "no fallback, not fused": changed(STORY, {"byte_fallback": False, "fuse_unk": False}),
    "unknown left out": changed(STORY, {"byte_fallback": False, "unk_token": None}),
    "some bytes only": changed(
        STORY,
        {"vocab": {k: v for k, v in STORY["model"]["vocab"].items() if not (k[:3] == "<0x" and v % 3)}},
    ),
    "whole words": changed(STORY, {"ignore_merges": True}),
    "merges as texts": changed(STORY, {"merges": [" ".join(m) for m in STORY["model"]["merges"]]}),
    "no post-processor": changed(STORY, post_processor=None),
    "shuffled merges": changed(STORY, {"merges": shuffled(STORY["model"]["merges"])}),
    "shuffled byte-level merges": changed(
        TRAINED, {"merges": shuffled(TRAINED["model"]["merges"])}, pre_tokenizer=byte_level()
    ),
    "short added tokens": changed(
        STORY,
        added_tokens=[
            {**added_token(900 + i, text, special=False), "normalized": late}
            for i, (text, late) in enumerate([("a", False), ("'", False), ("e", True), ("▁", True)])
        ],
    ),
    "replaced by more and less": changed(
        STORY,
        normalizer=normalizers(
            replace("ll", "▁▁▁▁▁"), prepend("ab"), replace("the", ""), replace("a", "bab"), replace(" ", "▁"),
        ),
    ),
    "replaced by what is replaced": changed(
        STORY, normalizer=normalizers(replace("a", "ee"), replace("e", "▁中▁"), replace(" ", "e"))
    ),
    "a space in front of words": changed(
        STORY,
        normalizer=None,
        pre_tokenizer=sequence(split(GPT2_WORDS), digits(True), metaspace("always", True)),
    ),
    "many steps": changed(
        TRAINED,
        normalizer=normalizers(replace("e", "é"), replace(" ", "\n ")),
        added_tokens=[{**added_token(900, "é", special=False), "normalized": True}, *MORE],
        pre_tokenizer=sequence(
            digits(False), split(LLAMA3_WORDS), metaspace("always", False), split(GPT2_WORDS),
            byte_level(prefix=True, regex=True),
        ),
    ),
    "fewer tokens": cut(STORY, 330),
    "fewer byte-level tokens": cut(TRAINED, 400),
}  # fmt: skip


def random_spec(seed: int) -> Spec:
    """A small BPE whose merges, ranks, added tokens and steps are random; many are like no trained one."""
    rng = random.Random(seed)
    alphabet = "abc▁é"[: rng.randrange(2, 6)]
    pieces = ["<unk>", *alphabet]
    merges: list[list[str]] = []
    for _ in range(rng.randrange(40)):
        merges.append([rng.choice(pieces[1:]), rng.choice(pieces[1:])])
        pieces += [piece for piece in ["".join(merges[-1])] if piece not in pieces]
    if rng.random() < 0.5:
        rng.shuffle(merges)
    pieces += [f"<0x{byte:02X}>" for byte in range(256)] if rng.random() < 0.5 else []

    def text(most: int = 3) -> str:
        return "".join(rng.choice("abc ▁é") for _ in range(rng.randrange(1, most + 1)))

    steps = [
        rng.choice(
            [prepend(text()), replace(text(2), text()[: rng.randrange(4)]), replace(" ", "▁")]
        )
        for _ in range(rng.randrange(4))
    ]
    scheme = rng.choice(["always", "never"] if steps else ["always", "never", "first"])
    cuts = rng.sample(
        [
            split(GPT2_WORDS),
            split(LLAMA3_WORDS),
            digits(True),
            metaspace(scheme, rng.random() < 0.5),
        ],
        rng.randrange(4),
    )
    added = [
        {**added_token(500 + i, text(4), special=False), "normalized": rng.random() < 0.5}
        for i in range(rng.choice([0, 0, 1, 3]))
    ]
    model = {
        "type": "BPE",
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": merges,
        "unk_token": rng.choice([None, "<unk>"]),
        "fuse_unk": rng.random() < 0.5,
        "byte_fallback": "<0x00>" in pieces,
        "ignore_merges": rng.random() < 0.2,
    }
    parts = {"normalizer": normalizers(*steps), "pre_tokenizer": sequence(*cuts) if cuts else None}
    return {**STORY, **parts, "added_tokens": added, "model": model, "post_processor": None}


def random_texts(seed: int, count: int) -> list[str]:
    """Texts of the characters that :func:`random_spec` knows, and some others."""
    rng = random.Random(seed)
    weights = [9, 9, 6, 3, 3, 3, 1, 1, 1]
    return [
        "".join(rng.choices("abc ▁é1\n😀", weights, k=rng.randrange(1, 60))) for _ in range(count)
    ]
