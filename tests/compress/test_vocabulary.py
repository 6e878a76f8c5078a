"""Stage vocabulary: rows, ids and files, and later stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.interrupting import InterruptAt
from helpers.texts import trained_bytelevel
from helpers.tiny_llama import added_token, sentencepiece_json, write_tiny_llama
from shrinkc.checkpoints import load
from shrinkc.cli.main import run_cli
from shrinkc.compression.calibration import Calibration
from shrinkc.compression.facts import facts_of
from shrinkc.compression.recipe import parse_recipe
from shrinkc.compression.run import compress
from shrinkc.compression.stages import lora, vocabulary
from shrinkc.compression.stages.context import StepContext
from shrinkc.core.errors import BadData, BadRecipe, RunChanged, TokenizerNotCut
from shrinkc.core.progress import Silent
from shrinkc.importer import Tokenizer, load_model
from shrinkc.importer.chat_template import ChatTemplate

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

Step = Callable[..., StepContext]
KEEP = 440
# the last kept tokens differ between runs, because training a tokenizer breaks ties arbitrarily
SUPPRESSED = [5, *range(600, 800)]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_ids(directory: Path, text: str) -> list[int]:
    return list(load(directory).tokenizer(text, add_special_tokens=False)["input_ids"])


def test_kept_rows_do_not_change(
    stories: Path, story_file: Path, step: Step, tmp_path: Path
) -> None:
    settings = vocabulary.Settings(keep=KEEP, samples=0)
    report = vocabulary.run(settings, step())
    kept = json.loads((tmp_path / "out" / vocabulary.TOKENS).read_text())
    before, after = load_model(stories), load_model(tmp_path / "out")
    assert after.config.vocab_size == KEEP == len(kept) == report.parameters["tokens"]
    np.testing.assert_array_equal(after.embedding, before.embedding[kept])
    for a, b in zip(before.layers, after.layers, strict=True):
        np.testing.assert_array_equal(a.wq, b.wq)
    facts = facts_of(tmp_path / "out")
    assert facts.parameters == vocabulary.predict(settings, facts_of(stories)).parameters
    assert report.parameters["tokens_before"] == 512 and report.notes == []
    # tokens of the texts before and after
    text = story_file.read_text()
    counts = [len(text_ids(path, text)) for path in (stories, tmp_path / "out")]
    assert report.parameters["tokens_of_texts"] == counts and counts[0] <= counts[1]
    # for a text with kept tokens only, the model's logits of these tokens do not change
    sentence = "Once upon a time, there was a little child named Lily."
    old, new = (text_ids(path, sentence) for path in (stories, tmp_path / "out"))
    assert [kept[index] for index in new] == old
    with torch.no_grad():
        wanted = load(stories).model(torch.tensor([old])).logits[..., kept]
        found = load(tmp_path / "out").model(torch.tensor([new])).logits
    torch.testing.assert_close(found, wanted)


def test_without_calibration_text_its_own_is_counted(
    stories: Path, other_file: Path, step: Step, tmp_path: Path
) -> None:
    settings = vocabulary.Settings(share=0.9, text=(str(other_file),))
    assert not settings.needs_calibration and vocabulary.Settings(keep=9).needs_calibration
    report = vocabulary.run(settings, step(calibration=Calibration((), 8, 64))).parameters
    # 386 tokens cover the share; rounded up to 448
    assert report["covered"] == 1.0 and report["tokens"] == 448
    assert facts_of(tmp_path / "out").config.vocab_size == 448


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level model with the special tokens last, a separate LM head and a chat template."""
    folder = tmp_path_factory.mktemp("untied") / "m"
    spec = trained_bytelevel()
    count = len(spec["model"]["vocab"])
    names = ["<s>", "<|eot|>", "<tool>"]
    spec["added_tokens"] += [added_token(count + i, name) for i, name in enumerate(names)]
    write_tiny_llama(
        folder, vocab=count + 8, tokenizer="none", tied=False, bos_id=count, max_position=512,
        eos_ids=[2, count + 1], config={"pad_token_id": -1},
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|eot|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": count, "eos_token_id": [2, count + 1], "suppress_tokens": SUPPRESSED,
                    "bad_words_ids": [[700]]})
    )  # fmt: skip
    return folder


