"""The interface that measurements need of a causal language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.progress import Update
from shrinkc.evaluation.resuming import KeptBatches
from shrinkc.importer import Message

Item = TypeVar("Item", bound=Sized)
Out = TypeVar("Out")

CONDITIONS = ("kind", "dtype", "kv_bits", "device", "threads", "engine")
"""Keys of ``describe()`` that can change a number: they are stored with every result."""


@dataclass(frozen=True)
class Choices:
    """Token ids of one question: ``endings`` are alternative continuations of ``context``, none of them empty."""

    context: list[int]
    endings: list[list[int]]

    def __len__(self) -> int:
        """Tokens of all of it."""
        return len(self.context) + sum(map(len, self.endings))


@dataclass(frozen=True)
class Predicted:
    """Of each token of an ending: ``losses`` float64 [n], the cross-entropy in nats, and ``greedy`` bool [n],
    whether it is the likeliest (among equals the one of the lowest id)."""

    losses: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Of each token of a sequence after the first, what two models make of it, [n].

    ``losses`` and ``base_losses`` float64 are cross-entropies in nats of the model and of its base; ``divergence``
    float64 is Kullback and Leibler's, in nats: the sum over all tokens of p log(p / q), p the base's
    probability and q the model's; ``same`` bool, top-1 agreement: whether both have the same likeliest token.
    """

    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]
    divergence: NDArray[np.float64]
    same: NDArray[np.bool_]


class Scorer(ABC):
    """A causal language model: TorchScorer (float), CompiledScorer (the integer program).

    ``vocab``: number of token ids; ``max_length``: positions the model has; ``batch``: how many items it
    computes together; ``bos_id`` and ``end_ids``: tokens that a text begins and ends with.  ``kept``: what an
    earlier attempt has scored already, and where it is written down; None: nothing is kept.
    ``update(done, total)`` is called with items.
    """

    name: str
    vocab: int
    max_length: int
    batch: int
    bos_id: int | None
    end_ids: tuple[int, ...]
    kept: KeptBatches | None = None

    @abstractmethod
    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special``: with what the tokenizer itself puts around a text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""

    @abstractmethod
    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        """A user's message after those ``before`` it in the chat template, up to where the answer begins.

        Raises UsageError when the model has no template.
        """

    @abstractmethod
    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """Of each token of ``sequence`` but the last the logits of the next, [at most rows, vocab] at a time."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """What was asked and how it computes: CONDITIONS where they apply, versions, sizes."""

    @abstractmethod
    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        """Of each question's endings, one batch."""

    @abstractmethod
    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new: int, until: Sequence[str]
    ) -> list[list[int]]:
        """See :meth:`generate`, one batch."""

    def encode_chat(self, message: str) -> list[int]:
        """Ids of one user's message in the chat template, see :meth:`chat_text`."""
        return self.encode(self.chat_text(message, ()), special=False)

    def predicted(self, questions: Sequence[Choices], update: Update) -> list[list[Predicted]]:
        """How each question's endings are predicted, given the context."""
        return self.in_batches(
            questions, update, self._predict,
            lambda endings: [to_columns(found) for found in endings],
            lambda kept: [from_columns(Predicted, found) for found in kept],
        )  # fmt: skip

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        """Cross-entropy in nats, float64 [len - 1], of each sequence's tokens after the first."""
        questions = [Choices([first], [rest]) for first, *rest in sequences]
        return [found.losses for (found,) in self.predicted(questions, update)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        until: Sequence[str] = (),
    ) -> list[list[int]]:
        """At most ``max_new`` greedy tokens per prompt, up to the end token (not included).

        What comes after the first of the texts ``until`` need not be generated.
        """
        return self.in_batches(
            prompts, update, lambda part: self._generate(part, max_new, until), list, list
        )

    def in_batches(
        self,
        items: Sequence[Item],
        update: Update,
        work: Callable[[Sequence[Item]], list[Out]],
        to_json: Callable[[Out], Any],
        from_json: Callable[[Any], Out],
    ) -> list[Out]:
        """``work`` on :func:`batches` of the items that are not kept; results in the items' order.

        Batches are the same with and without a journal, since the last digits depend on what is computed
        together.
        """
        parts = batches([len(item) for item in items], self.batch)
        found = {} if self.kept is None else self.kept.next_call()
        results: dict[int, Out] = {}
        for number, part in enumerate(parts):
            if number in found:
                results.update(zip(part, map(from_json, found[number]), strict=True))
        update(len(results), len(items))
        for number, part in enumerate(parts):
            if number not in found:
                made = work([items[i] for i in part])
                results.update(zip(part, made, strict=True))
                if self.kept is not None:
                    self.kept.add(number, list(map(to_json, made)))
                update(len(results), len(items))
        return [results[i] for i in range(len(items))]


def batches(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Which items are computed together: those of similar length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def to_columns(found: Predicted | Compared) -> dict[str, list[Any]]:
    """JSON of what a model makes of a sequence."""
    return {name: column.tolist() for name, column in vars(found).items()}


def from_columns(kind: Callable[..., Out], kept: dict[str, list[Any]]) -> Out:
    """What :func:`to_columns` was given."""
    return kind(**{name: np.array(column) for name, column in kept.items()})


def has_ended(text: str, until: Sequence[str]) -> bool:
    """Whether one of the texts ``until`` has come."""
    return any(stop in text for stop in until)
