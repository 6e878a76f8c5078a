"""The host program's encoder gives the ids that the library gives, or says that it cannot."""

from __future__ import annotations

import copy
import json
import random
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from end_to_end.programs import need
from helpers.llama2c import bpe, read_pieces
from helpers.shared_data import find_shared_data
from helpers.texts import TEXTS, texts, trained_bytelevel
from helpers.tiny_llama import added_token, bytelevel_json, sentencepiece_json
from helpers.unicode_tables import table_file
from shrinkc.codegen.tokenizer_blob import tokenizer_blob
from shrinkc.compression.cut_tokenizer import BpeTokens
from shrinkc.importer import Tokenizer
from shrinkc.importer.encode_table import EncodeTable
from shrinkc.importer.tokenizer_json import GPT2_WORDS, LLAMA3_WORDS

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "runtime_c/platform/host"
STORIES = ROOT / "examples/stories"
VOCAB = 1000

Spec = dict[str, Any]
Encode = Callable[[Tokenizer, list[str | bytes]], list[str]]


@pytest.fixture(scope="session")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    """encode(tokenizer, texts): what the C encoder makes of each, with sanitizers."""
    need("host")
    folder = tmp_path_factory.mktemp("encode")
    sources = [ROOT / "tests/codegen/encode_harness.c", HOST / "sc_encode.c"]
    flags = "-std=c11 -Wall -Wextra -Werror -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
    command = ["cc", *flags.split(), f"-I{HOST}", *map(str, sources), "-o", str(folder / "encode")]
    subprocess.run(command, check=True)

    def run(tokenizer: Tokenizer, given: list[str | bytes]) -> list[str]:
        table = tokenizer.encode_table()
        assert table.refusal == ""
        (folder / "tokenizer.bin").write_bytes(tokenizer_blob(table, tokenizer.vocab_size))
        data = [text.encode() if isinstance(text, str) else text for text in given]
        done = subprocess.run(
            [folder / "encode", folder / "tokenizer.bin"],
            input=b"".join(struct.pack("<I", len(text)) + text for text in data),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().split("\n")[:-1]

    return run


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
    "fewer tokens": cut(STORY, 330),
    "fewer byte-level tokens": cut(TRAINED, 400),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_ids_are_the_librarys(encode: Encode, name: str) -> None:
    seed = sorted(SPECS).index(name)
    for bos in (1, None, 5):
        tokenizer = Tokenizer(json.dumps(SPECS[name]), Path(name), VOCAB, bos)
        special = [added.text.decode() for added in tokenizer.encode_table().added]
        given = texts(seed, special, TEXTS if bos == 1 else 100)
        found = encode(tokenizer, list(given))
        for text, ids in zip(given, found, strict=True):
            assert ids == " ".join(map(str, tokenizer.encode(text))), repr(text)


def test_ids_of_stories260k(encode: Encode) -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("the shared data is not there: set SHRINKC_DATA")
    source = bpe(read_pieces(data / "stories260K/tok512.bin")).to_str()
    tokenizer = Tokenizer(source, data, 512, 1)
    given = texts(7, ["<s>", "</s>", "<unk>"])
    given.append((data / "tinystories/tinystories_val.txt").read_text()[:200_000])  # a long one
    expected = [" ".join(map(str, tokenizer.encode(text))) for text in given]
    assert encode(tokenizer, list(given)) == expected


def test_what_is_not_utf8_is_told(encode: Encode) -> None:
    tokenizer = Tokenizer.from_file(STORIES / "tokenizer.json", VOCAB, 1)
    rng = random.Random(1)
    bad = [
        b"\x80",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8",
        b"\xc3",
    ]
    random_ones = [
        bytes(rng.choice(b"a\x80\xbf\xc3\xe2\xed\xf0\xf4\xff") for _ in range(4))
        for _ in range(500)
    ]
    given = [*bad, *(b"ok" + x for x in bad), *random_ones]  # fmt: skip
    for data, said in zip(given, encode(tokenizer, list(given)), strict=True):
        try:
            data.decode()
        except UnicodeDecodeError:
            assert said == "not UTF-8", data
        else:
            assert said != "not UTF-8", data


def refused(spec: Spec) -> EncodeTable:
    return Tokenizer(json.dumps(spec), Path("t"), VOCAB, 1).encode_table()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (changed(TRAINED, pre_tokenizer=split(r"\s+")), "pre-tokenizer Split at {'Regex': '"),
        (changed(TRAINED, pre_tokenizer=split(GPT2_WORDS, behavior="Removed")), "behavior Removed"),
        (changed(TRAINED, pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer Whitespace"),
        (changed(TRAINED, pre_tokenizer=sequence(byte_level(), digits(True))), "Digits after"),
        (changed(STORY, normalizer={"type": "NFC"}), "normalizer NFC"),
        (
            changed(STORY, normalizer={"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}),
            "normalizer Replace of {'Regex': ' +'}",
        ),
        (changed(STORY, pre_tokenizer=metaspace("first", True)), "Metaspace (first) after a"),
        (changed(STORY, {"end_of_word_suffix": "</w>"}), "BPE with end_of_word_suffix"),
        (changed(STORY, {"unk_token": "<none>"}), "unknown token '<none>' outside"),
        (
            changed(STORY, added_tokens=[{**MORE[0], "lstrip": True}]),
            "added token 'upon' with lstrip",
        ),
        (
            changed(STORY, post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}),
            "post-processor BertProcessing",
        ),
        (
            changed(STORY) | {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1]]}},
            "model Unigram",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(spec: Spec, said: str) -> None:
    table = refused(spec)
    assert said in table.refusal and table.refusal.endswith("is not known to it")
    assert table.empty[:1] == (1,)  # an empty prompt goes all the same


def test_classes_of_characters_are_the_librarys() -> None:
    """If this fails after an update of tokenizers: run the generator, as the file says."""
    assert (HOST / "sc_unicode.h").read_text() == table_file()
