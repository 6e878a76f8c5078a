"""Interface of a causal language model for measurements."""

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
"""Keys of ``describe()`` that can change a result; they are stored with each."""


@dataclass(frozen=True)
class Choices:
    """Token ids of one question.  ``endings``: alternative continuations of ``context``, none of them empty."""

    context: list[int]
    endings: list[list[int]]

    def __len__(self) -> int:
        """Return the number of tokens of context and endings."""
        return len(self.context) + sum(map(len, self.endings))


@dataclass(frozen=True)
class Predicted:
    """Predictions of the n tokens of an ending.

    ``losses`` float64 [n]: cross-entropy in nats.  ``greedy`` bool [n]: it is the likeliest token (ties: lowest id)."""

    losses: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Compared:
    """Predictions of two models for each of the n tokens of a sequence after the first.

    ``losses`` and ``base_losses`` float64 [n]: cross-entropy in nats of the model and its base.  ``divergence``
    float64 [n]: Kullback-Leibler divergence in nats, the sum over the vocabulary of p log(p / q), p the base's
    probability and q the model's.  ``same`` bool [n]: both have the same likeliest token (top-1 agreement).
    """

    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]
    divergence: NDArray[np.float64]
    same: NDArray[np.bool_]


class Scorer(ABC):
    """A causal language model: TorchScorer (float), CompiledScorer (the integer program).

    ``vocab``: number of token ids.  ``max_length``: number of positions.  ``batch``: items computed together.
    ``bos_id`` and ``end_ids``: tokens that begin and end a text.  ``kept``: storage of scores, with those of
    earlier attempts; None stores nothing.  ``update(done, total)`` is called with numbers of items.
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
        """Return token ids of ``text``.  ``special``: add the tokenizer's special tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens."""

    @abstractmethod
    def chat_text(self, message: str, before: Sequence[Message]) -> str:
        """Return ``message`` of a user, after the messages ``before``, in the chat template, up to the answer.

        Raises UsageError if the model has no template.
        """

    @abstractmethod
    def next_logits(self, sequence: Sequence[int], rows: int) -> Iterator[NDArray]:
        """Yield next-token logits, [at most rows, vocab] at a time, for each token of ``sequence`` except the last."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return name, CONDITIONS that apply, versions and sizes, JSON-able."""

    @abstractmethod
    def _predict(self, questions: Sequence[Choices]) -> list[list[Predicted]]:
        """See :meth:`predicted`, for one batch."""

    @abstractmethod
    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new: int, until: Sequence[str]
    ) -> list[list[int]]:
        """See :meth:`generate`, for one batch."""

    def encode_chat(self, message: str) -> list[int]:
        """Return the ids of a user's message in the chat template, see :meth:`chat_text`."""
        return self.encode(self.chat_text(message, ()), special=False)

    def predicted(self, questions: Sequence[Choices], update: Update) -> list[list[Predicted]]:
        """Return a prediction per ending of each question, given its context."""
        return self.in_batches(
            questions, update, self._predict,
            lambda endings: [to_columns(found) for found in endings],
            lambda kept: [from_columns(Predicted, found) for found in kept],
        )  # fmt: skip

    def losses(self, sequences: Sequence[Sequence[int]], update: Update) -> list[NDArray]:
        """Return the cross-entropy in nats, float64 [len - 1], of each sequence's tokens after the first."""
        questions = [Choices([first], [rest]) for first, *rest in sequences]
        return [found.losses for (found,) in self.predicted(questions, update)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        update: Update,
        until: Sequence[str] = (),
    ) -> list[list[int]]:
        """Return at most ``max_new`` greedy tokens per prompt, up to the end token (not included).

        A Scorer may stop a prompt once one of the texts ``until`` has been generated.
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
        """Apply ``work`` to :func:`batches` of ``items``, except stored ones; return results in the items' order.

        Batches are equal with and without a journal, because the last digits depend on the batch.
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
    """Return the indices of each batch: items of similar length together, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def to_columns(found: Predicted | Compared) -> dict[str, list[Any]]:
    """Return the arrays of ``found`` as lists by field name."""
    return {name: column.tolist() for name, column in vars(found).items()}


def from_columns(kind: Callable[..., Out], kept: dict[str, list[Any]]) -> Out:
    """Undo :func:`to_columns`."""
    return kind(**{name: np.array(column) for name, column in kept.items()})


def has_ended(text: str, until: Sequence[str]) -> bool:
    """Return whether ``text`` contains one of ``until``."""
    return any(stop in text for stop in until)
