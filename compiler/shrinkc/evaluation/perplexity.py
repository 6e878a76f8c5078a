"""Perplexity on WikiText-2 by the two protocols that published figures use."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shrinkc.core.errors import BadData, UsageError
from shrinkc.core.progress import Update
from shrinkc.evaluation.scorer import Scorer

# What two perplexities have to share so that they can be compared, of what a report says of them;
# threads and device change the last digits alone.
COMPARED = (
    "protocol", "preparation", "special_tokens", "text_tokens", "window", "stride", "windows",
    "sha256", "dtype",
)  # fmt: skip
TEST_ROWS = 4358  # of WikiText-2's test split as the `datasets` library gives it

_HEADING = re.compile(r" ((?:= )+)[^=]+(?: =)+ ")
_ARTICLE = "= "
# two lines of a formula in the test split that look like titles of articles
_FORMULA = (
    " = 1 rad / s and a nominal impedance k = ",
    " = 1 henry and capacitance C = ",
)


@dataclass(frozen=True)
class TextProtocol:
    """``prepare`` makes the text that is tokenised from what a file holds, and says what it did.

    ``special``: with the tokenizer's own special tokens (a BOS, at the very beginning only).
    """

    name: str
    window: int
    special: bool
    prepare: Callable[[str], tuple[str, str]]


def as_it_is(text: str) -> tuple[str, str]:
    """The file's text, lines ending in LF."""
    return text, "the file's text, line ends as LF"


def joined_rows(text: str) -> tuple[str, str]:
    r"""The rows of the ``datasets`` library joined by two line feeds, as GPTQ and SparseGPT do.

    A row is a line with its line feed, or empty for a line of blanks.  A file without any blank
    line gets back those of the published test split, if that gives its number of rows.
    """
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    how = "rows joined by two line feeds"
    if all(line.strip() for line in lines):
        restored = _with_blank_lines(lines)
        if len(restored) == TEST_ROWS:
            how += f"; {len(restored) - len(lines)} blank rows that the file lacks restored"
            lines = restored
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines), how


def _with_blank_lines(lines: Sequence[str]) -> list[str]:
    """One blank line on each side of a heading, one more between two articles."""
    out: list[str] = []
    for line in lines:
        heading = _HEADING.fullmatch(line)
        if heading is None or line in _FORMULA:
            out.append(line)
        else:
            between = [""] if heading[1] == _ARTICLE and out else []
            out += [*between, "", line, ""]
    return out


TEXT_PROTOCOLS = {
    p.name: p
    for p in (
        *(TextProtocol(f"wikitext{n}", n, False, as_it_is) for n in (64, 128, 256, 512)),
        TextProtocol("wikitext2048", 2048, True, joined_rows),
    )
}


DEFAULT_PROTOCOL = "wikitext512"


def fitting(positions: int) -> str:
    """The protocol of the longest windows, up to those of the usual one, that ``positions`` hold.

    Where none fits it is the shortest, which will be refused.
    """
    names = [
        p.name
        for p in TEXT_PROTOCOLS.values()
        if p.window <= TEXT_PROTOCOLS[DEFAULT_PROTOCOL].window
    ]
    fit = [name for name in names if TEXT_PROTOCOLS[name].window <= positions]
    return (fit or names[:1])[-1]


def cut_windows(ids: Sequence[int], length: int, count: int | None = None) -> list[list[int]]:
    """The first ``count`` (None: all whole) windows of ``length`` ids, without overlap.

    Raises BadData when there is not one, UsageError for more than there are.
    """
    have = len(ids) // length
    if not have:
        raise BadData(
            f"the text has {len(ids)} tokens, a window needs {length}.", "use a longer text."
        )
    wanted = have if count is None else count
    if not 1 <= wanted <= have:
        raise UsageError(
            f"{wanted} windows of {length} tokens need {wanted * length} tokens, the text has "
            f"{len(ids)}.",
            f"allowed: 1 to {have} windows, or all.",
        )
    return [list(ids[at : at + length]) for at in range(0, wanted * length, length)]


def text_perplexity(
    scorer: Scorer, text: str, protocol: TextProtocol, count: int | None, update: Update
) -> dict[str, object]:
    """Perplexity on ``count`` windows of ``text``, JSON-able, with the protocol.

    The loss is the sum over all predicted tokens (window - 1 in each window, every window from
    position 0) divided by their number.
    """
    windows, about = windows_of(scorer, text, protocol, count)
    figures = summary(scorer.losses(windows, update), predicted_bytes(scorer.decode, windows))
    return {**about, **figures}


def windows_of(
    scorer: Scorer, text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """What :func:`cut_text` gives; UsageError too where ``scorer`` has too few positions for it."""
    if protocol.window > scorer.max_length:
        raise UsageError(
            f"{protocol.name} needs {protocol.window} positions, {scorer.name} has "
            f"{scorer.max_length}.",
            "a compiled directory has as many as it was compiled for: 'shrinkc compile ... "
            f"--context {protocol.window}'; or take --protocol {fitting(scorer.max_length)}.",
        )
    return cut_text(scorer.encode, text, protocol, count)


def predicted_bytes(
    decode: Callable[[Sequence[int]], str], windows: Sequence[Sequence[int]]
) -> int:
    """Bytes of UTF-8 that all tokens but the first of each window stand for.

    A character that a border of a window splits counts as the three bytes of U+FFFD on either side.
    """
    return sum(len(decode(w).encode()) - len(decode(w[:1]).encode()) for w in windows)


def cut_text(
    encode: Callable[..., list[int]], text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """The windows that are measured, and how they were made, JSON-able.

    ``encode(text, special=…)`` is a Scorer's.  Raises what :func:`cut_windows` does.
    """
    prepared, how = protocol.prepare(text)
    ids = encode(prepared, special=protocol.special)
    windows = cut_windows(ids, protocol.window, count)
    return windows, {
        "protocol": protocol.name,
        "preparation": how,
        "special_tokens": protocol.special,
        "text_tokens": len(ids),
        "window": protocol.window,
        "stride": protocol.window,
        "windows": len(windows),
    }


def summary(losses: Sequence[NDArray[np.float64]], size: int) -> dict[str, object]:
    """Tokens, mean loss in nats, perplexity, bits per byte, and standard errors from the spread of windows.

    ``size``: bytes that the predicted tokens stand for.  Bits per byte are the loss of the whole text
    over its bytes, which is the same question for every tokenizer; a token's loss is not.

    se(perplexity) = perplexity * se(loss).
    """
    tokens = sum(map(len, losses))
    loss, error = mean_of_windows(losses)
    perplexity = math.exp(loss)
    bits = loss * tokens / math.log(2)
    return {
        "tokens": tokens,
        "loss": loss,
        "loss_standard_error": error,
        "perplexity": perplexity,
        "perplexity_standard_error": None if error is None else perplexity * error,
        "predicted_bytes": size,
        # tokens of a text that was not from this tokenizer's may stand for none at all
        "bits_per_byte": bits / size if size else None,
    }


def mean_of_windows(values: Sequence[NDArray[np.float64]]) -> tuple[float, float | None]:
    """The mean of all values, and its standard error: None of one window.

    Tokens of a window are not independent, their means nearly are; windows are of equal length, so that
    se = std(means) / sqrt(windows).
    """
    mean = float(sum(part.sum() for part in values)) / sum(map(len, values))
    if len(values) < 2:
        return mean, None
    return mean, float(np.std([part.mean() for part in values], ddof=1)) / math.sqrt(len(values))
