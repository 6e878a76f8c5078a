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

# Fields of a report that must be equal for two perplexities to be comparable.
# Threads and device are not among them: they change only the last digits.
COMPARED = (
    "protocol", "preparation", "special_tokens", "text_tokens", "window", "stride", "windows",
    "sha256", "dtype",
)  # fmt: skip
TEST_ROWS = 4358  # of WikiText-2's test split as the `datasets` library gives it

_HEADING = re.compile(r" ((?:= )+)[^=]+(?: =)+ ")
_ARTICLE = "= "
# two lines of formulas in the test split that look like article titles
_FORMULA = (
    " = 1 rad / s and a nominal impedance k = ",
    " = 1 henry and capacitance C = ",
)


@dataclass(frozen=True)
class TextProtocol:
    """Protocol of a perplexity measurement.  ``window`` is in tokens.

    ``prepare`` maps a file's text to (text to tokenise, description for the report).
    ``special``: add the tokenizer's special tokens (a BOS, only at the beginning of the text).
    """

    name: str
    window: int
    special: bool
    prepare: Callable[[str], tuple[str, str]]


def unchanged(text: str) -> tuple[str, str]:
    """Return the file's text unchanged, and the description."""
    return text, "the file's text, line ends as LF"


def joined_rows(text: str) -> tuple[str, str]:
    r"""Join the rows of the ``datasets`` library with two line feeds, like GPTQ and SparseGPT.

    A row is a line with its line feed, or empty for a blank line.  If a file has no blank lines, those of the
    published test split are restored, provided that the number of rows is then TEST_ROWS.
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
    """Return ``lines`` with a blank line on each side of a heading and one more between two articles."""
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
        *(TextProtocol(f"wikitext{n}", n, False, unchanged) for n in (64, 128, 256, 512)),
        TextProtocol("wikitext2048", 2048, True, joined_rows),
    )
}


DEFAULT_PROTOCOL = "wikitext512"


def fitting(positions: int) -> str:
    """Return the protocol with the longest windows, up to the default's, that fit in ``positions``.

    If none fits, returns the one with the shortest windows, which windows_of refuses.
    """
    names = [
        p.name
        for p in TEXT_PROTOCOLS.values()
        if p.window <= TEXT_PROTOCOLS[DEFAULT_PROTOCOL].window
    ]
    fit = [name for name in names if TEXT_PROTOCOLS[name].window <= positions]
    return (fit or names[:1])[-1]


def cut_windows(ids: Sequence[int], length: int, count: int | None = None) -> list[list[int]]:
    """Return the first ``count`` (None: all complete) windows of ``length`` ids, without overlap.

    Raises BadData if the text is shorter than a window, UsageError if it has fewer than ``count``.
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
    """Return the perplexity on ``count`` windows of ``text`` and the protocol, JSON-able.

    The loss is the sum over all predicted tokens (window - 1 in each window, every window from
    position 0) divided by their number.
    """
    windows, about = windows_of(scorer, text, protocol, count)
    figures = summary(scorer.losses(windows, update), predicted_bytes(scorer.decode, windows))
    return {**about, **figures}


def windows_of(
    scorer: Scorer, text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """Return :func:`cut_text` for ``scorer``.  Also raises UsageError if a window exceeds its ``max_length``."""
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
    """Return the number of UTF-8 bytes of all tokens except the first of each window.

    A character split by a window border counts as the three bytes of U+FFFD on each side.
    """
    return sum(len(decode(w).encode()) - len(decode(w[:1]).encode()) for w in windows)


def cut_text(
    encode: Callable[..., list[int]], text: str, protocol: TextProtocol, count: int | None
) -> tuple[list[list[int]], dict[str, object]]:
    """Return the windows to measure, and a JSON-able record of the protocol.

    ``encode(text, special=…)`` is a Scorer's.  Raises the errors of :func:`cut_windows`.
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
    """Return tokens, mean loss in nats, perplexity and bits per byte, with standard errors from the spread of windows.

    ``size``: UTF-8 bytes of the predicted tokens.  Bits per byte can be compared between tokenizers; the loss
    per token cannot.

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
        # tokens can have no bytes, for instance special tokens
        "bits_per_byte": bits / size if size else None,
    }


def mean_of_windows(values: Sequence[NDArray[np.float64]]) -> tuple[float, float | None]:
    """Return the mean of all values and its standard error (None if there is one window).

    Tokens of a window are not independent, but the means of windows nearly are.  Windows have equal length, so
    se = std(means) / sqrt(windows).
    """
    mean = float(sum(part.sum() for part in values)) / sum(map(len, values))
    if len(values) < 2:
        return mean, None
    return mean, float(np.std([part.mean() for part in values], ddof=1)) / math.sqrt(len(values))
