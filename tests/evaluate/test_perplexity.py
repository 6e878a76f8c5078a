"""The two WikiText protocols: what is tokenised, how it is cut, what the figures are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluate.fake_scorer import FakeScorer
from helpers.shared_data import find_shared_data
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Silent
from shrinkc.evaluation import EvalPlan, TaskChoice, evaluate
from shrinkc.evaluation.perplexity import TEST_ROWS, cut_windows, joined_rows, summary, unchanged


def windows_asked(text: Path, protocol: str, windows: int | None = None) -> FakeScorer:
    scorer = FakeScorer(max_length=4096)
    evaluate(scorer, EvalPlan(text=text, protocol=protocol, windows=windows), Silent())  # type: ignore[arg-type]
    return scorer


def test_cut_windows() -> None:
    ids = list(range(10))
    assert cut_windows(ids, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut_windows(ids, 3, 2) == [[0, 1, 2], [3, 4, 5]]
    assert cut_windows(ids, 10) == [ids]
    with pytest.raises(UsageError, match=r"4 windows of 3 tokens need 12 tokens, the text has 10"):
        cut_windows(ids, 3, 4)
    with pytest.raises(UsageError, match="allowed: 1 to 3 windows"):
        cut_windows(ids, 3, 0)
    with pytest.raises(BadData, match="the text has 10 tokens, a window needs 11"):
        cut_windows(ids, 11)


def test_summary_weighs_tokens_and_spreads_windows() -> None:
    losses = [np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]), np.array([4.0, 4.0, 1.0])]
    figures = summary(losses, 30)
    assert figures["tokens"] == 9
    assert figures["loss"] == pytest.approx(21 / 9)
    assert figures["perplexity"] == pytest.approx(math.exp(21 / 9))
    error = np.std([2, 2, 3], ddof=1) / math.sqrt(3)
    assert figures["loss_standard_error"] == pytest.approx(error)
    assert figures["perplexity_standard_error"] == pytest.approx(math.exp(21 / 9) * error)
    assert figures["bits_per_byte"] == pytest.approx(21 / math.log(2) / 30)
    assert summary(losses[:1], 0)["loss_standard_error"] is None
    assert summary(losses[:1], 0)["bits_per_byte"] is None


def test_the_512_protocol_does_not_change_the_text(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b" = Title = \r\n \r\n" + b"abcdefgh\r\n" * 150)
    windows = [ids for (ids,) in windows_asked(text, "wikitext512").asked]
    assert [len(w) for w in windows] == [512, 512]
    assert bytes(windows[0]).startswith(b" = Title = \n \nabcdefgh\n")
    assert windows[1] == list(text.read_bytes().replace(b"\r\n", b"\n"))[512:1024]


def test_rows_are_joined_as_the_papers_do() -> None:
    # what load_dataset("wikitext", "wikitext-2-raw-v1")["text"] has for such a file
    rows = ["", " = Title = \n", "", " Some text . \n", " More . \n", ""]
    file = " \n = Title = \n \n Some text . \n More . \n \n"
    text, how = joined_rows(file)
    assert text == "\n\n".join(rows)
    assert how == "rows joined by two line feeds"


def test_another_file_without_blank_lines_is_unchanged() -> None:
    text, how = joined_rows(" = Title = \n Text . \n")
    assert text == " = Title = \n\n\n Text . \n"
    assert "restored" not in how


def test_blank_rows_of_the_test_split_are_restored() -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("no shared data")
    content = (data / "wikitext2" / "wiki.test.raw").read_bytes().decode().replace("\r\n", "\n")
    text, how = joined_rows(content)
    assert "1467 blank rows that the file lacks restored" in how
    # the file's own lines, and nothing else between them than blank rows
    assert [line for line in text.split("\n") if line] == content.rstrip("\n").split("\n")
    lines = content.rstrip("\n").split("\n")
    size = sum(len(line) + 1 for line in lines) + 2 * (TEST_ROWS - 1)
    assert len(text) == size
    # the first rows of the split, as its viewer on the hub shows them
    assert text.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English")
    assert unchanged(content)[0] == content


def test_the_2048_protocol(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("abcdefg\n" * 1000)
    scorer = windows_asked(text, "wikitext2048")
    windows = [ids for (ids,) in scorer.asked]
    assert {len(w) for w in windows} == {2048}
    assert windows[0][0] == FakeScorer.BOS, "special tokens at the very beginning only"
    assert bytes(windows[0][1:21]) == b"abcdefg\n\n\nabcdefg\n\n\n"
    assert FakeScorer.BOS not in windows[1]


def test_the_report_has_the_protocol(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("0123456789" * 200)
    scorer = FakeScorer(max_length=512)
    report = evaluate(scorer, EvalPlan(text=text, windows=3), Silent())
    part = report["perplexity"]
    assert isinstance(part, dict)
    assert part["protocol"] == "wikitext512"
    assert (part["window"], part["stride"], part["windows"], part["tokens"]) == (512, 512, 3, 1533)
    assert (part["file"], part["bytes"], part["text_tokens"]) == ("a.txt", 2000, 2000)
    assert len(str(part["sha256"])) == 64
    assert (part["kind"], part["dtype"], part["threads"]) == ("fake", "bytes", 1)
    assert part["perplexity"] == pytest.approx(math.exp(FakeScorer.LOSS))
    # a fake token is a byte, so both measures are the same loss
    assert part["predicted_bytes"] == 1533
    assert part["bits_per_byte"] == pytest.approx(FakeScorer.LOSS / math.log(2))
    assert "seconds" in part


def test_a_model_with_fewer_positions_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("0123456789" * 200)
    with pytest.raises(UsageError, match="needs 512 positions, fake has 511.*--context 512"):
        evaluate(FakeScorer(max_length=511), EvalPlan(text=text), Silent())


def test_nothing_asked() -> None:
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate(FakeScorer(), EvalPlan(), Silent())


def test_files_are_read_before_anything_is_computed(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("0123456789" * 200)
    pytest.importorskip("lm_eval")
    scorer = FakeScorer()
    plan = EvalPlan(text=text, tasks=(TaskChoice("hellaswag", tmp_path / "none.txt"),))
    with pytest.raises(BadData, match=r"none\.txt cannot be read"):
        evaluate(scorer, plan, Silent())
    asked: Sequence[object] = scorer.asked
    assert not asked


class Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("positions", "name", "said"),
    [(4096, "wikitext512", False), (512, "wikitext512", False), (511, "wikitext256", True),
     (256, "wikitext256", True), (130, "wikitext128", True), (64, "wikitext64", True)],
)  # fmt: skip
def test_a_short_context_has_windows_that_fit(
    tmp_path: Path, positions: int, name: str, said: bool
) -> None:
    text = tmp_path / "text"
    text.write_text("abcdefgh" * 200)
    scorer, reporter = FakeScorer(max_length=positions), Noted()
    report = evaluate(scorer, EvalPlan(text=text, protocol=None, windows=2), reporter)
    part = report["perplexity"]
    window = int(name.removeprefix("wikitext"))
    assert (part["protocol"], part["window"], part["windows"]) == (name, window, 2)  # type: ignore[index]
    assert scorer.asked == [[list((b"abcdefgh" * 200)[i * window :][:window])] for i in range(2)]
    assert ([name in note for note in reporter.notes] == [True]) == said


def test_a_context_that_holds_no_window(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("abcdefgh" * 200)
    with pytest.raises(UsageError, match="wikitext64 needs 64 positions, fake has 63"):
        evaluate(FakeScorer(max_length=63), EvalPlan(text=text, protocol=None), Noted())
