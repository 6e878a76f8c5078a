"""HellaSwag: which of four endings a model finds likeliest."""

from __future__ import annotations

import bz2
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation.items import decoded, json_lines, proportion, read_bytes
from shrinkc.evaluation.scorer import Choices, Scorer

ENDINGS = 4

_BLOCK = 2 + ENDINGS  # lines of a task in llama.cpp's format
_FORMATS = (
    "six lines per task as for llama.cpp (context, index of the right ending, four endings), "
    'plain or .bz2, or JSON lines with "activity_label", "ctx_a", "ctx_b", "endings", "label".'
)
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class Task:
    """``endings`` follow ``context`` after a space; ``gold`` is the index of the right one."""

    context: str
    endings: tuple[str, ...]
    gold: int


def read_hellaswag(path: Path) -> tuple[list[Task], str]:
    """The tasks of ``path`` and the name of its format; BadData with the line that is wrong."""
    content = read_bytes(path)
    if path.suffix == ".bz2":
        try:
            content = bz2.decompress(content)
        except (OSError, ValueError) as error:
            raise BadData(f"{path} is no whole bz2 file: {error}.") from error
    text = decoded(content, path)
    if text.lstrip().startswith("{"):
        tasks = [_from_json(row, path, number) for number, row in json_lines(text, path)]
        return tasks, "JSON lines"
    return _from_lines(text, path), "llama.cpp"


def preprocess(text: str) -> str:
    """As lm-evaluation-harness does: WikiHow's marks in square brackets go."""
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


def _from_json(row: dict[str, Any], path: Path, number: int) -> Task:
    try:
        endings = tuple(preprocess(ending) for ending in row["endings"])
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        gold = int(row["label"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadData(
            f"{path}, line {number}: {type(error).__name__}: {error}.", _FORMATS
        ) from error
    return _checked(Task(preprocess(context), endings, gold), path, number)


def _from_lines(text: str, path: Path) -> list[Task]:
    lines = text.rstrip("\n").split("\n")
    tasks = []
    for at in range(0, len(lines), _BLOCK):
        block = lines[at : at + _BLOCK]
        if len(block) < _BLOCK:
            raise BadData(
                f"{path}, line {at + 1}: the last task has {len(block)} of {_BLOCK} lines.",
                _FORMATS,
            )
        if not block[1].strip().isdecimal():
            raise BadData(
                f"{path}, line {at + 2}: {block[1][:40]!r} is no index of an ending.", _FORMATS
            )
        endings = tuple(map(preprocess, block[2:]))
        tasks.append(_checked(Task(preprocess(block[0]), endings, int(block[1])), path, at + 1))
    return tasks


def _checked(task: Task, path: Path, number: int) -> Task:
    if len(task.endings) != ENDINGS or not 0 <= task.gold < ENDINGS:
        raise BadData(
            f"{path}, line {number}: {len(task.endings)} endings and the right one is number "
            f"{task.gold}; {ENDINGS} endings from 0 are needed.",
            _FORMATS,
        )
    if not task.context or not all(task.endings):
        raise BadData(f"{path}, line {number}: an empty context or ending.", _FORMATS)
    return task


def choices_of(scorer: Scorer, task: Task) -> Choices:
    """Token ids, split as lm-evaluation-harness does: where the context alone would end."""
    context = scorer.encode(task.context, special=True)
    endings = []
    for ending in task.endings:
        whole = scorer.encode(f"{task.context} {ending}", special=True)
        endings.append(whole[len(context) :])
    return Choices(context, endings)


def hellaswag(scorer: Scorer, tasks: Sequence[Task], update: Update) -> dict[str, object]:
    """Accuracy by the loss of an ending (acc) and by its loss per character (acc_norm)."""
    questions = [choices_of(scorer, task) for task in tasks]
    longest = max(len(q.context) + max(map(len, q.endings)) for q in questions)
    if longest > scorer.max_length:
        raise UsageError(
            f"a task takes up to {longest} positions, {scorer.name} has {scorer.max_length}.",
            f"for a compiled directory: 'shrinkc compile ... --context {longest}'.",
        )
    losses = scorer.choice_losses(questions, update)
    plain = sum(int(np.argmin(loss)) == task.gold for loss, task in zip(losses, tasks, strict=True))
    by_length = sum(
        int(np.argmin(np.array(loss) / [len(ending) for ending in task.endings])) == task.gold
        for loss, task in zip(losses, tasks, strict=True)
    )
    acc, acc_norm = proportion(plain, len(tasks)), proportion(by_length, len(tasks))
    return {
        "items": len(tasks),
        "tokens": sum(len(ending) for q in questions for ending in q.endings),
        "acc": acc["accuracy"],
        "acc_standard_error": acc["standard_error"],
        "acc_norm": acc_norm["accuracy"],
        "acc_norm_standard_error": acc_norm["standard_error"],
    }
