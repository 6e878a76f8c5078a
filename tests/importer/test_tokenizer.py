from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from helpers.tiny_llama import (
    DEFAULT_VOCAB,
    PRINTABLE,
    added_token,
    bytelevel_json,
    sentencepiece_json,
)
from shrinkc.core.errors import BadTokenizer
from shrinkc.importer import Tokenizer

SP_BYTES = 99 + 256 + 8  # characters, byte pieces and words
BL_ALL = 3 + 256 + 8


def make(
    tmp_path: Path, spec: dict[str, Any], vocab: int, bos_id: int | None = 1, **settings: Any
) -> tuple[Tokenizer, Any]:
    """Write ``spec`` and return our tokenizer and the library's."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    return Tokenizer.from_dir(tmp_path, vocab, bos_id), library


# --- encoding --------------------------------------------------------------------------


def test_bos_of_the_post_processor_is_not_doubled(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, sentencepiece_json(), DEFAULT_VOCAB)
    assert tokenizer.encode("the a") == library.encode("the a").ids
    assert tokenizer.encode("the a")[:2] != [1, 1]


def test_bos_is_added_where_the_file_does_not(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, bytelevel_json(), BL_ALL)
    plain = library.encode("the a").ids
    assert tokenizer.encode("the a") == [1, *plain]
    assert tokenizer.encode("<s>the a") == [1, *plain]  # the text brings its own
    assert tokenizer.encode("the a", add_bos=False) == plain
    assert tokenizer.encode("") == [1]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_empty_prompt_is_bos(tmp_path: Path, kind: str) -> None:
    spec = sentencepiece_json(BL_ALL) if kind == "sentencepiece" else bytelevel_json()
    assert make(tmp_path, spec, BL_ALL)[0].encode("") == [1]
    assert make(tmp_path, spec, BL_ALL)[0].encode("", add_bos=False) == []


def test_model_without_bos(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, bytelevel_json(), BL_ALL, bos_id=None)
    assert tokenizer.encode("the") == library.encode("the").ids
    assert tokenizer.encode("") == []


def test_explicit_setting_not_to_add_bos(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, bytelevel_json(), BL_ALL, add_bos_token=False)
    assert tokenizer.encode("the") == library.encode("the").ids
    assert tokenizer.bos_id is None
    assert tokenizer.decode_table()[1] == b""
    again, _ = make(tmp_path, bytelevel_json(), BL_ALL, add_bos_token=None)
    assert again.bos_id == 1


def test_a_template_of_the_text_alone_means_no_bos(tmp_path: Path) -> None:
    spec = bytelevel_json()
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    tokenizer, library = make(tmp_path, spec, BL_ALL)
    assert tokenizer.encode("the") == library.encode("the").ids
    asked, _ = make(tmp_path, spec, BL_ALL, add_bos_token=True)
    assert asked.encode("the") == [1, *library.encode("the").ids]


def test_trailing_eos_of_the_post_processor_is_dropped(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    spec["post_processor"]["special_tokens"]["</s>"] = {
        "id": "</s>",
        "ids": [2],
        "tokens": ["</s>"],
    }
    tokenizer, library = make(tmp_path, spec, DEFAULT_VOCAB)
    assert library.encode("the").ids[-1] == 2
    assert tokenizer.encode("the") == library.encode("the").ids[:-1]
    assert tokenizer.encode("") == [1]
    # one that the text itself holds stays
    assert tokenizer.encode("the</s>")[-1] == 2


def test_special_tokens_in_the_text(tmp_path: Path) -> None:
    tokenizer, _ = make(tmp_path, sentencepiece_json(), DEFAULT_VOCAB)
    assert 2 in tokenizer.encode("a</s>")
    spelled = tokenizer.encode("a</s>", parse_special=False)
    assert 2 not in spelled and tokenizer.decode(spelled) == "a</s>"
    assert 2 in tokenizer.encode("a</s>")  # the choice does not stick


def test_settings_for_batches_are_ignored(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    spec["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "</s>",
    }
    tokenizer, _ = make(tmp_path, spec, DEFAULT_VOCAB)
    assert tokenizer.decode(tokenizer.encode("abcdefghij")) == "abcdefghij"
    assert len(tokenizer.encode("abcdefghij")) < 20


def test_source_file_is_kept_as_it_was(tmp_path: Path) -> None:
    tokenizer, _ = make(tmp_path, sentencepiece_json(), DEFAULT_VOCAB)
    text = tokenizer.to_json()
    assert text == (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "copy.json").write_text(text)
    copy = Tokenizer.from_file(tmp_path / "copy.json", DEFAULT_VOCAB, tokenizer.bos_id)
    assert copy.encode("the ou") == tokenizer.encode("the ou")
    assert copy.decode_table() == tokenizer.decode_table()


# --- decoding --------------------------------------------------------------------------


def test_table_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    tokenizer, _ = make(tmp_path, sentencepiece_json(SP_BYTES), SP_BYTES + 5)
    table = tokenizer.decode_table()
    assert len(table) == SP_BYTES + 5
    assert table[:3] == [b"", b"", b""]
    assert table[3:98] == [char.encode() for char in PRINTABLE]
    assert table[98] == b"\n"
    assert table[99 : 99 + 256] == [bytes([byte]) for byte in range(256)]
    assert b" the" in table[355:363]
    assert table[SP_BYTES:] == [b""] * 5
    assert tokenizer.strip_leading_space


def test_table_of_a_bytelevel_tokenizer(tmp_path: Path) -> None:
    tokenizer, _ = make(tmp_path, bytelevel_json(), BL_ALL + 1)
    table = tokenizer.decode_table()
    assert table[:3] == [b"", b"", b""]
    assert table[3:259] == [bytes([byte]) for byte in range(256)]
    assert b" the" in table
    assert table[-1] == b""
    assert not tokenizer.strip_leading_space


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_added_tokens(tmp_path: Path, kind: str) -> None:
    size = SP_BYTES if kind == "sentencepiece" else BL_ALL
    spec = sentencepiece_json(size) if kind == "sentencepiece" else bytelevel_json()
    spec["added_tokens"] += [
        added_token(size, "<|end|>"),
        added_token(size + 1, "<tool call>", special=False),
        added_token(size + 2, "é!", special=False),
    ]
    tokenizer, _ = make(tmp_path, spec, size + 3)
    assert tokenizer.decode_table()[size:] == [b"", b"<tool call>", "é!".encode()]
    ids = tokenizer.encode("a<tool call>b<|end|>c")
    assert size in ids and size + 1 in ids


def test_bos_adds_nothing_even_if_not_marked_special(tmp_path: Path) -> None:
    spec = bytelevel_json()
    spec["added_tokens"] = []
    assert make(tmp_path, spec, BL_ALL)[0].decode_table()[1] == b""


def test_random_ids_decode_as_in_the_library_sentencepiece(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, sentencepiece_json(SP_BYTES), SP_BYTES)
    rng = random.Random(1)
    # ASCII only: for broken UTF-8 the library writes a mark per byte, the device the bytes
    ids = [i for i in range(SP_BYTES) if not 99 + 128 <= i < 99 + 256]
    for _ in range(500):
        sample = rng.choices(ids, k=rng.randint(0, 12))
        assert tokenizer.decode(sample) == library.decode(sample, skip_special_tokens=True)


def test_random_ids_decode_as_in_the_library_bytelevel(tmp_path: Path) -> None:
    tokenizer, library = make(tmp_path, bytelevel_json(), BL_ALL)
    rng = random.Random(1)
    for _ in range(500):
        sample = rng.choices(range(BL_ALL), k=rng.randint(0, 12))
        assert tokenizer.decode(sample) == library.decode(sample, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_text_survives_the_round_trip(tmp_path: Path, kind: str) -> None:
    size = SP_BYTES if kind == "sentencepiece" else BL_ALL
    spec = sentencepiece_json(size) if kind == "sentencepiece" else bytelevel_json()
    tokenizer, library = make(tmp_path, spec, size)
    for text in ("", "a", " a", "  two  spaces ", "naïve 漢字 🙂\r\n\tx", "then the others"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert library.decode(ids, skip_special_tokens=True) == text


def test_a_character_may_be_split_over_tokens(tmp_path: Path) -> None:
    tokenizer, _ = make(tmp_path, bytelevel_json(), BL_ALL)
    ids = tokenizer.encode("🙂", add_bos=False)
    assert len(ids) == 4
    assert b"".join(tokenizer.decode_table()[i] for i in ids) == "🙂".encode()
    assert tokenizer.decode(ids[:2]) == "\ufffd"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_unigram_with_metaspace(tmp_path: Path, scheme: str) -> None:
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["▁", -3.0], ["▁the", -1.0]]
    pieces += [[char, -4.0] for char in "abcthe"]
    spec = sentencepiece_json()
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}
    spec.update(normalizer=None, pre_tokenizer=space, decoder=space)
    spec["model"] = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    tokenizer, library = make(tmp_path, spec, len(pieces))
    assert tokenizer.strip_leading_space == (scheme != "never")
    for text in ("the cab", "a", "the the a b c"):
        ids = tokenizer.encode(text)
        assert ids == library.encode(text).ids
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True) == text


def test_old_metaspace_field(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["decoder"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    assert make(tmp_path, spec, DEFAULT_VOCAB)[0].strip_leading_space


def test_no_strip_step(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["decoder"]["decoders"].pop()
    tokenizer, library = make(tmp_path, spec, DEFAULT_VOCAB)
    assert not tokenizer.strip_leading_space
    ids = tokenizer.encode("ab")
    assert tokenizer.decode(ids) == library.decode(ids) == " ab"


# --- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (None, "no decoder"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "'WordPiece' is not supported"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "'BPEDecoder' is not supported"),
        ({"type": "Strip", "content": " ", "start": 1, "stop": 0}, "of every token"),
        (
            {
                "type": "Sequence",
                "decoders": [
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 0, "stop": 1},
                ],
            },
            "1 trailing",
        ),
        (
            {"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "},
            "only plain strings",
        ),
    ],
)
def test_decoders_that_are_refused(tmp_path: Path, decoder: Any, said: str) -> None:
    spec = {**sentencepiece_json(), "decoder": decoder}
    with pytest.raises(BadTokenizer, match=said) as caught:
        make(tmp_path, spec, DEFAULT_VOCAB)
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        {
            "type": "WordPiece",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2},
        },
        {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"},
    ],
)
def test_models_that_are_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(BadTokenizer, match=f"a {model['type']} tokenizer; supported are BPE"):
        make(tmp_path, {**sentencepiece_json(), "model": model}, DEFAULT_VOCAB)


def test_random_merges_are_refused(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["model"]["dropout"] = 0.1
    with pytest.raises(BadTokenizer, match=r"dropout 0\.1"):
        make(tmp_path, spec, DEFAULT_VOCAB)


def test_more_pieces_than_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(BadTokenizer, match=r"7 ids beyond the model's vocab_size 100.* 100 \("):
        make(tmp_path, sentencepiece_json(), 100)


def test_added_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    spec = sentencepiece_json()
    spec["added_tokens"].append(added_token(DEFAULT_VOCAB, "<pad>"))
    with pytest.raises(BadTokenizer, match="1 ids beyond.*<pad>"):
        make(tmp_path, spec, DEFAULT_VOCAB)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b"[]", "a JSON list"),
        (b"\xff", "not UTF-8"),
        (b"{}", "no tokenizer model"),
        (b'{"model": {"type": "BPE"}}', "not accepted by tokenizers"),
        (b'{"model": {"vocab": {}, "merges": [["a", "b"]]}}', "not accepted by tokenizers"),
    ],
)
def test_unreadable_files(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(BadTokenizer, match=said):
        Tokenizer.from_dir(tmp_path, 10)


def test_what_makes_the_library_panic(tmp_path: Path) -> None:
    """A panic of Rust is no Exception."""
    prefix = sentencepiece_json()
    prefix["model"]["continuing_subword_prefix"] = "x" * 10
    (tmp_path / "tokenizer.json").write_text(json.dumps(prefix))
    with pytest.raises(BadTokenizer, match="is not accepted by tokenizers"):
        Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB)


@pytest.mark.parametrize("inside", [False, True])
def test_a_template_of_tokens_that_it_does_not_define(
    tmp_path: Path, inside: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library would print its panic before it can be refused."""
    spec = sentencepiece_json()
    spec["post_processor"]["special_tokens"] = {}
    if inside:
        spec["post_processor"] = {"type": "Sequence", "processors": [spec["post_processor"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(BadTokenizer, match="names <s>, which its special_tokens do not define"):
        Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("single", [3, None, [3], ["Sequence"], {"Sequence": {}}])
def test_a_template_of_another_type(tmp_path: Path, single: Any) -> None:
    spec = sentencepiece_json()
    spec["post_processor"]["single"] = single
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(BadTokenizer):
        Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB)


def test_half_of_a_character(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(sentencepiece_json()))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "\U0001f999"}))
    assert Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB).chat is not None
    settings.write_text(json.dumps({"chat_template": "\ud83e"}))
    with pytest.raises(BadTokenizer, match="half of a character"):
        Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB)


def test_named_templates_of_other_types(tmp_path: Path) -> None:
    templates = [{"name": [1], "template": "a"}, {"name": "default", "template": "b"}, 3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(sentencepiece_json()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    chat = Tokenizer.from_dir(tmp_path, DEFAULT_VOCAB).chat
    assert chat is not None and chat.source == "b"
