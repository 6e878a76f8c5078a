"""TriviaQA: short answers to questions, from memory or from a text, matched in three tiers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation.items import decoded, json_lines, proportion, read_bytes
from shrinkc.evaluation.scorer import Scorer

MAX_NEW = 50
CLOSED = "Question: {question}\nAnswer:"
OPEN = "Context: {context}\nQuestion: {question}\nAnswer:"
TIERS = ("exact", "contained", "words")
WORD_SHARE = 0.8

_FORMATS = (
    'a line is {"question", "golden_answers"} (FlashRAG), with "contexts" if there are any, or a '
    'row of the hub\'s trivia_qa: {"question", "answer": {"aliases"}, "entity_pages", '
    '"search_results"}.'
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


@dataclass(frozen=True)
class Trivium:
    """A question, every answer that counts, and texts that may hold it."""

    question: str
    answers: tuple[str, ...]
    contexts: tuple[str, ...]


def read_trivia(path: Path) -> list[Trivium]:
    """The questions of a JSON-lines file; BadData with the line that is not one."""
    items = [_item(row, path, number) for number, row in _rows(path)]
    if not items:
        raise BadData(f"{path} holds no question.", _FORMATS)
    return items


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(json_lines(decoded(read_bytes(path), path), path))


def _item(row: dict[str, Any], path: Path, number: int) -> Trivium:
    answers = row.get("golden_answers")
    contexts = row.get("contexts", [])
    if answers is None and isinstance(row.get("answer"), dict):
        answer = row["answer"]
        answers = [*_texts(answer.get("aliases")), *_texts([answer.get("value", "")])]
        contexts = [
            *_texts((row.get("entity_pages") or {}).get("wiki_context")),
            *_texts((row.get("search_results") or {}).get("search_context")),
        ]
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise BadData(f"{path}, line {number}: no question.", _FORMATS)
    if not _texts(answers):
        raise BadData(f"{path}, line {number}: no answers.", _FORMATS)
    texts = [text for text in _texts(contexts) if text.strip()]
    return Trivium(question.strip(), tuple(_texts(answers)), tuple(sorted(texts, key=len)))


def _texts(value: object) -> list[str]:
    return [v for v in value if isinstance(v, str) and v] if isinstance(value, list) else []


def normalized(text: str) -> str:
    """As TriviaQA's own evaluation: lower case, no punctuation, no articles, single spaces."""
    plain = text.replace("_", " ").lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def tier_of(answer: str, aliases: Sequence[str]) -> str | None:
    """The first of TIERS that holds for any alias, both normalised; None if none does.

    exact: equal.  contained: the alias' words appear in the answer in a row.  words: at least
    WORD_SHARE of the alias' words appear in the answer, anywhere.
    """
    got = normalized(answer)
    wanted = [alias for alias in map(normalized, aliases) if alias]
    if got in wanted:
        return "exact"
    if any(f" {alias} " in f" {got} " for alias in wanted):
        return "contained"
    words = set(got.split())
    for alias in wanted:
        parts = alias.split()
        if sum(part in words for part in parts) >= WORD_SHARE * len(parts):
            return "words"
    return None


def first_line(text: str) -> str:
    """The first line that is not blank: what is left of a generated text."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[0] if lines else ""


def closed_book(scorer: Scorer, items: Sequence[Trivium], update: Update) -> dict[str, object]:
    """Asks from memory; see :func:`_ask`."""
    prompts = [scorer.encode(CLOSED.format(question=i.question), special=True) for i in items]
    longest = max(map(len, prompts)) + MAX_NEW
    if longest > scorer.max_length:
        raise UsageError(
            f"a question with its answer takes up to {longest} positions, {scorer.name} has "
            f"{scorer.max_length}.",
            f"for a compiled directory: 'shrinkc compile ... --context {longest}'.",
        )
    return {"prompt": CLOSED, **_ask(scorer, items, prompts, update)}


def open_book(scorer: Scorer, items: Sequence[Trivium], update: Update) -> dict[str, object]:
    """Asks with the shortest context of each item before the question; see :func:`_ask`.

    A context that does not fit the model's positions is cut at its end.
    """
    prompts, cut = [], 0
    for item in items:
        empty = len(scorer.encode(OPEN.format(context="", question=item.question), special=True))
        room = scorer.max_length - MAX_NEW - empty
        ids = scorer.encode(item.contexts[0], special=False)
        context = item.contexts[0]
        if len(ids) > room:
            cut += 1
            # text again, since the prompt is tokenised as a whole; a little less than fits
            context = scorer.decode(ids[: max(0, room - 8)])
        prompts.append(
            scorer.encode(OPEN.format(context=context, question=item.question), special=True)
        )
    longest = max(map(len, prompts)) + MAX_NEW
    if longest > scorer.max_length:
        raise UsageError(
            f"a question without its context takes up to {longest} positions, {scorer.name} has "
            f"{scorer.max_length}."
        )
    result = _ask(scorer, items, prompts, update)
    return {"prompt": OPEN, "contexts_cut": cut, **result}


def _ask(
    scorer: Scorer, items: Sequence[Trivium], prompts: list[list[int]], update: Update
) -> dict[str, object]:
    """Greedy answers of at most MAX_NEW tokens, their first line matched; counts per tier."""
    answers = scorer.generate(prompts, MAX_NEW, update, first_line=True)
    tiers = Counter(
        tier_of(first_line(scorer.decode(ids)), item.answers)
        for item, ids in zip(items, answers, strict=True)
    )
    correct = sum(tiers[tier] for tier in TIERS)
    return {
        "items": len(items),
        "max_new_tokens": MAX_NEW,
        "decoding": "greedy, first line that is not blank",
        "correct": correct,
        **{tier: tiers[tier] for tier in TIERS},
        **proportion(correct, len(items)),
    }
