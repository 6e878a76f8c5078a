"""Calibration data: choice of windows, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shrinkc.checkpoints import load_tokenizer
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.texts import read_texts
from shrinkc.core.errors import BadData

from .conftest import story_text

pytest.importorskip("torch")

pytestmark = pytest.mark.slow


def test_windows_are_spread_over_the_text(stories: Path, story_file: Path) -> None:
    tokenizer = load_tokenizer(stories)
    windows = Calibration((str(story_file),), 16, 32).windows(tokenizer)
    assert windows.shape == (16, 32)
    ids = tokenizer(story_file.read_text(), add_special_tokens=False)["input_ids"]
    whole = [ids[at : at + 32] for at in range(0, len(ids) - 31, 32)]
    places = [whole.index(row) for row in windows.tolist()]
    assert places == [i * len(whole) // 16 for i in range(16)]


@pytest.mark.parametrize(
    ("samples", "length", "words"),
    [
        (1, 64, "calibration.samples = 1: at least 2 samples are needed"),
        (10_000, 64, "10000 samples of 64 tokens need 640000 tokens"),
        (2, 100_000, "need 200000 tokens"),
    ],
)
def test_too_little(stories: Path, story_file: Path, samples: int, length: int, words: str) -> None:
    with pytest.raises(BadData) as caught:
        Calibration((str(story_file),), samples, length).check(load_tokenizer(stories))
    assert words in str(caught.value) and caught.value.exit_code == 17


def test_repeated_text(stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "again.txt"
    file.write_text("\n".join(5 * [story_text(3, 20)]))
    with pytest.raises(BadData, match="80 of 100 paragraphs of again.txt repeat an earlier one"):
        Calibration((str(file),), 4, 32).check(load_tokenizer(stories))
    # one paragraph, so only the check of windows finds the repetition
    file.write_text("the " * 4000)
    with pytest.raises(BadData, match=r"only \d of 8 samples differ"):
        Calibration((str(file),), 8, 64).check(load_tokenizer(stories))


def test_few_samples_and_few_duplicates_are_noted(stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    text = story_text(4, 40)
    file.write_text(text + "\n\n" + text.split("\n\n")[0])
    calibration = Calibration((str(file),), 4, 32)
    calibration.check(load_tokenizer(stories))
    assert any("1 of 41 paragraphs repeat" in note for note in calibration.notes)
    assert any("fewer than 16" in note for note in calibration.notes)


def test_sources(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "one"}), json.dumps({"text": "two"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_bytes(b"crlf\r\nline")
    first, second = read_texts((str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")), "k")
    assert (first.content, second.content) == ("one\n\ntwo", "crlf\nline")
    (tmp_path / "a.jsonl").write_text('{"txt": 1}')
    with pytest.raises(BadData, match='line 1: an object with a field "text"'):
        read_texts((str(tmp_path / "a.jsonl"),), "k")
    with pytest.raises(BadData, match="lora.text: .*none.txt cannot be read"):
        read_texts((str(tmp_path / "none.txt"),), "lora.text")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadData, match="not UTF-8"):
        read_texts((str(tmp_path / "b.txt"),), "k")
    with pytest.raises(BadData, match="lora.text is not given"):
        read_texts((), "lora.text")
