"""What a measurement asks of a causal language model, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.progress import Update

Item = TypeVar("Item", bound=Sized)
Out = TypeVar("Out")

CONDITIONS = ("kind", "dtype", "kv_bits", "device", "threads", "engine")
"""Keys of ``describe()`` that can change a number: they are stored with every result."""


@dataclass(frozen=True)
class Choices:
    """Token ids of one question: ``endings`` are alternatives that go on after ``context``."""

    context: list[int]
    endings: list[list[int]]

    def __len__(self) -> int:
        """Tokens of all of it."""
        return len(self.context) + sum(map(len, self.endings))


@dataclass(frozen=True)
class Predicted:
    """Of each token of a sequence after the first: ``losses`` float64 [n], the cross-entropy in nats, and
    ``greedy`` bool [n], whether it is the likeliest (among equals the one of the lowest id)."""

    losses: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Of each token of a sequence after the first, what two models make of it, [n].

    ``losses`` and ``base_losses`` float64 are cross-entropies in nats of the model and of its base; ``divergence``
    float64 is Kullback and Leibler's, in nats: the sum over all tokens of p log(p / q), p the base's
    probability and q the model's; ``same`` bool, whether both have the same likeliest token.
    """

    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]
    divergence: NDArray[np.float64]
    same: NDArray[np.bool_]


class Scorer(Protocol):
    """A causal language model: TorchScorer (float), CompiledScorer (the integer program).

    ``vocab``: number of token ids; ``max_length``: positions the model has; ``batch``: how many items
    of a call it computes together, those of :func:`batches`.  ``update(done, total)`` is called in
    whatever unit the work counts.
    """

    name: str
    vocab: int
    max_length: int
    batch: int

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special``: with what the tokenizer itself puts around a text."""
        ...

    def encode_chat(self, message: str) -> list[int]:
        """Ids of one user's message in the chat template, up to where the answer begins.

        Raises UsageError when the model has no template.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""
        ...

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        """Cross-entropy in nats, float64 [len - 1], of each sequence's tokens after the first."""
        ...

    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """Of each token of ``sequence`` but the last the logits of the next, [at most rows, vocab] at a time."""
        ...

    def against(
        self, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
    ) -> list[Compared]:
        """What each sequence's tokens after the first are to this model and to ``base``."""
        ...

    def choice_losses(self, questions: Sequence[Choices], update: Update) -> list[list[float]]:
        """Summed cross-entropy in nats of each ending, given its context."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        *,
        first_line: bool = False,
    ) -> list[list[int]]:
        """At most ``max_new`` greedy tokens per prompt, up to the end token (not included).

        ``first_line``: what comes after the first line that is not blank need not be generated.
        """
        ...

    def describe(self) -> dict[str, object]:
        """What was asked and how it computes: CONDITIONS where they apply, versions, sizes."""
        ...


def batches(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Which items are computed together: those of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    batch: int,
    update: Update,
    work: Callable[[Sequence[Item]], list[Out]],
) -> list[Out]:
    """``work`` on :func:`batches` of items; results in the items' order."""
    results: dict[int, Out] = {}
    update(0, len(items))
    for part in batches(lengths, batch):
        results.update(zip(part, work([items[i] for i in part]), strict=True))
        update(len(results), len(items))
    return [results[i] for i in range(len(items))]


def whole_sequences(
    scorer: Scorer, questions: Sequence[Choices], update: Update
) -> list[list[float]]:
    """``choice_losses`` by way of ``losses``: every ending with a copy of its context."""
    sequences = [[*q.context, *ending] for q in questions for ending in q.endings]
    losses = iter(scorer.losses(sequences, update))
    return [
        [float(np.sum(next(losses)[len(q.context) - 1 :])) for _ in q.endings] for q in questions
    ]


def first_line_ended(text: str) -> bool:
    """Whether a line that is not blank has come to its end."""
    return "\n" in text.lstrip()
