"""Storage of an evaluation's scores, batch by batch, so that it can continue after an interrupt."""

from __future__ import annotations

import time
from typing import Any

from shrinkc.core.errors import OutputError
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter


class KeptBatches:
    """Stored batches of one ``part`` of an evaluation, in a journal.

    The calls of a part are numbered, so they must come in the same order in every attempt.
    ``seconds``: time that earlier attempts spent on the stored batches.  If the journal can no longer be
    written, the measurement goes on and ``reporter`` is told.
    """

    def __init__(self, journal: Journal, part: str, reporter: Reporter) -> None:
        self._journal, self._part, self._reporter = journal, part, reporter
        self._call = -1
        self._since = time.monotonic()
        self.seconds = 0.0

    def next_call(self) -> dict[int, list[Any]]:
        """Begin the next call and return its stored results by batch number."""
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
        """Store the JSON-able ``results`` of a batch of the current call."""
        now = time.monotonic()
        seconds, self._since = round(now - self._since, 3), now
        record = {"part": self._part, "call": self._call, "batch": batch, "seconds": seconds}
        try:
            self._journal.add({**record, "results": results})
        except OutputError as error:
            self._reporter.note(f"note: {error.message} What comes now is lost when interrupted")
