"""Token-by-token comparison of a model's predictions with those of a base model.

Perplexity is noisy: over 16 windows of 512 tokens, rounding alone changes it by ±0.1 %.  The Kullback-Leibler
divergence is 0 for equal distributions and positive otherwise, so few tokens are enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadWeights, UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation.perplexity import TextProtocol, mean_of_windows, windows_of
from shrinkc.evaluation.scorer import Compared, Scorer, from_columns, to_columns

ROWS = 64  # rows of logits in float64 at a time, which limits memory


def compare_logits(
    logits: Iterator[NDArray], base: Iterator[NDArray], targets: Sequence[int]
) -> Compared:
    """Compare two models on one sequence, whose tokens after the first are ``targets``.

    Both iterators yield next-token logits [rows, vocab] in parts of equal size.
    """
    parts: list[tuple[NDArray, ...]] = []
    at = 0
    for ours, theirs in zip(logits, base, strict=True):
        (q, _), (p, probability) = _log_probabilities(ours), _log_probabilities(theirs)
        row, wanted = np.arange(len(q)), np.asarray(targets[at : at + len(q)])
        at += len(q)
        losses, base_losses = -q[row, wanted], -p[row, wanted]
        p -= q
        # rounding can make the sum slightly negative
        divergence = np.maximum(np.einsum("rv,rv->r", probability, p), 0)
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
        parts.append((losses, base_losses, divergence, same))
    return Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare_models(
    scorer: Scorer, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
) -> list[Compared]:
    """Compare both models' predictions of every token after the first, one sequence at a time.

    Raises BadWeights if a logit is not finite.
    """

    def finite(each: Scorer, sequence: Sequence[int]) -> Iterator[NDArray]:
        for logits in each.next_logits(sequence, ROWS):
            if not np.isfinite(logits).all():
                raise BadWeights(
                    f"a logit of {each.name} is not a finite number.",
                    "if it is a float model, its weights overflow in this dtype, or are no numbers themselves.",
                )
            yield logits

    return scorer.in_batches(
        sequences, update,
        lambda part: [compare_logits(finite(scorer, s), finite(base, s), s[1:]) for s in part],
        to_columns, lambda kept: from_columns(Compared, kept),
    )  # fmt: skip


def windows_of_both(
    scorer: Scorer, base: Scorer, text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """Return :func:`windows_of` for both models.  Also raises UsageError if their token ids differ."""
    windows, about = windows_of(scorer, text, protocol, count)
    if scorer.vocab != base.vocab:
        what = f"{base.vocab} tokens, {scorer.name} has {scorer.vocab}"
    elif windows_of(base, text, protocol, count)[0] != windows:
        what = f"other tokens for this text than {scorer.name}"
    else:
        return windows, about
    raise UsageError(
        f"{base.name} has {what}: what they predict cannot be compared.",
        "leave --base out; bits per byte compare models of different tokens.",
    )


def differences(found: Sequence[Compared]) -> dict[str, object]:
    """Return mean divergence (nats per token), perplexity ratio and top-1 agreement (0 to 1), JSON-able.

    Standard errors come from the spread between windows.  The ratio's uses paired losses, so it is smaller than
    either perplexity's.
    """
    divergence, error = mean_of_windows([part.divergence for part in found])
    excess, spread = mean_of_windows([part.losses - part.base_losses for part in found])
    loss, _ = mean_of_windows([part.base_losses for part in found])
    ratio = math.exp(excess)
    return {
        "perplexity": math.exp(loss),
        "divergence": divergence,
        "divergence_standard_error": error,
        "ratio": ratio,
        "ratio_standard_error": None if spread is None else ratio * spread,
        "same_greedy": float(np.mean(np.concatenate([part.same for part in found]))),
    }


def _log_probabilities(logits: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log-probabilities and probabilities [rows, vocab]."""
    values = np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64)
    odds = np.exp(values)
    total = odds.sum(axis=1, keepdims=True)
    values -= np.log(total)
    odds /= total
    return values, odds
