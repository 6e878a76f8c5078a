"""What is measured: which tokens of a text a model has to predict, and its loss on them.

A protocol cuts a text into sequences of token ids.  Each sequence is fed from position 0, and
every token after the first is predicted from those before it.  The loss is the mean over all
predicted tokens of all sequences, in nats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import UsageError
from shrinkc.evaluation.items import decoded, read_bytes
from shrinkc.evaluation.models import LogitsOf
from shrinkc.evaluation.perplexity import cut_windows
from shrinkc.importer.tokenizer import Tokenizer

# done, total, mean loss so far
Progress = Callable[[int, int, float], None]

WINDOW = 512
STORY_START = re.compile(r"\n\n(?=Once upon a time|One day)")
STORY_IDS_MAX = 400
STORY_IDS_MIN = 50
_ROWS = 128  # logits turned to float64 at a time: a large vocabulary takes much memory


@dataclass(frozen=True)
class Protocol:
    """``cut(tokenizer, text, count)`` makes sequences of at most ``longest`` ids.

    ``count`` are the sequences (``unit`` names them) of the reference figures.
    """

    name: str
    cut: Callable[[Tokenizer, str, int], list[list[int]]]
    count: int
    longest: int
    unit: str


@dataclass(frozen=True)
class Result:
    """``tokens`` predicted in ``sequences`` sequences; ``loss`` is their mean, in nats.

    ``greedy`` int64 [tokens] are the most likely tokens, the lowest id among equals.
    """

    protocol: str
    sequences: int
    tokens: int
    loss: float
    greedy: NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def to_dict(self) -> dict[str, str | int | float]:
        """The figures, for JSON."""
        return {
            "protocol": self.protocol,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": self.perplexity,
        }


def read_text(path: Path) -> str:
    """Return a UTF-8 file as text: CRLF and CR become LF.  Raises BadData."""
    return decoded(read_bytes(Path(path)), path)


def text_windows(
    tokenizer: Tokenizer, text: str, count: int, length: int = WINDOW
) -> list[list[int]]:
    """The first ``count`` non-overlapping windows of ``length`` ids of one long text.

    The text is tokenised from its start without special tokens.  Raises UsageError or BadData
    if it is too short: fewer windows would be another measurement.
    """
    _check_count(count)
    return cut_windows(tokenizer.encode(text, add_bos=False), length, count)


def story_pieces(tokenizer: Tokenizer, text: str, count: int) -> list[list[int]]:
    """The ids of the first ``count`` stories of a text that separates them by blank lines.

    A story starts at "Once upon a time" or "One day" after a blank line.  Each is stripped,
    encoded as a prompt is (with the model's BOS), and cut to STORY_IDS_MAX ids; those under
    STORY_IDS_MIN ids are left out, so that fewer than ``count`` may come back.  Raises
    UsageError if the text has fewer stories, or none is long enough.
    """
    _check_count(count)
    stories = STORY_START.split(text)
    if len(stories) < count:
        raise UsageError(
            f"{count} stories are asked for, the text has {len(stories)}.",
            f"at most {len(stories)} stories.",
        )
    pieces = [tokenizer.encode(story.strip())[:STORY_IDS_MAX] for story in stories[:count]]
    pieces = [ids for ids in pieces if len(ids) >= STORY_IDS_MIN]
    if not pieces:
        raise UsageError(f"none of the {count} stories has {STORY_IDS_MIN} tokens.")
    return pieces


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("wikitext512", text_windows, 16, WINDOW, "windows"),
        Protocol("tinystories", story_pieces, 80, STORY_IDS_MAX, "stories"),
    )
}


def token_losses(
    logits: NDArray, targets: Sequence[int] | NDArray[np.int64], frac: int = 0
) -> NDArray[np.float64]:
    """Cross-entropy [T], in nats, of ``targets`` [T] under ``logits`` [T, vocab], in float64.

    The logits are divided by 2**frac first, which is exact.
    """
    wanted = np.asarray(targets, np.int64)
    if len(logits) != len(wanted):
        raise ValueError(f"{len(logits)} rows of logits for {len(wanted)} tokens")
    losses = np.empty(len(wanted))
    for at in range(0, len(wanted), _ROWS):
        part = np.ldexp(np.asarray(logits[at : at + _ROWS], np.float64), -frac)
        top = part.max(axis=1)
        log_sum = top + np.log(np.exp(part - top[:, None]).sum(axis=1))
        losses[at : at + _ROWS] = log_sum - part[np.arange(len(part)), wanted[at : at + _ROWS]]
    return losses


def measure(
    protocol: str,
    logits_of: LogitsOf,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Result:
    """Run ``logits_of`` over all sequences, each from position 0.

    The last token of a sequence is only predicted, never fed.  Raises UsageError if there is
    nothing to predict, ArithmeticError if a loss is not finite.
    """
    total, count = 0.0, 0
    best: list[NDArray[np.int64]] = []
    for done, sequence in enumerate(sequences):
        ids = np.asarray(sequence, np.int64)
        if len(ids) < 2:
            raise UsageError(
                f"{protocol}: sequence {done} has {len(ids)} tokens, at least 2 needed."
            )
        logits = logits_of(ids[:-1])
        total += float(token_losses(logits, ids[1:]).sum())
        if not math.isfinite(total):
            raise ArithmeticError(f"{protocol}: the loss of sequence {done} is not finite")
        count += len(ids) - 1
        best.append(np.argmax(logits, axis=1))
        if progress is not None:
            progress(done + 1, len(sequences), total / count)
    if not count:
        raise UsageError(f"{protocol}: there is nothing to predict.")
    return Result(protocol, len(sequences), count, total / count, np.concatenate(best))


def agreement(a: Result, b: Result) -> float:
    """The fraction of predicted tokens for which both models prefer the same token."""
    if a.tokens != b.tokens:
        raise ValueError(f"{a.tokens} predictions cannot be compared with {b.tokens}")
    return float(np.mean(a.greedy == b.greedy))


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"a count of {count} is not usable.", "allowed: 1 and more.")
