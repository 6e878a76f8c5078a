"""A real model: stories260K of llama2.c, against SentencePiece and published figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.float_reference import greedy, token_losses
from shrinkc.importer import FloatModel, load_model

from . import llama2c_reference as reference

# the text that llama2.c's test_all.py expects of run.c at temperature 0, 200 steps
EXPECTED_TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
    "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what "
    'to do."\n'
    "Lily didn't want to help her mom, so she"
)


@pytest.fixture(scope="module")
def model(stories_dir: Path) -> FloatModel:
    return load_model(stories_dir)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> list[str]:
    """The pieces of the protocol in the data folder's README."""
    text = (shared_data / "tinystories" / "tinystories_val.txt").read_text(encoding="utf-8")
    pieces = re.split(r"\n\n(?=Once upon a time|One day)", text)
    return [piece.strip() for piece in pieces]


def sentencepiece_encoder(shared_data: Path) -> Any:
    """Return tok512.model with the setting to keep repeated spaces, like llama2.c."""
    sentencepiece = pytest.importorskip("sentencepiece")
    data = (shared_data / "stories260K" / "tok512.model").read_bytes()
    # Protocol buffers merge what is appended: normalizer_spec (3) {remove_extra_whitespaces
    # (4) = false}.  run.c has no such normalisation, and four stories hold double spaces.
    data += b"\x1a\x02\x20\x00"
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def test_sizes(model: FloatModel) -> None:
    config = model.config
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (64, 172, 5)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (8, 4, 512)
    count = model.embedding.size + model.final_norm.size
    count += sum(
        values.size
        for layer in model.layers
        for values in vars(layer).values()
        if isinstance(values, np.ndarray)
    )
    assert count == 260_032


def test_stories_encode_as_sentencepiece(
    model: FloatModel, stories: list[str], shared_data: Path
) -> None:
    processor = sentencepiece_encoder(shared_data)
    assert len(stories) == 984
    for story in stories:
        ids = model.tokenizer.encode(story)
        assert ids == [1, *processor.encode(story)]
        assert model.tokenizer.decode(ids) == story


@pytest.mark.parametrize(
    "text",
    ["", " ", "  a  b ", "\n", "a\tb", "aaaaaaa", "hehehehe", "naïve 漢字 🙂", "\x00a", "don't"],
)
def test_odd_texts(model: FloatModel, shared_data: Path, text: str) -> None:
    ids = model.tokenizer.encode(text)
    assert ids == [1, *sentencepiece_encoder(shared_data).encode(text)]
    pieces = reference.read_tokenizer(shared_data / "stories260K" / "tok512.bin")
    assert ids == reference.encode(pieces, text)
    assert model.tokenizer.decode(ids) == text


def test_random_texts_encode_as_llama2c(model: FloatModel, shared_data: Path) -> None:
    pieces = reference.read_tokenizer(shared_data / "stories260K" / "tok512.bin")
    words = [piece.decode() for piece, _ in pieces[259:]]
    rng = np.random.default_rng(3)
    for _ in range(1500):
        text = "".join(rng.choice(words, size=rng.integers(1, 8)))
        assert model.tokenizer.encode(text) == reference.encode(pieces, text), repr(text)


def test_validation_loss(model: FloatModel, stories: list[str]) -> None:
    total, count = 0.0, 0
    for story in stories[:80]:
        ids = model.tokenizer.encode(story)[:400]
        if len(ids) >= 50:
            losses = token_losses(model, ids)
            total, count = total + float(losses.sum()), count + len(losses)
    assert count == 20_188
    assert total / count == pytest.approx(1.2915, abs=5e-4)


def test_greedy_text_from_an_empty_prompt(model: FloatModel) -> None:
    ids = greedy(model, model.tokenizer.encode(""), 200)
    assert model.tokenizer.decode(ids) == EXPECTED_TEXT
