"""An evaluation that goes on where it was interrupted: what was scored is kept, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import OutputError
from shrinkc.core.journal import Journal
from shrinkc.core.progress import Reporter, Update
from shrinkc.evaluation.scorer import Choices, Compared, Item, Out, Scorer, batches


class ResumingScorer:
    """A Scorer that asks ``scorer`` for what ``journal`` does not hold, and writes down what it gets.

    Batches are those that ``scorer`` makes itself, since the last digits depend on what is computed
    together: the results are the same as without a journal.  The calls of a ``part`` of the
    evaluation are numbered, and so have to come in the same order every time.

    ``seconds``: what the batches that were found took when they were computed.  A journal that cannot be
    written any more ends no measurement; ``reporter`` is told.
    """

    def __init__(self, scorer: Scorer, journal: Journal, part: str, reporter: Reporter) -> None:
        self._scorer, self._journal, self._part, self._reporter = scorer, journal, part, reporter
        self._found = {
            (record["call"], record["batch"]): record
            for record in journal.records
            if record["part"] == part
        }
        self._calls = 0
        self.seconds = 0.0
        self.name = scorer.name
        self.vocab = scorer.vocab
        self.max_length = scorer.max_length
        self.batch = scorer.batch

    def encode(self, text: str, *, special: bool) -> list[int]:
        """See Scorer."""
        return self._scorer.encode(text, special=special)

    def encode_chat(self, message: str) -> list[int]:
        """See Scorer."""
        return self._scorer.encode_chat(message)

    def decode(self, ids: Sequence[int]) -> str:
        """See Scorer."""
        return self._scorer.decode(ids)

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        """See Scorer."""
        return self._kept(
            sequences, update, self._scorer.losses,
            lambda losses: losses.tolist(), lambda kept: np.array(kept, np.float64),
        )  # fmt: skip

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """See Scorer; too much to be kept."""
        return self._scorer.next_logits(sequence, rows)

    def against(
        self, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
    ) -> list[Compared]:
        """See Scorer."""

        def work(part: Sequence[Sequence[int]], update: Update) -> list[Compared]:
            return self._scorer.against(base, part, update)

        return self._kept(
            sequences, update, work,
            lambda found: {name: column.tolist() for name, column in vars(found).items()},
            lambda kept: Compared(**{name: np.array(column) for name, column in kept.items()}),
        )  # fmt: skip

    def choice_losses(self, questions: Sequence[Choices], update: Update) -> list[list[float]]:
        """See Scorer."""
        return self._kept(questions, update, self._scorer.choice_losses, list, list)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        *,
        first_line: bool = False,
    ) -> list[list[int]]:
        """See Scorer."""

        def work(part: Sequence[Sequence[int]], update: Update) -> list[list[int]]:
            return self._scorer.generate(part, max_new, update, first_line=first_line)

        return self._kept(prompts, update, work, list, list)

    def describe(self) -> dict[str, object]:
        """See Scorer."""
        return self._scorer.describe()

    def _kept(
        self,
        items: Sequence[Item],
        update: Update,
        work: Callable[[Sequence[Item], Update], list[Out]],
        to_json: Callable[[Out], Any],
        from_json: Callable[[Any], Out],
    ) -> list[Out]:
        """``work`` on the batches that are not in the journal; results in the items' order."""
        call, self._calls = self._calls, self._calls + 1
        parts = batches([len(item) for item in items], self.batch)
        results: dict[int, Out] = {}
        for number, part in enumerate(parts):
            record = self._found.get((call, number))
            if record is not None:
                results.update(zip(part, map(from_json, record["results"]), strict=True))
                self.seconds += record["seconds"]
        update(len(results), len(items))
        for number, part in enumerate(parts):
            if part[0] in results:
                continue
            before, started = len(results), time.monotonic()

            def within(done: int, total: int, note: str = "", /, before: int = before) -> None:
                update(before, len(items), note)  # a sign of progress, by which signals are seen

            found = work([items[i] for i in part], within)
            results.update(zip(part, found, strict=True))
            self._write({
                "part": self._part, "call": call, "batch": number,
                "seconds": round(time.monotonic() - started, 3), "results": list(map(to_json, found)),
            })  # fmt: skip
            update(len(results), len(items))
        return [results[i] for i in range(len(items))]

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._journal.add(record)
        except OutputError as error:
            self._reporter.note(f"note: {error.message} What comes now is lost when interrupted")
