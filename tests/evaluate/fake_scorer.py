"""Scorer for tests: tokens are bytes, answers are given, and requests are recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import UsageError
from shrinkc.evaluation import Choices, Scorer
from shrinkc.evaluation.scorer import Predicted
from shrinkc.importer import Message


class FakeScorer(Scorer):
    """``answers``: prompt -> text; ``liked`` endings cost less; ``asked``: the ids of each batch."""

    BOS: ClassVar[int] = 256
    LOSS: ClassVar[float] = 1.25

    def __init__(
        self,
        *,
        max_length: int = 100_000,
        answers: dict[str, str] | None = None,
        liked: tuple[str, ...] = (),
        name: str = "fake",
        vocab: int = 257,
        sharpness: float = 0.5,
    ) -> None:
        self.name, self.vocab, self.max_length, self.batch = name, vocab, max_length, 1
        self.bos_id, self.end_ids = self.BOS, (0,)
        self.answers, self.liked, self.sharpness = answers or {}, liked, sharpness
        self.asked: list[list[list[int]]] = []

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [self.BOS] * special + list(text.encode())

    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        raise UsageError("fake has no chat template.")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.BOS).decode(errors="replace")

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """A token's last three bits move logits by ``sharpness``: numbers that a test works out itself."""
        self.asked.append([list(sequence)])
        whole = np.array([[self.logit(a, b) for b in range(self.vocab)] for a in sequence[:-1]])
        for at in range(0, len(whole), rows):
            yield whole[at : at + rows]

    def logit(self, before: int, token: int) -> float:
        return self.sharpness * ((before ^ token) % 8)

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "kind": "fake", "dtype": "bytes", "threads": 1}

    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        self.asked += [[[*q.context, *ending] for ending in q.endings] for q in questions]
        return [[self._predicted(ending) for ending in q.endings] for q in questions]

    def _predicted(self, ending: list[int]) -> Predicted:
        likely = bool(self.liked) and self.decode(ending).endswith(self.liked)
        losses = np.full(len(ending), self.LOSS / (10 if likely else 1))
        return Predicted(losses, np.full(len(ending), likely))

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new: int, until: Sequence[str]
    ) -> list[list[int]]:
        self.asked.append([list(prompt) for prompt in prompts])
        texts = [self.decode(prompt) for prompt in prompts]
        return [list(self.answers.get(text, "").encode())[:max_new] for text in texts]
