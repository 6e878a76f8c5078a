"""Calibration data: windows of token ids, with checks of their number and of duplicates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shrinkc.compression.self_generated import SelfGenerated
from shrinkc.compression.texts import Text, check_duplicates, read_texts
from shrinkc.core.errors import BadData

if TYPE_CHECKING:
    import torch

KEY = "calibration.text"
FEW = 16  # with fewer samples, a note warns that results vary


@dataclass
class Calibration:
    """``samples`` windows of ``length`` tokens, spread evenly over the texts.

    The texts are tokenised without special tokens, concatenated, and cut into non-overlapping windows.
    """

    text: tuple[str, ...]
    samples: int
    length: int
    self_generated: SelfGenerated | None = None
    notes: list[str] = field(default_factory=list)
    characters_per_token: float = 4.0  # assumed until the texts are tokenised
    _cached: tuple[Any, Any] = field(default=(None, None), repr=False)  # tokenizer, windows

    @cached_property
    def texts(self) -> list[Text]:
        """The texts.  Raises BadData."""
        return read_texts(self.text, KEY, self.self_generated)

    def check(self, tokenizer: Any) -> None:
        """Raise BadData for fewer than 2 samples, too short texts and duplicates; fill ``notes``."""
        self.windows(tokenizer)

    def windows(self, tokenizer: Any) -> torch.Tensor:
        """Return token ids, int64 [samples, length].  Raises BadData as :meth:`check` does."""
        if self._cached[0] is not tokenizer:
            self._cached = (tokenizer, self._cut(tokenizer))
        return self._cached[1]

    def _cut(self, tokenizer: Any) -> torch.Tensor:
        import torch

        if self.samples < 2:
            raise BadData(
                f"calibration.samples = {self.samples}: at least 2 samples are needed.",
                f"{FEW} and more give steady results.",
            )
        notes = check_duplicates(self.texts, KEY)
        ids = encode_texts(self.texts, tokenizer)
        written = len(ids) - sum(text.unwritten for text in self.texts)
        if written:
            self.characters_per_token = sum(len(text.content) for text in self.texts) / written
        available = len(ids) // self.length
        if available < self.samples:
            raise BadData(
                f"{KEY}: {self.samples} samples of {self.length} tokens need "
                f"{self.samples * self.length} tokens, the text has {len(ids)}.",
                f"give more text, or set calibration.samples to at most {available}."
                if available >= 2
                else "give more text, or shorter samples with calibration.length.",
            )
        every = torch.tensor(ids[: available * self.length]).view(available, self.length)
        windows = every[[i * available // self.samples for i in range(self.samples)]]
        different = len(torch.unique(windows, dim=0))
        if different < self.samples:
            raise BadData(
                f"{KEY}: only {different} of {self.samples} samples differ.",
                "give text that does not repeat.",
            )
        if self.samples < FEW:
            notes.append(
                f"calibration.samples = {self.samples}: with fewer than {FEW} the choice depends "
                "on which text they come from"
            )
        self.notes = notes
        return windows

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that determines the windows, except the tokenizer."""
        return {
            "samples": self.samples,
            "length": self.length,
            **{f"text {i + 1}: {t.name}": t.sha256 for i, t in enumerate(self.texts)},
        }


def encode_texts(texts: list[Text], tokenizer: Any) -> list[int]:
    """Return the concatenated ids of all texts, without special tokens.  A self-generated text that is not written
    yet is represented by distinct ids of the expected number, so that checks of the number work."""
    ids: list[int] = []
    for text in texts:
        ids += range(text.unwritten)
        # verbose=False: no warning that the text is longer than the model's context
        ids += tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
