"""The encoder gives the ids that the library gives, or the tables say that it cannot."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import unicodedata
from pathlib import Path

import pytest

from end_to_end.programs import need
from helpers.encoder import CHIPS, ENCODE, INTERFACE, MANY, SUFFICES, Encoder, build_encoder
from helpers.llama2c import bpe, read_pieces
from helpers.shared_data import find_shared_data
from helpers.texts import texts
from helpers.tiers import slow_but
from helpers.tokenizer_specs import (
    MORE,
    SPECS,
    STORY,
    TRAINED,
    VOCAB,
    Spec,
    byte_level,
    changed,
    digits,
    metaspace,
    random_spec,
    random_texts,
    sequence,
    split,
)
from helpers.unicode_tables import table_file
from shrinkc.codegen.tokenizer_blob import missing_steps, tokenizer_blob
from shrinkc.codegen.tokenizer_limits import room_needed
from shrinkc.importer import Tokenizer
from shrinkc.importer.encode_table import EncodeTable
from shrinkc.importer.tokenizer_json import GPT2_WORDS

ERROR_UTF8, ERROR_ROOM, ERROR_TOKENIZER = "error -19", "error -20", "error -21"
FEW = ("stories", "llama3", "added tokens", "short added tokens", "a space in front of words")
"""Tokenizers of which all tests are in the fast tier."""
STACK = 512
"""Bytes of stack that llm_encode() may take on RV32."""


GROWING = ("\U0001d160", "\u0390", "\u1f82", "가")
"""Characters that take more bytes when they are decomposed; the first also in NFC."""


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The encoder on the host, with sanitizers."""
    need("host")
    return build_encoder(tmp_path_factory.mktemp("encode"))