def test_ids_in_configs_and_template_follow(
    untied: Path, story_file: Path, step: Step, tmp_path: Path
) -> None:
    settings = vocabulary.Settings(keep=KEEP, text=(str(story_file),))
    report = vocabulary.run(settings, step(untied))
    out = tmp_path / "out"
    kept = json.loads((out / vocabulary.TOKENS).read_text())
    before, after = load_model(untied), load_model(out)
    assert after.head is not None and before.head is not None
    np.testing.assert_array_equal(after.head, before.head[kept])
    np.testing.assert_array_equal(after.embedding, before.embedding[kept])
    names = {kept.index(i): name for i, name in ((2, "<|im_end|>"), (800, "<s>"), (801, "<|eot|>"))}
    bos, (end, eot) = after.config.bos_id, after.config.eos_ids
    assert [names[i] for i in (bos, end, eot)] == ["<s>", "<|im_end|>", "<|eot|>"]
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == KEEP and config["pad_token_id"] == -1
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["bos_token_id"] == bos and generation["eos_token_id"] == [end, eot]
    left = [i for i in SUPPRESSED if i in kept]
    assert generation["suppress_tokens"] == [kept.index(i) for i in left]
    assert 5 in left and len(left) < len(SUPPRESSED)
    assert "bad_words_ids" not in generation or generation["bad_words_ids"] is None
    assert report.notes == [
        "bad_words_ids of the generation config holds token ids and was left out"
    ]
    # the template gives the same text with the same tokens
    assert ChatTemplate.from_dir(out) is not None
    old, new = (
        Tokenizer.from_dir(p, c.vocab_size, None)
        for p, c in ((untied, before.config), (out, after.config))
    )
    ids = new.encode_chat("Hello")
    assert [kept[index] for index in ids] == old.encode_chat("Hello")
    assert new.encode_table().refusal == ""


def test_a_model_of_fewer_tokens_keeps_them_all(stories: Path, step: Step, tmp_path: Path) -> None:
    settings = vocabulary.Settings(keep=4096)
    assert vocabulary.preflight(settings, facts_of(stories)) == []
    assert vocabulary.predict(settings, facts_of(stories)).config.vocab_size == 512
    report = vocabulary.run(settings, step())
    assert report.notes == ["all 512 tokens of the model stay"]
    assert vocabulary.tokens_left([tmp_path / "out"]) == tuple(range(512))
    np.testing.assert_array_equal(
        load_model(tmp_path / "out").embedding, load_model(stories).embedding
    )


