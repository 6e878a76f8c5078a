"""HellaSwag: both file formats, the choice, and the same log-likelihoods as lm-eval's."""

from __future__ import annotations

import bz2
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluate.fake_scorer import FakeScorer
from helpers.shared_data import find_shared_data
from shrinkc.checkpoints import load
from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Silent
from shrinkc.evaluation import EvalPlan, TorchScorer, evaluate
from shrinkc.evaluation.hellaswag import Task, choices_of, preprocess, read_hellaswag

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"

TASKS = [
    Task("Cooking: A man is in a kitchen. He", ("runs away.", "cuts bread.", "is red.", "x."), 1),
    Task("Sleep: A cat lies down. It", ("sings.", "purrs and sleeps.", "reads.", "drives."), 3),
    Task("Play: Tom has a ball. Tom", ("eats it.", "throws it.", "is a ball.", "was big."), 0),
]


def as_lines(tasks: Sequence[Task]) -> str:
    return "".join("\n".join([t.context, str(t.gold), *t.endings]) + "\n" for t in tasks)


def as_json(tasks: Sequence[Task]) -> str:
    rows = []
    for task in tasks:
        label, context = task.context.split(": ")
        first, second = context.rsplit(" ", 1)
        rows.append(
            {
                "activity_label": label, "ctx_a": first, "ctx_b": second.lower(),
                "ctx": context, "endings": list(task.endings), "label": str(task.gold),
            }
        )  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_formats_give_the_same_tasks(tmp_path: Path) -> None:
    lines, packed, rows = (tmp_path / n for n in ("h.txt", "h.txt.bz2", "h.jsonl"))
    lines.write_text(as_lines(TASKS))
    packed.write_bytes(bz2.compress(as_lines(TASKS).encode()))
    rows.write_text(as_json(TASKS))
    assert read_hellaswag(lines) == (TASKS, "llama.cpp")
    assert read_hellaswag(packed) == (TASKS, "llama.cpp")
    assert read_hellaswag(rows) == (TASKS, "JSON lines")


def test_preprocess() -> None:
    text = " How to rest [title] Sit down. [step] Then  lie."
    assert preprocess(text) == "How to rest. Sit down. Then lie."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (as_lines(TASKS).rsplit("\n", 2)[0], "line 13: the last task has 5 of 6 lines"),
        (as_lines(TASKS).replace("\n3\n", "\nthree\n"), "line 8: 'three' is no index"),
        (as_lines(TASKS).replace("\n3\n", "\n4\n"), "line 7: .*right one is number 4"),
        (as_lines(TASKS).replace("sings.", ""), "line 7: an empty context or ending"),
        (as_json(TASKS).replace('"ctx_a"', '"context"'), "line 1: KeyError: 'ctx_a'"),
        (as_json(TASKS).replace('"label": "1"', '"label": ""'), "line 1: ValueError"),
        (as_json(TASKS).replace(', "x."', ""), "line 1: 3 endings"),
        (as_json(TASKS)[:-3], "line 3: no JSON"),
        ("", "the last task has 1 of 6 lines"),
    ],
)
def test_the_line_of_a_fault_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "h.txt"
    file.write_text(content)
    with pytest.raises(BadData, match=says):
        read_hellaswag(file)


def test_a_damaged_archive(tmp_path: Path) -> None:
    file = tmp_path / "h.txt.bz2"
    file.write_bytes(bz2.compress(as_lines(TASKS).encode())[:-5])
    with pytest.raises(BadData, match="no whole bz2 file"):
        read_hellaswag(file)


def test_the_ending_with_the_least_loss_is_chosen(tmp_path: Path) -> None:
    file = tmp_path / "h.txt"
    file.write_text(as_lines(TASKS))
    # every byte costs the same but for the liked ending, which costs a tenth: by the sum the
    # shortest or the liked one wins, per character the liked one or, where none is, the one
    # whose space weighs least, the longest
    scorer = FakeScorer(liked=("cuts bread.",))
    part = evaluate(scorer, EvalPlan(hellaswag=file), Silent())["hellaswag"]
    assert isinstance(part, dict)
    assert (part["items"], part["acc"], part["acc_norm"]) == (3, pytest.approx(2 / 3), 1 / 3)
    assert part["acc_standard_error"] == pytest.approx((2 / 9 / 2) ** 0.5)
    assert (part["protocol"], part["format"], part["file"]) == ("hellaswag", "llama.cpp", "h.txt")


def test_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "h.txt"
    file.write_text(as_lines(TASKS))
    with pytest.raises(UsageError, match="up to 47 positions, fake has 40.*--context 47"):
        evaluate(FakeScorer(max_length=40), EvalPlan(hellaswag=file), Silent())


def test_log_likelihoods_are_those_of_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own splitting into tokens and its own sums, on the same model."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setitem(os.environ, name, "1")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils")
    data = find_shared_data()
    tasks = TASKS
    if data is not None:
        tasks = read_hellaswag(data / "hellaswag" / "hellaswag_val_full.txt.bz2")[0][:8]
    loaded = load(STORIES)
    scorer = TorchScorer(loaded, batch=4)
    got = scorer.choice_losses([choices_of(scorer, t) for t in tasks], lambda done, total: None)
    theirs = huggingface.HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    requests = [
        instance.Instance(
            "loglikelihood", {}, (utils.preprocess(t.context), f" {utils.preprocess(e)}"), 0
        )
        for t in tasks
        for e in t.endings
    ]
    want = [value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    np.testing.assert_allclose(-np.concatenate(got), want, atol=2e-3)
