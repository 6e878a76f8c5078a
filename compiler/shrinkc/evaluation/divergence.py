"""Compares a model's predictions with those of a base model on a text, token by token.

Perplexity is noisy: over 16 windows of 512 tokens, rounding alone changes it by a tenth of a percent, up or down.  The
divergence of the distributions is 0 if they are equal and larger if not, and needs few tokens.
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

ROWS = 64  # of logits in float64 at a time: a large vocabulary takes much memory


def compared(
    logits: Iterator[NDArray], base: Iterator[NDArray], targets: Sequence[int]
) -> Compared:
    """Of one sequence, whose tokens after the first are ``targets``.

    Both iterators give the logits of the next token, [rows, vocab], some rows at a time, alike.
    """
    parts: list[tuple[NDArray, ...]] = []
    at = 0
    for ours, theirs in zip(logits, base, strict=True):
        (q, _), (p, probability) = _log_probabilities(ours), _log_probabilities(theirs)
        row, wanted = np.arange(len(q)), np.asarray(targets[at : at + len(q)])
        at += len(q)
        losses, base_losses = -q[row, wanted], -p[row, wanted]
        p -= q
        # the exact sum is at least 0, the rounded one may be less
        divergence = np.maximum(np.einsum("rv,rv->r", probability, p), 0)
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
        parts.append((losses, base_losses, divergence, same))
    return Compared(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def against(
    scorer: Scorer, base: Scorer, sequences: Sequence[Sequence[int]], update: Update
) -> list[Compared]:
    """What each sequence's tokens after the first are to a model and to its base, one sequence at a time.

    Raises BadWeights where a logit is not finite.
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
        lambda part: [compared(finite(scorer, s), finite(base, s), s[1:]) for s in part],
        to_columns, lambda kept: from_columns(Compared, kept),
    )  # fmt: skip


def windows_of_both(
    scorer: Scorer, base: Scorer, text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """What :func:`windows_of` gives for both.  Raises UsageError too where their tokens differ."""
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
    """Mean divergence in nats per token, the ratio of the perplexities and the share of tokens of which both
    prefer the same, with standard errors from the spread of windows; JSON-able.

    The ratio's is that of paired losses, less than either perplexity's.
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
    """The logarithms of the probabilities, and these."""
    values = np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64)
    odds = np.exp(values)
    total = odds.sum(axis=1, keepdims=True)
    values -= np.log(total)
    odds /= total
    return values, odds
