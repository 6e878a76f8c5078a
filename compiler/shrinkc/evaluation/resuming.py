"""Saves the scores of an evaluation batch by batch, so that it can continue after an interrupt."""

from __future__ import annotations

import time
from typing import Any

from shrinkc.core.errors import OutputError
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter


class KeptBatches:
    """The results of the batches of one ``part`` of an evaluation, in a journal.

    The calls of a part are numbered, and so have to come in the same order every time.
    ``seconds``: what the batches that were found took when they were computed.  A journal that cannot be
    written any more ends no measurement; ``reporter`` is told.
    """

    def __init__(self, journal: Journal, part: str, reporter: Reporter) -> None:
        self._journal, self._part, self._reporter = journal, part, reporter
        self._call = -1
        self._since = time.monotonic()
        self.seconds = 0.0

    def next_call(self) -> dict[int, list[Any]]:
        """Begins the next call: the results of its batches that the journal holds, by number."""
        self._call += 1
        found = {
            record["batch"]: record
            for record in self._journal.records
            if (record["part"], record["call"]) == (self._part, self._call)
        }
        self.seconds += sum(record["seconds"] for record in found.values())
        self._since = time.monotonic()
        return {number: record["results"] for number, record in found.items()}

    def add(self, batch: int, results: list[Any]) -> None:
        """Writes down what a batch of the call that is going on gave, as JSON."""
        now = time.monotonic()
        seconds, self._since = round(now - self._since, 3), now
        record = {"part": self._part, "call": self._call, "batch": batch, "seconds": seconds}
        try:
            self._journal.add({**record, "results": results})
        except OutputError as error:
            self._reporter.note(f"note: {error.message} What comes now is lost when interrupted")
