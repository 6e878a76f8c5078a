"""A scorer whose tokens are bytes and whose answers are given: what is asked can be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation import Choices
from shrinkc.evaluation.divergence import sequences_against
from shrinkc.evaluation.scorer import Compared, Scorer, whole_sequences


@dataclass
class FakeScorer:
    """``answers``: prompt's last line but one -> text; ``liked`` endings cost less."""

    BOS: ClassVar[int] = 256
    LOSS: ClassVar[float] = 1.25

    max_length: int = 100_000
    answers: dict[str, str] = field(default_factory=dict)
    liked: tuple[str, ...] = ()
    asked: list[list[list[int]]] = field(default_factory=list)
    name: str = "fake"
    vocab: int = 257
    batch: int = 1
    sharpness: float = 0.5

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [self.BOS] * special + list(text.encode())

    def encode_chat(self, message: str) -> list[int]:
        raise UsageError("fake has no chat template.")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.BOS).decode(errors="replace")

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        self.asked.append([list(s) for s in sequences])
        return [
            np.full(len(s) - 1, self.LOSS / (10 if self.decode(s).endswith(self.liked) else 1))
            if self.liked
            else np.full(len(s) - 1, self.LOSS)
            for s in sequences
        ]

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """A token's last three bits move logits by ``sharpness``: numbers that a test works out itself."""
        whole = np.array([[self.logit(a, b) for b in range(self.vocab)] for a in sequence[:-1]])
        for at in range(0, len(whole), rows):
            yield whole[at : at + rows]

    def logit(self, before: int, token: int) -> float:
        return self.sharpness * ((before ^ token) % 8)

    def against(
        self, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
    ) -> list[Compared]:
        self.asked.append([list(s) for s in sequences])
        return sequences_against(self, base, sequences, update)

    def choice_losses(self, questions: Sequence[Choices], update: Update) -> list[list[float]]:
        return whole_sequences(self, questions, update)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        *,
        first_line: bool = False,
    ) -> list[list[int]]:
        self.asked.append([list(p) for p in prompts])
        texts = [self.decode(p) for p in prompts]
        return [list(self.answers.get(t, "").encode())[:max_new] for t in texts]

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "kind": "fake", "dtype": "bytes", "threads": 1}
