from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.llama2c import read_pieces, write_stories260k
from helpers.tiny_gguf import tiny_gguf
from helpers.tiny_llama import PRINTABLE, bytelevel_json, sentencepiece_json
from importer.test_gptq import refusal
from shrinkc.core.errors import BadTokenizer
from shrinkc.importer import Tokenizer, load_config, load_model
from shrinkc.importer.gguf_file import GgufFile
from shrinkc.importer.gguf_tokenizer import TURN_ENDS, load_tokenizer

TEXTS = [
    "",
    "the cat in the hat, all over a house",
    "  two  spaces and\ttabs\n\nlines ",
    "Numbers 12345, 3.14 x²+½ and ١٢٣",
    "don't I'LL we'Ve",
    "</s> in the text, <s>, <unk>",
    "ünïcode 漢字 🙂\r\n",
]


def tokenizer_of(path: Path, **fields: Any) -> Tokenizer:
    tiny_gguf(path / "m.gguf", layers=1, **fields)
    return load_model(path / "m.gguf").tokenizer


@pytest.mark.parametrize("parse_special", [True, False])
def test_byte_level_gives_the_ids_of_a_tokenizer_json(tmp_path: Path, parse_special: bool) -> None:
    import json

    spec = bytelevel_json(288)
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, spec["pre_tokenizer"]],
    }
    expected = Tokenizer(json.dumps(spec), tmp_path, 288, None)
    ours = tokenizer_of(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text, parse_special=parse_special)
        assert ids == expected.encode(text, parse_special=parse_special)
        assert ours.decode(ids) == expected.decode(ids)
    assert ours.decode_table() == expected.decode_table()


@pytest.mark.parametrize("parse_special", [True, False])
def test_sentencepiece_gives_the_ids_of_a_tokenizer_json(
    tmp_path: Path, parse_special: bool
) -> None:
    import json

    expected = Tokenizer(json.dumps(sentencepiece_json(400)), tmp_path, 400, 1)
    ours = tokenizer_of(tmp_path, tokenizer="llama", vocab=400)
    for text in TEXTS:
        ids = ours.encode(text, parse_special=parse_special)
        assert ids == expected.encode(text, parse_special=parse_special)
        assert ours.decode(ids) == expected.decode(ids)
    assert ours.decode_table() == expected.decode_table()
    assert ours.bos_id == 1


def test_a_real_sentencepiece_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    import gguf

    write_stories260k(shared_data, tmp_path / "hf")
    pieces = read_pieces(shared_data / "stories260K/tok512.bin")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([score for _, score in pieces])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (512 - 259)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = load_tokenizer(GgufFile(tmp_path / "m.gguf"), 512)
    expected = Tokenizer.from_dir(tmp_path / "hf", 512, 1)
    text = next((shared_data / "tinystories").glob("*.txt")).read_text()[:20000]
    assert ours.encode(text) == expected.encode(text)
    assert ours.decode_table() == expected.decode_table()


@pytest.mark.parametrize(
    ("pre", "numbers", "contraction"),
    [
        ("gpt-2", [" 1234½"], ["'", "T"]),
        ("smollm", [" ", "1", "2", "3", "4", "½"], ["'", "T"]),
        ("llama-bpe", [" ", "123", "4½"], ["'T"]),
        ("qwen2", [" ", "1", "2", "3", "4", "½"], ["'T"]),
    ],
)
def test_how_words_are_cut(
    tmp_path: Path, pre: str, numbers: list[str], contraction: list[str]
) -> None:
    ours = tokenizer_of(tmp_path, pre=pre)
    text = "I'll pay 1234½, don'T  x"
    pieces = ours._engine.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in pieces] == [
        "I", "'ll", " pay", *numbers, ",", " don", *contraction, " ", " x",
    ]  # fmt: skip


def test_qwen2_normalises_its_text(tmp_path: Path) -> None:
    ours = tokenizer_of(tmp_path, pre="qwen2")
    assert ours.encode("cafe\u0301") == ours.encode("caf\u00e9") != ours.encode("cafe")
    other = tokenizer_of(tmp_path, pre="llama-bpe")
    assert other.encode("cafe\u0301") != other.encode("caf\u00e9")


