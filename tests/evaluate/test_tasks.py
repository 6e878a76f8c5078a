"""Tasks of lm-evaluation-harness on local files: which questions are asked, how they count, what is refused."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import pytest

from evaluate.fake_scorer import FakeScorer
from helpers.shared_data import find_shared_data
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Silent
from shrinkc.core.resources import resource
from shrinkc.evaluation import EvalPlan, TaskChoice, evaluate
from shrinkc.evaluation import tasks as module
from shrinkc.evaluation.rows import figures, task_values
from shrinkc.evaluation.tasks import read_rows

pytestmark = pytest.mark.slow

pytest.importorskip("lm_eval")
datasets = pytest.importorskip("datasets")

LLAMA_CPP = "Play: Tom has a ball. He\n2\ngrew.\nbit the [step] sky.\nplays with it.\nof.\n"
QUESTION = "Question: Who is {}??\nAnswer:"


def measured(scorer: FakeScorer, *tasks: str, items: int | None = None) -> Any:
    plan = EvalPlan(tasks=tuple(map(TaskChoice.parse, tasks)), items=items)
    return evaluate(scorer, plan, Silent())["tasks"]


def asked(scorer: FakeScorer) -> list[list[str]]:
    return [[scorer.decode(ids) for ids in part] for part in scorer.asked]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- files ----


def test_a_choice_is_a_name_and_perhaps_a_file() -> None:
    for text, files in (
        ("piqa", ()), ("a/my.yaml", ("a/my.yaml",)), ("piqa=x=y", ("x=y",)), ("my.yml=d", ("my.yml", "d")),
    ):  # fmt: skip
        choice = TaskChoice.parse(text)
        assert (str(choice), choice.files) == (text, tuple(map(Path, files)))
    assert str(TaskChoice.parse("a.yaml=b").moved(lambda path: f"/{path}")) == "/a.yaml=/b"
    for text in ("", "=file", "piqa="):
        with pytest.raises(UsageError, match="is no task"):
            TaskChoice.parse(text)


def test_the_forms_of_a_file_have_the_same_rows(tmp_path: Path) -> None:
    text, packed = tmp_path / "tasks.txt", tmp_path / "tasks.txt.bz2"
    text.write_text(LLAMA_CPP * 2)
    packed.write_bytes(bz2.compress(text.read_bytes()))
    row = {
        "activity_label": "Play", "ctx_a": "Tom has a ball. He", "ctx_b": "", "label": "2",
        "endings": ["grew.", "bit the [step] sky.", "plays with it.", "of."],
    }  # fmt: skip
    assert read_rows(text) == read_rows(packed) == [row, row]
    assert read_rows(lines(tmp_path / "rows.jsonl", row)) == [row]
    flash = {"id": "1", "question": "Who?", "golden_answers": ["A", "B"], "contexts": ["c"]}
    assert read_rows(lines(tmp_path / "flash.jsonl", flash)) == [
        {"question": "Who?", "answer": {"aliases": ["A", "B"]}, "search_results": {"search_context": ["c"]}}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no question"),
        ('{"a": 1}\n[]\n', "line 2: no JSON object"),
        (LLAMA_CPP + "Play: Tom\n1\n", "lines 7 to 12 are no task"),
        (LLAMA_CPP.replace("\n2\n", "\ntwo\n"), "lines 1 to 6 are no task"),
        (LLAMA_CPP.replace("Play: ", ""), "lines 1 to 6 are no task"),
    ],
)
def test_the_line_of_a_fault_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "file").write_text(content)
    with pytest.raises(BadData, match=says):
        read_rows(tmp_path / "file")
    (tmp_path / "file.bz2").write_bytes(b"BZh9")
    with pytest.raises(BadData, match="no whole bz2 file"):
        read_rows(tmp_path / "file.bz2")


# ---- what is asked, and what counts ----


def test_hellaswag(tmp_path: Path) -> None:
    file = tmp_path / "tasks.txt"
    file.write_text(LLAMA_CPP + LLAMA_CPP.replace("\n2\n", "\n0\n").replace("Play", "Game"))
    scorer = FakeScorer(liked=("plays with it.",))
    found = measured(scorer, f"hellaswag={file}")["hellaswag"]
    context = "Play: Tom has a ball. He"
    assert asked(scorer)[0] == [
        f"{context} {ending}" for ending in ("grew.", "bit the sky.", "plays with it.", "of.")
    ]
    assert found["items"] == 2 and found["file"] == "tasks.txt" and found["kind"] == "fake"
    assert found["metrics"]["acc"] == {"value": 0.5, "standard_error": 0.5}
    assert task_values({"tasks": {"hellaswag": found}}) == {
        "hellaswag acc": 0.5,
        "hellaswag acc_norm": 0.5,
    }
    rows = figures({"tasks": {"hellaswag": found}})
    assert rows[0] == ("hellaswag acc", "50.00 %", "50.00", "2 items")


def test_triviaqa(tmp_path: Path) -> None:
    rows = [
        {"question": f"Who is {name}?", "golden_answers": [name, "x"]}
        for name in ("Tom", "Mia", "Al")
    ]
    answers = {QUESTION.format("Tom"): " TOM, a cat", QUESTION.format("Mia"): "\nIt is Mia.\nNo"}
    scorer = FakeScorer(answers=answers)
    found = measured(scorer, f"triviaqa={lines(tmp_path / 'q.jsonl', *rows)}")["triviaqa"]
    assert [text for (text,) in asked(scorer)] == [
        QUESTION.format(name) for name in ("Tom", "Mia", "Al")
    ]
    assert found["items"] == 3 and found["shots"] == 0
    assert found["metrics"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert found["metrics"]["contains"]["value"] == pytest.approx(2 / 3)


def test_open_book_takes_the_shortest_context(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Who?",
            "golden_answers": ["Tom"],
            "contexts": ["A long text.", "Tom did.", " "],
        },
        {"question": "What?", "golden_answers": ["it"], "contexts": []},
    ]
    prompt = "Context: Tom did.\nQuestion: Who??\nAnswer:"
    scorer = FakeScorer(answers={prompt: " Tom"})
    found = measured(scorer, f"triviaqa_open={lines(tmp_path / 'q.jsonl', *rows)}")["triviaqa_open"]
    assert asked(scorer) == [[prompt]]
    assert (found["items"], found["shots"]) == (1, 0)
    assert {m["value"] for m in found["metrics"].values()} == {1.0}


def test_items_are_spread_over_the_data(tmp_path: Path) -> None:
    rows = [{"question": f"Who is {n}?", "golden_answers": ["x"]} for n in range(10)]
    scorer = FakeScorer()
    task = f"triviaqa={lines(tmp_path / 'q.jsonl', *rows)}"
    assert measured(scorer, task, items=3)["triviaqa"]["items"] == 3
    assert [text for (text,) in asked(scorer)] == [QUESTION.format(n) for n in (0, 3, 6)]
    with pytest.raises(UsageError, match="11 items are asked for, the task triviaqa has 10"):
        measured(scorer, task, items=11)


def test_any_other_task_on_a_file_of_its_form(tmp_path: Path) -> None:
    choices = {"text": ["a leg", "a bacterium"], "label": ["A", "B"]}
    row = {"question": "What causes a fever?", "choices": choices, "answerKey": "B"}
    file = lines(tmp_path / "arc.jsonl", row)
    found = measured(FakeScorer(liked=("bacterium",)), f"arc_easy={file}")
    assert found["arc_easy"]["metrics"]["acc"]["value"] == 1.0


def test_a_task_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = lines(
        tmp_path / "d.jsonl",
        {"question": "Two?", "answer": "2"},
        {"question": "One?", "answer": "1"},
    )
    own = tmp_path / "own.yaml"
    own.write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "doc_to_choice: ['1', '2']\nnum_fewshot: 1\nmetric_list: [{metric: acc}]\n"
    )
    scorer = FakeScorer(liked=("2",))
    found = measured(scorer, str(own))["own"]
    assert (found["shots"], found["metrics"]["acc"]["value"]) == (1, 0.5)
    assert asked(scorer)[0] == ["One? 1\n\nTwo? 1", "One? 1\n\nTwo? 2"]  # never its own answer


# ---- what is refused ----


def test_a_task_that_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    root = resource("lm_eval_tasks")
    monkeypatch.setattr(
        module, "_manager", lambda choice: TaskManager(include_defaults=False, include_path=root)
    )
    with pytest.raises(
        UsageError, match="has no task 'triviaqa_opem'. Hint: similar ones: triviaqa_open"
    ):
        measured(FakeScorer(), "triviaqa_opem")
    with pytest.raises(BadData, match="nowhere.yaml cannot be read"):
        measured(FakeScorer(), str(tmp_path / "nowhere.yaml"))


def test_a_data_set_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(**options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(
        BadData, match=r"hellaswag cannot be loaded: no route Hint: .* hub and in .*/cache; .*=FILE"
    ):
        measured(FakeScorer(), "hellaswag")


def test_questions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.txt"
    file.write_text(LLAMA_CPP)
    with pytest.raises(
        UsageError, match="6 tokens to be predicted are asked for, fake has 5 positions"
    ):
        measured(FakeScorer(max_length=5), f"hellaswag={file}")
    rows = lines(tmp_path / "q.jsonl", {"question": "Who?", "golden_answers": ["Tom"]})
    with pytest.raises(UsageError, match="50 new tokens are asked for, fake has 50 positions"):
        measured(FakeScorer(max_length=50), f"triviaqa={rows}")


def test_the_shared_files_are_read() -> None:
    data = find_shared_data()
    if data is None:
        pytest.skip("no test data: set SHRINKC_DATA or provide ../shared/data")
    tasks = read_rows(data / "hellaswag" / "hellaswag_val_full.txt.bz2")
    questions = read_rows(data / "triviaqa" / "triviaqa_1000.jsonl")
    assert (len(tasks), len(questions)) == (10_042, 1000)
    assert all(question["answer"]["aliases"] for question in questions)
