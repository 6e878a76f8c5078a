"""Scoring of answers to TriviaQA questions."""

from __future__ import annotations

import re

import pytest

from shrinkc.lm_eval_tasks.triviaqa import process_results

ALIASES = ["Paris", "The City of Light", "St. Denis", "The"]
COUNTED = {  # answer: contains, exact_match
    " Paris": (1, 1),
    " PARIS, France": (1, 1),
    "\nParis": (1, 0),
    " \n\n Paris\nLondon": (1, 0),
    " The capital is Paris.": (1, 0),
    " It is city-of-light": (1, 0),
    " St. Denis": (1, 0),
    " London\nParis": (0, 0),
    " Parisian": (0, 0),
    " city of the Paris-ian Light": (1, 0),
    " a light of the city": (0, 0),
    " the": (0, 1),  # an alias of articles alone is contained in nothing
    "": (0, 0),
    "\n": (0, 0),
}


@pytest.mark.parametrize("answer", COUNTED)
def test_what_counts(answer: str) -> None:
    found = process_results({"answer": {"aliases": ALIASES}}, [answer])
    assert (found["contains"], found["exact_match"]) == COUNTED[answer]


@pytest.mark.libraries("lm_eval")
@pytest.mark.parametrize("answer", COUNTED)
def test_exact_match_is_that_of_the_harness(answer: str) -> None:
    from lm_eval.api.metrics import exact_match_fn

    ended = re.split("\n|[.]|,", answer)[0].strip()  # its task's stop sequences and filter
    share = exact_match_fn(
        predictions=[ended] * len(ALIASES), references=ALIASES, ignore_case=True, ignore_punctuation=True
    )["exact_match"]  # fmt: skip
    assert process_results({"answer": {"aliases": ALIASES}}, [answer])["exact_match"] == (share > 0)