def test_predicted_counts(stories: Path, story_file: Path, step: Step, tmp_path: Path) -> None:
    """Compared with its definition; an interrupt loses only the windows since the last saved sum."""
    settings = vocabulary.Settings(keep=KEEP, samples=40, length=32)
    ids = text_ids(stories, story_file.read_text())
    count = len(ids) // 32
    starts = [i * count // 40 * 32 for i in range(40)] if count > 40 else range(0, count * 32, 32)
    with torch.no_grad():
        windows = torch.tensor([ids[start : start + 32] for start in starts])
        odds = load(stories).model(windows).logits.softmax(-1).double().mean((0, 1))
    wanted = vocabulary.choose(
        settings, step().calibration.texts, load(stories).tokenizer, (),
        dict(enumerate((odds * len(ids)).tolist())),
    )[1]  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        vocabulary.run(settings, step(reporter=InterruptAt("expects", 20)))
    done, places, _ = torch.load(tmp_path / "scratch" / "expected.pt")
    assert (done, places) == (16, 16 * 32)
    report = vocabulary.run(settings, step()).parameters
    kept = json.loads((tmp_path / "out" / vocabulary.TOKENS).read_text())
    assert tuple(kept) == wanted.kept
    share = float(odds[kept].sum() / odds.sum())
    assert report["expected_covered"] == pytest.approx(share, abs=1e-4) and share < 1
    (tmp_path / "fresh").mkdir()
    again = step(out=tmp_path / "again", scratch=tmp_path / "fresh")
    assert vocabulary.run(settings, again).parameters == report
    counted = step(out=tmp_path / "counted", scratch=tmp_path / "fresh")
    few = vocabulary.Settings(keep=KEEP, samples=0)
    assert "expected_covered" not in vocabulary.run(few, counted).parameters
    assert json.loads((tmp_path / "counted" / vocabulary.TOKENS).read_text()) != kept


def test_windows_are_spread_over_a_text() -> None:
    assert vocabulary.spread(10, 16, 4) == [slice(0, 10)]
    assert vocabulary.spread(40, 16, 4) == [slice(0, 16), slice(16, 32)]
    found = vocabulary.spread(16 * 100 + 3, 16, 8)
    assert len(found) == 8 and found[-1].stop > 16 * 80
    assert all(w.stop - w.start == 16 and w.stop <= 1603 for w in found)
    assert all(a.stop <= b.start for a, b in pairwise(found))


def test_a_teacher_gets_the_same_tokens(
    stories: Path, story_file: Path, step: Step, tmp_path: Path
) -> None:
    vocabulary.run(vocabulary.Settings(keep=KEEP), step())
    (tmp_path / "s").mkdir()
    again = step(
        tmp_path / "out", teacher=tmp_path / "out", out=tmp_path / "less", scratch=tmp_path / "s"
    )
    vocabulary.run(vocabulary.Settings(keep=KEEP - 40), again)
    tokens = vocabulary.tokens_left([tmp_path / "out", tmp_path / "less"])
    assert tokens is not None and len(tokens) == KEEP - 40
    assert vocabulary.tokens_left([]) is None
    context = step(tmp_path / "less", teacher=stories, tokens=tokens, out=tmp_path / "trained")
    settings = lora.Settings(
        samples=4, batch=2, length=64, rank=2, dropout=0.0, distill=1.0, dtype="float32"
    )
    report = lora.run(settings, context).parameters
    # the model is its own teacher, so the divergence is small; another order of rows or the whole
    # vocabulary would make it large
    assert all(abs(loss) < 1e-5 for _, loss in report["loss_curve"])


def test_a_run_compares_in_bits_per_byte(
    stories: Path, story_file: Path, other_file: Path, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {
        "calibration": {"text": [str(story_file)], "samples": 16, "length": 64},
        "evaluate": {"text": str(other_file), "windows": 2},
        "vocabulary": {"keep": 416},
        "lora": {"samples": 8, "batch": 4, "length": 64, "rank": 2, "distill": 0.5},
    }
    out = tmp_path / "run"
    result = compress(str(stories), out, parse_recipe(tables), reporter=Silent())
    assert [row.vocabulary for row in result.rows] == [512, 416, 416]
    assert all(row.bits_per_byte is not None for row in result.rows)
    table = (out / "table.md").read_text()
    assert (
        " | 416 | " in table and "between steps of different tokens, bits per byte compare" in table
    )
    record = json.loads((out / "01-vocabulary" / "step.json").read_text())
    assert record["metrics"]["perplexity"]["bits_per_byte"] == result.rows[1].bits_per_byte
    # about 0.7 bits for a model that was trained on such stories
    assert 0.2 < (result.rows[0].bits_per_byte or 0) < (result.rows[1].bits_per_byte or 0) < 3
    program = str(tmp_path / "program")
    assert run_cli(["compile", str(result.final), "-o", program]) == 0
    assert run_cli(["run", program, "--prompt", "Once upon", "--tokens", "4"]) == 0
    changed = parse_recipe(tables | {"vocabulary": {"keep": 417}})
    with pytest.raises(RunChanged, match="vocabulary.keep: 416 → 417"):
        compress(str(stories), out, changed, reporter=Silent())


def test_refusals(stories: Path, story_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="exactly one of keep, share is needed"):
        vocabulary.Settings()
    with pytest.raises(BadRecipe, match=r"share = 1.5"):
        vocabulary.Settings(share=1.5)
    tables = {
        "calibration": {"text": [str(story_file)], "samples": 16, "length": 64},
        "vocabulary": {"keep": 100},
    }
    with pytest.raises(BadRecipe, match="keep = 100: 260 tokens have to stay"):
        compress(str(stories), tmp_path / "o", parse_recipe(tables), reporter=Silent())
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(BadData, match=r"vocabulary.text: empty.txt has no tokens"):
        nothing = tables | {"vocabulary": {"keep": 400, "text": str(empty)}}
        compress(str(stories), tmp_path / "o", parse_recipe(nothing), reporter=Silent())
    write_tiny_llama(tmp_path / "m", max_position=512)
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(sentencepiece_json()))
    with pytest.raises(TokenizerNotCut, match="has no bytes to spell a text with"):
        compress(str(tmp_path / "m"), tmp_path / "o", parse_recipe(tables), reporter=Silent())
    assert not (tmp_path / "o").exists()
