"""How an answer to a question of TriviaQA counts; the YAML files beside name it."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

_DELETED = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """0 or 1 of each metric for the generated text ``results[0]``; ``doc`` is a row of ``trivia_qa``.

    exact_match: as lm-eval's task, the text up to a line feed, full stop or comma is an alias.
    contains: the words of an alias are in a row in the first line that is not blank.
    """
    aliases = doc["answer"]["aliases"]
    short = re.split(r"[\n.,]", results[0])[0].strip()
    first, *_ = results[0].strip().splitlines() or [""]
    words = [f" {_normalized(alias)} " for alias in aliases if _normalized(alias)]
    return {
        "contains": float(any(alias in f" {_normalized(first)} " for alias in words)),
        "exact_match": float(_plain(short) in map(_plain, aliases)),
    }


def _plain(text: str) -> str:
    return text.lower().translate(_DELETED)


def _normalized(text: str) -> str:
    """As TriviaQA's own evaluation: lower case, no punctuation, no articles, single spaces."""
    plain = text.replace("_", " ").lower().translate(_SPACED)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())