@pytest.fixture(scope="session")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The encoder without a C library, for RV32."""
    need("qemu")
    return build_encoder(tmp_path_factory.mktemp("encode"), "qemu")


def tokenizer_of(name: str, bos: int | None = 1) -> Tokenizer:
    return Tokenizer(json.dumps(SPECS[name]), Path(name), VOCAB, bos)


def texts_for(tokenizer: Tokenizer, name: str, count: int) -> list[str]:
    special = [added.text.decode() for added in tokenizer.encode_table().added]
    return texts(sorted(SPECS).index(name), special, count)


def lines_of(tokenizer: Tokenizer, given: list[str]) -> list[str]:
    return [" ".join(map(str, tokenizer.encode(text))) for text in given]


def check(encoder: Encoder, tokenizer: Tokenizer, given: list[str], room: int = SUFFICES) -> int:
    """Compare with the library; return the bytes of stack used."""
    assert tokenizer.encode_table().refusal == ""
    found = encoder.run(tokenizer, list(given), room)
    for text, line, expected in zip(given, found.lines, lines_of(tokenizer, given), strict=True):
        assert line == expected, repr(text)
    return found.stack


@pytest.mark.parametrize("name", SPECS)
def test_ids_are_the_librarys(host: Encoder, name: str) -> None:
    for bos in (1, None, 5):
        tokenizer = tokenizer_of(name, bos)
        check(host, tokenizer, texts_for(tokenizer, name, 1000 if bos == 1 else 100))


@pytest.mark.parametrize("name", slow_but(SPECS, *FEW))
def test_ids_without_the_steps_of_other_tokenizers(tmp_path: Path, name: str) -> None:
    """A compiled directory has the encoder without these steps."""
    need("host")
    tokenizer = tokenizer_of(name)
    missing = missing_steps(tokenizer.encode_table())
    without = [macro for macro, is_missing in missing.items() if is_missing]
    assert without
    encoder = build_encoder(tmp_path, sanitize=False, without=without)
    check(encoder, tokenizer, texts_for(tokenizer, name, 300))


@pytest.mark.parametrize("name", SPECS)
def test_ids_without_a_c_library(qemu: Encoder, name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert 0 < check(qemu, tokenizer, texts_for(tokenizer, name, 200)) <= STACK


@pytest.mark.parametrize("name", slow_but(SPECS, *FEW))
def test_smaller_rooms(host: Encoder, name: str) -> None:
    """Up to some room LLM_ERROR_ROOM, from there on the ids; nothing beyond the room is touched."""
    tokenizer = tokenizer_of(name)
    given = texts_for(tokenizer, name, 60)
    check(host, tokenizer, [*given, *tightest(tokenizer)], MANY)


def tightest(tokenizer: Tokenizer) -> list[str]:
    """Texts that need much room: units that do not merge, and texts that steps make longer."""
    table = tokenizer.encode_table()
    parts = [step.a for step in table.steps if step.kind != "NFC"]
    parts += [added.text for added in table.added]
    atoms = [
        "z",
        "a",
        " ",
        "\n",
        "é",
        "中",
        "😀",
        "1",
        *GROWING,
        *(part.decode() for part in parts),
    ]
    return [2 * a + b + 5 * a for a in atoms for b in atoms if a and b]


@pytest.mark.parametrize("name", slow_but(SPECS, *FEW))
def test_long_texts(host: Encoder, name: str) -> None:
    tokenizer = tokenizer_of(name)
    rng = random.Random(2)
    letters = "".join(rng.choice("aeinotsh") for _ in range(3000))
    given = [
        "a" * 3001,
        " " * 2000 + "x",
        letters,
        "中文" * 500,
        "a\0b",
        "".join(texts(3, [], 400)),
    ]
    check(host, tokenizer, given)


def test_every_character_is_normalised(host: Encoder) -> None:
    """All that are changed, alone and with others, and marks in any order."""
    tokenizer = tokenizer_of("qwen2")
    marks = [chr(p) for p in range(0x110000) if unicodedata.combining(chr(p))]
    forms = [chr(p) for p in range(0x110000) if unicodedata.decomposition(chr(p))]
    apart = [unicodedata.normalize("NFD", text) for text in forms]
    rng = random.Random(1)
    mixed = [
        "".join(
            rng.choice(rng.choice([marks, forms, apart, "aAeo가각"]))
            for _ in range(rng.randrange(2, 9))
        )
        for _ in range(20_000)
    ]
    given = ["".join(f"{text}x" for text in part) for part in (marks, forms, apart)]
    given += [" ".join(mixed[at : at + 20]) for at in range(0, len(mixed), 20)]
    check(host, tokenizer, given)


@pytest.mark.parametrize("seed", slow_but(range(20), 0))
def test_random_tokenizers(host: Encoder, seed: int) -> None:
    for number in range(10 * seed, 10 * seed + 10):
        spec = random_spec(number)
        tokenizer = Tokenizer(json.dumps(spec), Path(str(number)), VOCAB, 1)
        # with an added token that steps make empty, the library panics or never ends
        if len(tokenizer.encode_table().added) == len(spec["added_tokens"]):
            check(host, tokenizer, random_texts(number, 30), MANY)


def test_room_of_usual_tokenizers() -> None:
    for name in ("stories", "gpt2", "smollm2", "llama3"):
        per_byte, more = room_needed(tokenizer_of(name).encode_table())
        assert per_byte == 1 and more <= 12, name


def test_numbers_of_more_than_16_bits(host: Encoder, qemu: Encoder) -> None:
    vocab = {**STORY["model"]["vocab"], "zq": 70_000}
    spec = changed(STORY, {"vocab": vocab, "merges": [*STORY["model"]["merges"], ["z", "q"]]})
    tokenizer = Tokenizer(json.dumps(spec), Path("t"), 70_001, 1)
    given = ["zq zzqq the", *texts(4, [], 100)]
    assert "70000" in lines_of(tokenizer, given[:1])[0]
    for encoder in (host, qemu):
        check(encoder, tokenizer, given)


@pytest.mark.gvsoc
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["stories", "llama3"])
def test_ids_on_chips(tmp_path: Path, name: str, chip: str) -> None:
    """The program of the test runs on the controller of the cluster, whose stack has 1,040 bytes."""
    need("gvsoc", CHIPS[chip])
    tokenizer = tokenizer_of(name)
    encoder = build_encoder(tmp_path, chip)
    assert 0 < check(encoder, tokenizer, texts_for(tokenizer, name, 100)) <= STACK


def test_ids_of_stories260k(host: Encoder) -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("the shared data is not there: set SHRINKC_DATA")
    source = bpe(read_pieces(data / "stories260K/tok512.bin")).to_str()
    tokenizer = Tokenizer(source, data, 512, 1)
    given = texts(7, ["<s>", "</s>", "<unk>"])
    given.append((data / "tinystories/tinystories_val.txt").read_text()[:200_000])  # a long one
    check(host, tokenizer, given)


@pytest.mark.parametrize("name", ["stories", "llama3"])
def test_what_is_not_utf8_is_told(host: Encoder, qemu: Encoder, name: str) -> None:
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
    cut_short = [text.encode()[:-1] for text in ("é", "a中", "😀😀")]
    any_bytes = [rng.randbytes(rng.randrange(1, 40)) for _ in range(500)]
    given = [*bad, *(b"ok" + x for x in bad), *random_ones, *cut_short, *any_bytes]
    for encoder in (host, qemu):
        lines = encoder.run(tokenizer_of(name), list(given)).lines
        for data, said in zip(given, lines, strict=True):
            try:
                data.decode()
            except UnicodeDecodeError:
                assert said == ERROR_UTF8, data
            else:
                assert said[:1].isdigit(), data


def test_tables_of_another_version_are_refused(host: Encoder) -> None:
    table = tokenizer_of("stories").encode_table()
    blob = tokenizer_blob(table, VOCAB)
    other = struct.pack("<I", struct.unpack_from("<I", blob)[0] + 1) + blob[4:]
    assert host.run_tables(other, ["", "Once"], 100).lines == [ERROR_TOKENIZER] * 2


def test_a_tokenizer_without_steps_encodes_the_empty_text(host: Encoder) -> None:
    blob = tokenizer_blob(refused(changed(STORY, normalizer={"type": "NFKC"})), VOCAB)
    assert host.run_tables(blob, ["", "Once"]).lines == ["1", ERROR_TOKENIZER]
    assert host.run_tables(blob, [""], 0).lines == [ERROR_ROOM]


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_encoder_needs_no_library(tmp_path: Path) -> None:
    need("qemu")
    gcc, compiled = "riscv64-unknown-elf-gcc", tmp_path / "llm_encode.o"
    flags = ["-std=c11", "-O2", "-march=rv32imc", "-mabi=ilp32", "-ffreestanding", "-nostdinc"]
    headers = f"-I{output(gcc, '-print-file-name=include').strip()}"  # stddef.h and stdint.h
    output(
        gcc,
        *flags,
        headers,
        f"-I{ENCODE}",
        f"-I{INTERFACE}",
        "-c",
        ENCODE / "llm_encode.c",
        "-o",
        compiled,
    )
    listed = output("riscv64-unknown-elf-nm", compiled).splitlines()
    kinds: dict[str, set[str]] = {}
    for line in listed:
        *_, kind, name = line.split()
        kinds.setdefault(kind, set()).add(name)
    assert kinds.pop("U") <= {"memcpy", "memmove", "memset", "memcmp"}
    assert kinds.pop("T") == {"llm_encode", "llm_encode_room"}
    assert not kinds.keys() - {"t", "r"}, "variables"


def refused(spec: Spec) -> EncodeTable:
    return Tokenizer(json.dumps(spec), Path("t"), VOCAB, 1).encode_table()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (changed(TRAINED, pre_tokenizer=split(r"\s+")), "pre-tokenizer Split at {'Regex': '"),
        (changed(TRAINED, pre_tokenizer=split(GPT2_WORDS, behavior="Removed")), "behavior Removed"),
        (changed(TRAINED, pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer Whitespace"),
        (changed(TRAINED, pre_tokenizer=sequence(byte_level(), digits(True))), "Digits after"),
        (changed(STORY, normalizer={"type": "NFKC"}), "normalizer NFKC"),
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
    assert (ENCODE / "llm_characters.h").read_text() == table_file()