def test_llama_3_takes_whole_words_and_begins_with_bos(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.merges": ["t h"]}  # no merges lead to the token "the"
    ours = tokenizer_of(
        tmp_path, pre="llama-bpe", metadata={**changes, "tokenizer.ggml.add_bos_token": None}
    )
    whole = list(bytelevel_json(288)["model"]["vocab"]).index("the")
    assert ours.encode("the") == [1, whole]
    other = tokenizer_of(tmp_path, pre="smollm", metadata=changes)
    assert whole not in other.encode("the")
    assert other.bos_id is None


def test_bos_is_added_when_the_file_says_so(tmp_path: Path) -> None:
    yes = {"tokenizer.ggml.add_bos_token": True}
    assert tokenizer_of(tmp_path, metadata=yes).encode("a")[0] == 1
    no = {"tokenizer.ggml.add_bos_token": False}
    assert tokenizer_of(tmp_path, tokenizer="llama", metadata=no).bos_id is None


def test_space_in_front(tmp_path: Path) -> None:
    ours = tokenizer_of(
        tmp_path, tokenizer="llama", metadata={"tokenizer.ggml.add_space_prefix": False}
    )
    ids = ours.encode("a b", add_bos=False)
    assert ids == [3 + PRINTABLE.index("a"), *ours.encode(" b", add_bos=False)]
    assert ours.decode(ids) == "a b"


def test_types_of_tokens(tmp_path: Path) -> None:
    tokens = list(bytelevel_json(288)["model"]["vocab"])
    types = [3, 3, 3] + [1] * (len(tokens) - 3)
    tokens += ["<|mine|>", "<|end|>"]
    types += [4, 3]
    ours = tokenizer_of(
        tmp_path,
        metadata={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types},
    )
    mine, end = len(tokens) - 2, len(tokens) - 1
    assert ours.encode("<|mine|><|end|>") == [mine, end]
    table = ours.decode_table()
    assert (table[mine], table[end]) == (b"<|mine|>", b"")
    assert end not in ours.encode("<|end|>", parse_special=False)


TOKENS = "tokenizer.ggml.tokens"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tokenizer.ggml.pre": "chameleon"}, "tokenizer.ggml.pre = 'chameleon'"),
        ({"tokenizer.ggml.pre": ["smollm"]}, "tokenizer.ggml.pre = ['smollm']"),
        ({"tokenizer.ggml.tokens": 7}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model = 't5'"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model = None"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "the merge 'a b c' is not of two tokens"),
        ({"tokenizer.ggml.merges": ["a z"]}, "the merge 'a z' is not of two tokens"),
        ({"tokenizer.ggml.merges": ["a zzz"]}, "the merge 'a zzz' is not of two tokens"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "has to hold"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token = 1"),
        (
            {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True},
            "no BOS token is named",
        ),
    ],
)
def test_refused(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    tiny_gguf(tmp_path / "m.gguf", layers=1, metadata=metadata)
    assert said in refusal(BadTokenizer, tmp_path / "m.gguf")


def test_tokens_refused(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "a.gguf", layers=1, tokenizer="none")
    assert "tokenizer.ggml.tokens is missing" in refusal(BadTokenizer, tmp_path / "a.gguf")
    repeated = {TOKENS: ["a", "b", "a"], "tokenizer.ggml.token_type": [1, 1, 1]}
    tiny_gguf(tmp_path / "b.gguf", layers=1, metadata=repeated)
    assert "'a' occurs more than once" in refusal(BadTokenizer, tmp_path / "b.gguf")
    many = {TOKENS: [str(i) for i in range(289)]}
    tiny_gguf(tmp_path / "c.gguf", layers=1, metadata=many)
    assert "has 289 tokens, the model's vocabulary is 288" in refusal(
        BadTokenizer, tmp_path / "c.gguf"
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (None, "scores has to hold"),
        ([1.0], "scores has to hold"),
        ([1] * 106, "scores has to hold 106 floats"),
        ([0.0] * 106, "the same score"),
        ([float("nan")] * 106, "NaN"),
    ],
)
def test_scores_refused(tmp_path: Path, scores: list[float] | None, said: str) -> None:
    tiny_gguf(
        tmp_path / "m.gguf",
        layers=1,
        tokenizer="llama",
        vocab=106,
        metadata={"tokenizer.ggml.scores": scores},
    )
    assert said in refusal(BadTokenizer, tmp_path / "m.gguf")


@pytest.mark.parametrize("text", TURN_ENDS)
def test_the_token_that_ends_a_turn_is_found_by_its_text(tmp_path: Path, text: str) -> None:
    """Most files of instruct models name only the end of a text, as llama.cpp finds the other one itself."""
    name = "tokenizer.ggml.token"
    tiny_gguf(tmp_path / "m.gguf", layers=1)
    fields = GgufFile(tmp_path / "m.gguf").metadata
    tokens, types = list(fields[f"{name}s"]), list(fields[f"{name}_type"])
    at = len(tokens) - 1
    tokens[at] = text
    for kind, found in ((1, (2,)), (3, (2, at))):
        types[at] = kind
        metadata = {f"{name}s": tokens, f"{name}_type": types}
        tiny_gguf(tmp_path / f"{kind}.gguf", layers=1, metadata=metadata)
        assert load_config(tmp_path / f"{kind}.gguf").eos_ids == found
        metadata["tokenizer.ggml.eot_token_id"] = at
        tiny_gguf(tmp_path / f"{kind}t.gguf", layers=1, metadata=metadata)
        assert load_config(tmp_path / f"{kind}t.gguf").eos_ids == (2, at)
