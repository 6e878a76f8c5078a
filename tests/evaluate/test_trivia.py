"""TriviaQA: the formats that are read, the three tiers, closed and open book."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluate.fake_scorer import FakeScorer
from helpers.shared_data import find_shared_data
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Silent
from shrinkc.evaluation import EvalPlan, evaluate
from shrinkc.evaluation.trivia import Trivium, first_line, normalized, read_trivia, tier_of


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The  Cotswold-Hills!", "cotswold hills"),
        ("an apple_pie", "apple pie"),
        ("‘Tis A Theatre", "tis theatre"),
        ("?!", ""),
    ],
)
def test_normalized_as_the_official_evaluation(text: str, want: str) -> None:
    assert normalized(text) == want


@pytest.mark.parametrize(
    ("answer", "aliases", "tier"),
    [
        ("the Mark Twain.", ["Sam Clemens", "Mark Twain"], "exact"),
        ("It was Mark Twain, of course", ["Mark Twain"], "contained"),
        ("Marks of Twain", ["Mark Twain"], None),
        ("start", ["art"], None),  # words, not letters
        ("Clemens, whose names were Samuel Langhorne, of Missouri", ["Samuel Langhorne Clemens"],
         "words"),
        ("one two three four", ["one two three four five"], "words"),  # 4 of 5
        ("one two three", ["one two three four"], None),  # 3 of 4
        ("", ["Mark Twain"], None),
        ("nothing", ["?", "the"], None),  # aliases that normalise to nothing match nothing
        ("", ["!"], None),
    ],
)  # fmt: skip
def test_tiers(answer: str, aliases: list[str], tier: str | None) -> None:
    assert tier_of(answer, aliases) == tier


@pytest.mark.parametrize(
    ("text", "want"),
    [(" Paris\nQuestion: next", "Paris"), ("\n\n Rome \nx", "Rome"), (" \n", ""), ("a", "a")],
)
def test_first_line(text: str, want: str) -> None:
    assert first_line(text) == want


def test_formats(tmp_path: Path) -> None:
    file = write(
        tmp_path / "q.jsonl",
        {"id": "1", "question": " Who? ", "golden_answers": ["A", "B"]},
        {"question": "What?", "golden_answers": ["C"], "contexts": ["longer text", "text", " "]},
        {
            "question": "Where?",
            "question_id": "x",
            "answer": {"value": "V", "aliases": ["W"], "normalized_aliases": ["w"]},
            "entity_pages": {"wiki_context": ["wiki page"], "title": ["t"]},
            "search_results": {"search_context": ["found", ""]},
        },
        {"question": "When?", "answer": {"value": "V", "aliases": []}, "entity_pages": None},
    )
    assert read_trivia(file) == [
        Trivium("Who?", ("A", "B"), ()),
        Trivium("What?", ("C",), ("text", "longer text")),
        Trivium("Where?", ("W", "V"), ("found", "wiki page")),
        Trivium("When?", ("V",), ()),
    ]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{", "line 3: no JSON"),
        ("[1]", "line 3: no JSON object"),
        ('{"golden_answers": ["a"]}', "line 3: no question"),
        ('{"question": "q"}', "line 3: no answers"),
        ('{"question": "q", "golden_answers": []}', "line 3: no answers"),
        ('{"question": "q", "golden_answers": "a"}', "line 3: no answers"),
    ],
)
def test_the_line_of_a_fault_is_named(tmp_path: Path, second: str, says: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "q", "golden_answers": ["a"]}\n\n' + second + "\n")
    with pytest.raises(BadData, match=says) as caught:
        read_trivia(file)
    assert caught.value.exit_code == 17


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "q.jsonl"
    empty.write_text("\n")
    with pytest.raises(BadData, match="holds no question"):
        read_trivia(empty)
    empty.write_bytes(b"\xff\xfe")
    with pytest.raises(BadData, match="not UTF-8"):
        read_trivia(empty)


def ask(scorer: FakeScorer, file: Path, items: int | None = None) -> dict[str, Any]:
    report = evaluate(scorer, EvalPlan(trivia=file, trivia_items=items), Silent())
    part = report["trivia"]
    assert isinstance(part, dict)
    return part


def test_closed_book(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "golden_answers": [f"answer {i}"]} for i in range(5)]
    said = {
        0: " Answer 0.\nQuestion: what else?",
        1: " It is answer 1",
        2: "\n\n1 answer? no 2: answer",  # both words, not in a row
        3: " no idea\nanswer 3",  # beyond the first line
    }
    answers = {f"Question: q{i}\nAnswer:": text for i, text in said.items()}
    part = ask(FakeScorer(answers=answers), write(tmp_path / "q.jsonl", *rows))
    closed = part["closed"]
    assert (closed["exact"], closed["contained"], closed["words"]) == (1, 1, 1)
    assert (closed["correct"], closed["items"], closed["accuracy"]) == (3, 5, 0.6)
    assert closed["standard_error"] == pytest.approx((0.6 * 0.4 / 4) ** 0.5)
    assert closed["max_new_tokens"] == 50
    assert part["open"] is None
    assert part["open_reason"] == "q.jsonl has no contexts"
    json.dumps(part)


def test_items_are_spread_over_the_file(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "golden_answers": ["a"]} for i in range(10)]
    file = write(tmp_path / "q.jsonl", *rows)
    scorer = FakeScorer()
    ask(scorer, file, 3)
    assert [scorer.decode(p).split("\n")[0] for p in scorer.asked[0]] == [
        "Question: q0", "Question: q3", "Question: q6",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="11 items are asked for, .* has 10"):
        ask(scorer, file, 11)


def test_open_book_takes_the_shortest_context_and_cuts_it(tmp_path: Path) -> None:
    file = write(
        tmp_path / "q.jsonl",
        {"question": "q0", "golden_answers": ["Rome"], "contexts": ["in Rome", "x" * 900]},
        {"question": "q1", "golden_answers": ["Rome"], "contexts": ["y" * 500]},
        {"question": "q2", "golden_answers": ["Rome"]},
    )
    prompt = "Context: in Rome\nQuestion: q0\nAnswer:"
    scorer = FakeScorer(max_length=200, answers={prompt: " Rome"})
    part = ask(scorer, file)
    assert part["closed"]["items"] == 3
    assert (part["open"]["items"], part["open"]["exact"], part["open"]["contexts_cut"]) == (2, 1, 1)
    first, second = scorer.asked[1]
    assert scorer.decode(first) == prompt
    assert "yyy\nQuestion: q1\nAnswer:" in scorer.decode(second)
    assert 180 <= len(second) + 50 <= 200


def test_questions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {"question": "long" * 20, "golden_answers": ["Rome"]})
    with pytest.raises(UsageError, match=r"up to 149 positions, fake has 100.*--context 149"):
        ask(FakeScorer(max_length=100), file)


def test_shared_questions_are_read() -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("no shared data")
    items = read_trivia(data / "triviaqa" / "triviaqa_1000.jsonl")
    assert len(items) == 1000
    assert not any(item.contexts for item in items)
    assert all(tier_of(item.answers[0], item.answers) in ("exact", None) for item in items)
